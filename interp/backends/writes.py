"""What attention and MLP write to the stream, as one linear map each: projection, norm behind it, multiplier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.backends.anatomy import Anatomy
from interp.backends.norms import Norm, exactly, input_dtype, read_norm
from interp.backends.shards import MATRICES
from interp.backends.watch import device_of
from interp.errors import BackendError


@dataclass(frozen=True, eq=False)
class Write:
    """out = scale * norm(x W + b) for the input x of a projection: z of all heads, or an MLP's neurons.

    With the norm's divisor held at its value for some x, this is linear: out = (x / divisor) `matrix` + `bias`.
    """

    projection: nn.Module
    norm: Norm | None = None
    scale: float = 1.0

    def matrix(self, width: int) -> Float[Tensor, "width d_model"]:
        """W with gain, centring and multiplier folded in; float32 where the model is in half precision."""
        basis = torch.eye(width, dtype=input_dtype(self.projection), device=self._device)
        matrix = _wide(exactly(self.projection, basis)) - self._bias(width)
        return self.scale * (matrix if self.norm is None else self.norm.to(self._device).linear(matrix))

    def divisor(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
        """What the norm behind the projection divides by at inputs x; ones without a norm."""
        if self.norm is None:
            return torch.ones_like(x[..., :1], dtype=torch.promote_types(x.dtype, torch.float32))
        return self.norm.divisor(_wide(exactly(self.projection, x.to(self._device, input_dtype(self.projection)))))

    def bias(self, width: int, divisor: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch d_model"]:
        """What is added whatever x is, b and the norm's own bias, at a divisor."""
        bias = self._bias(width).expand(*divisor.shape[:-1], -1)
        if self.norm is None:
            return bias * self.scale
        norm = self.norm.to(self._device)
        return (norm.linear(bias) / divisor.to(bias) + norm.bias) * self.scale

    def _bias(self, width: int) -> Float[Tensor, " d_model"]:
        zero = torch.zeros(1, width, dtype=input_dtype(self.projection), device=self._device)
        return _wide(exactly(self.projection, zero))[0]

    @property
    def _device(self) -> torch.device:
        return device_of(self.projection)


@dataclass(frozen=True, eq=False)
class Writes:
    """One layer's two writes; None where there is no such map, `missing` saying why by kind of site.

    With `attn_out` among what is missing, the layer is not told apart at all.
    """

    attn: Write | None
    mlp: Write | None
    missing: Mapping[str, str]


def read_writes(anatomy: Anatomy, layer: int, d_model: int) -> Writes:
    """The writes of one layer of a transformers model.

    Raises:
        BackendError: the model is spread over processes.
    """
    if anatomy.shards is not None:
        raise BackendError(f"layer {layer}: {MATRICES}")
    part, stream = anatomy.part(layer), anatomy.stream[layer]
    attn = mlp = None
    if part is not None and not {"attn_out", "head_out"} & stream.missing.keys():
        after = part.norm_after if part.norm_after is stream.attn_out else None
        attn = Write(part.output, None if after is None else read_norm(after, d_model), stream.attn_scale)
    if stream.mlp_post is not None and stream.mlp_out is not None:
        norm = read_norm(stream.mlp_out, d_model) if _is_norm(stream.mlp_out, d_model) else None
        mlp = Write(stream.mlp_post, norm, stream.mlp_scale)
    return Writes(attn, mlp, stream.missing)


def _is_norm(module: nn.Module, width: int) -> bool:
    own = list(module.parameters())
    return bool(own) and next(module.children(), None) is None and all(p.shape == (width,) for p in own)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
