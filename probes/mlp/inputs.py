"""An MLP run by itself on parts of what enters it: what it writes without a component, or with some of them alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.decompose.stream import allowed
from interp.errors import BackendError, NotApplicable
from interp.model import Model
from interp.numerics import wide
from interp.shapes import brief
from interp.weights.stream import Reads

AT_ONCE = 8192
"""Vectors that the MLP is given at one time."""


@dataclass(frozen=True, eq=False)
class LoneMLP:
    """MLP(norm(x)) of one layer as a function of the stream x that it reads.

    Attributes:
        layer: of the MLP. reads: its norm, and the modules that make its write.
    """

    layer: int
    reads: Reads

    __repr__ = brief

    @classmethod
    def of(cls, model: Model, layer: int) -> LoneMLP:
        """The MLP of a layer.

        Raises:
            NotApplicable: it cannot be run by itself.
        """
        reads = model.reads(layer)
        if not reads.whole:
            why = reads.missing.get("mlp_out", "it is no chain of modules")
            raise NotApplicable(f"the MLP of layer {layer} cannot be run by itself: {why}")
        return cls(layer, reads)

    def __call__(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What it writes, in float32 at least."""
        flat = stream.reshape(-1, stream.shape[-1])
        return torch.cat([self._some(part) for part in flat.split(AT_ONCE)]).view(stream.shape)

    def _some(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        parameter = next(self.reads.whole[0].parameters())
        x = x.to(parameter.device)
        norm = self.reads.mlp
        read = x if norm is None else norm.to(x.device)(x)
        out = self.reads.mlp_of(read.to(parameter.dtype))
        assert out is not None  # `whole` is not empty
        return wide(out)

    def check(self, model: Model, stream: Float[Tensor, "batch d_model"], out: Float[Tensor, "batch d_model"]) -> None:
        """Hold its write at some streams against the model's own.

        Raises:
            BackendError: it is above what rounding may cause.
        """
        with torch.no_grad():
            found = self(stream).to(out)
        error = float((found - out).norm() / out.norm())
        if not error <= 10 * allowed(model):
            raise BackendError(f"the MLP of layer {self.layer} run by itself misses what it wrote by {error:.1e} of it")


@dataclass(frozen=True, eq=False)
class Removals:
    """What an MLP writes less without each component: vectors [component batch d_model].

    Attributes:
        marginal: m(x) - m(x with the component at its base).
        shapley: mean over orders of what it adds when it joins those before it; they sum to `whole`.
        whole: m(x) - m(all at their base).
    """

    marginal: Float[Tensor, "component batch d_model"]
    shapley: Float[Tensor, "component batch d_model"]
    whole: Float[Tensor, "batch d_model"]

    __repr__ = brief


@torch.no_grad()
def removals(
    mlp: LoneMLP,
    parts: Float[Tensor, "component batch d_model"],
    base: Float[Tensor, "component batch d_model"],
    *,
    orders: int,
    seed: int,
) -> Removals:
    """Components taken out of what an MLP reads, one at a time and in random orders, each with its reverse.

    Every order runs the MLP once a component; its steps sum to the whole, so that the means do, whatever the number of
    orders. The norm before the MLP is that of what it is given.
    """
    stream, count = parts.sum(0), len(parts)
    steps = base - parts
    full = mlp(stream)
    marginal = torch.stack([full - mlp(stream + step) for step in steps])
    shapley = torch.zeros_like(parts, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(count, generator=generator) for _ in range((orders + 1) // 2)]
    every = [order for pair in ((o, o.flip(0)) for o in drawn) for order in pair]
    bare = mlp(base.sum(0))
    for order in every:
        path = base.sum(0) - steps[order].cumsum(0)  # components join in this order
        written = torch.cat([bare[None], mlp(path)])
        shapley[order] += written.diff(dim=0).double()
    return Removals(marginal, (shapley / len(every)).to(parts), full - bare)


def slope(
    mlp: LoneMLP, stream: Float[Tensor, "batch d_model"], w: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_model"]:
    """J^T w at the stream, J the Jacobian of MLP and norm."""
    x = stream.detach().requires_grad_()
    with torch.enable_grad():
        out = mlp(x)
        return torch.autograd.grad(out, x, w.to(out))[0].to(stream)
