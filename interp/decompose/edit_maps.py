"""Edits in force as affine maps of what stands where: a sum goes through them part by part.

An edit x -> A x + b makes of x = sum_c x_c the sum of A x_c and b, so that what it adds is a part of its own. Along a
direction d no vector is needed: <d, A x_c> = <A^T d, x_c>.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.decompose.stream_run import StreamRun
from interp.edits import Apply, Edit, apply_edits
from interp.errors import SiteError

ALIKE = 1e-4
"""Relative error to which a function must be affine: its parts are summed in single precision."""


class EditMap:
    """x -> A x + b, of the edits at one place of a run; at its chosen positions alone.

    Raises:
        SiteError: a function that is not affine there, or mixes positions.
    """

    def __init__(self, stream: StreamRun, edits: Sequence[Edit], layer: int | None, like: Tensor) -> None:
        """`like` is an activation of the place [batch pos ...], at the chosen positions."""
        self.edits, self.layer, self.mask = edits, layer, stream.batch.mask.to(like.device)
        columns = stream.columns.to(like.device)
        self.index = (torch.arange(len(columns), device=like.device)[:, None], columns)
        self.full = (*stream.batch.ids.shape, *like.shape[2:])
        self.constant = self(torch.zeros_like(like))
        if any(isinstance(edit, Apply) for edit in edits):
            self._check(like)

    def __call__(self, x: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch pos *rest"]:
        """A x + b."""
        return self._apply(self._spread(x))[self.index]

    def linear(self, x: Float[Tensor, "part batch pos *rest"]) -> Float[Tensor, "part batch pos *rest"]:
        """A x of every part."""
        return torch.stack([self(part) - self.constant for part in x])

    def pull_back(self, direction: Float[Tensor, "batch #pos d"]) -> Float[Tensor, "batch pos d"]:
        """A^T d."""
        with torch.inference_mode(False), torch.enable_grad():
            d = direction.clone().to(self.constant).expand(self.constant.shape)
            x = torch.zeros(self.full, dtype=d.dtype, device=d.device, requires_grad=True)
            along = (self._apply(x)[self.index] * d).sum()
            if not along.requires_grad:
                return torch.zeros_like(d)
            (grad,) = torch.autograd.grad(along, x, allow_unused=True, materialize_grads=True)
        return grad[self.index]

    def _apply(self, x: Tensor) -> Tensor:
        return apply_edits(x, self.edits, layer=self.layer, mask=self.mask)

    def _spread(self, x: Tensor) -> Tensor:
        full = x.new_zeros(self.full)
        full[self.index] = x
        return full

    def _check(self, like: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(self.full, generator=generator).to(like) * like.std() for _ in range(2))
        zero = self._apply(torch.zeros_like(x))
        whole, one, other = self._apply(x + y), self._apply(x), self._apply(y)
        limit = ALIKE * float(torch.stack([whole, one, other, zero]).abs().max())
        sums = float((whole - one - other + zero).abs().max()) <= limit
        if not sums or float((one[self.index] - self(x[self.index])).abs().max()) > limit:
            site = next(edit.site for edit in self.edits if isinstance(edit, Apply))
            raise SiteError(
                f"{site}: the function is not affine in what it is given, token by token, so that there is no sum of "
                "parts behind it; use Add, Scale, Replace or Ablate, or look at a layer before it"
            )


class EditMaps:
    """Maps of all places of a run that edits in force change, made when first asked for."""

    def __init__(self, stream: StreamRun) -> None:
        self.stream = stream
        self._maps: dict[tuple[str, int | None], EditMap | None] = {}

    def at(self, kind: str, layer: int | None, like: Tensor) -> EditMap | None:
        """The map at a place where activations are like this one; None where nothing is changed."""
        if (kind, layer) not in self._maps:
            edits = self.stream.edits_at(kind, layer)
            self._maps[kind, layer] = EditMap(self.stream, edits, layer, like) if edits else None
        return self._maps[kind, layer]
