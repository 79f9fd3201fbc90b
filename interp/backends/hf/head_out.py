"""`HeadWriter`: each head's write to the residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.backends.hf.anatomy import Anatomy
from interp.backends.hf.read_norms import read_norm
from interp.numerics import device_of


class HeadWriter:
    """z_h W_O[h] of one layer, through a norm behind attention with its divisor frozen, times a multiplier.

    Where a gate or a norm changes z first, z is what the projection takes.
    """

    def __init__(self, anatomy: Anatomy, layer: int) -> None:
        part = anatomy.part(layer)
        assert part is not None  # checked where sites are: a layer without attention has no head_out
        self.scale = anatomy.stream[layer].attn_scale
        after = part.norm_after if part.norm_after is anatomy.stream[layer].attn_out else None
        parameter = next(part.output.parameters())
        dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.float32
        basis = torch.eye(part.n_heads * part.d_value, dtype=dtype, device=device_of(part.output))
        if anatomy.shards is not None:
            basis = anatomy.shards.local(basis, -1)  # the projection sums over processes by itself
        with torch.no_grad():
            matrix = part.output(basis) - part.output(torch.zeros_like(basis[:1]))
        self.matrix = matrix.unflatten(0, (part.n_heads, part.d_value))
        self.norm = None if after is None else read_norm(after, matrix.shape[-1])

    def write(
        self, z: Float[Tensor, "batch pos head d_value"], took: Tensor | None
    ) -> Float[Tensor, "batch pos head d_model"]:
        """Summed over heads, with the bias, this is attn_out. `took`: what the norm behind attention took."""
        writes = torch.einsum("bphv,hvd->bphd", z, self.matrix.to(z))
        if self.norm is not None and took is not None:
            wide = took.reshape(*z.shape[:2], -1).to(torch.promote_types(took.dtype, torch.float32))
            gain, divisor = self.norm.gain.to(writes.device), self.norm.divisor(wide)[:, :, None]
            if self.norm.centred:
                writes = writes - writes.mean(-1, keepdim=True)
            writes = (writes * gain / divisor).to(z.dtype)
        return writes if self.scale == 1.0 else writes * self.scale
