"""Norms as values: LayerNorm and RMSNorm over the stream, and the norms of heads inside attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.shapes import brief


@dataclass(frozen=True, eq=False)
class Norm:
    """n(x) = gain * c(x) / sqrt(mean(c(x)^2) + eps) + bias; c takes off the mean for LayerNorm, nothing for RMSNorm."""

    gain: Float[Tensor, " width"]
    bias: Float[Tensor, " width"]
    eps: float
    centred: bool

    __repr__ = brief

    def to(self, device: torch.device | str) -> Norm:
        """The same norm on another device."""
        return replace(self, gain=self.gain.to(device), bias=self.bias.to(device))

    def divisor(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
        """sqrt(mean(c(x)^2) + eps)."""
        return (self._centre(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The norm of x."""
        return self.linear(x) / self.divisor(x) + self.bias

    def linear(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """gain * c(x): what is left of the norm when its divisor is frozen at one."""
        return self._centre(x) * self.gain

    def transpose(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """c(gain * x): the transposed map, for a matrix that reads the norm's output along its last axis."""
        return self._centre(x * self.gain)

    def pull_back(
        self, grad: Float[Tensor, "*more width"], x: Float[Tensor, "*batch width"]
    ) -> Float[Tensor, "*more width"]:
        """J^T g, J the Jacobian of the norm at x: c(gain g / s - c(x) <c(x), gain g> / (width s^3)), s the divisor."""
        centred_x, divisor = self._centre(x), self.divisor(x)
        scaled_grad = grad * self.gain / divisor
        along = (scaled_grad * centred_x).sum(-1, keepdim=True) / (x.shape[-1] * divisor.square())
        return self._centre(scaled_grad - centred_x * along)

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


UNEVEN = (
    "a norm divides a part of each head's channels only (latent attention beside a rotary part), so that scores are "
    "not one matrix times a positive number of each token"
)


@dataclass(frozen=True, eq=False)
class HeadNorm:
    """A norm inside attention, of q, k or v: over each head's channels, or with `whole` over all heads' together.

    `after_rotary` says that positions have been applied before it; otherwise they come after.

    Under multi-head latent attention the norm stands on a latent of few numbers, from which all heads are made by a
    matrix: `latent` takes the projection (with the norm's gain in it) back to that latent, whose size is the divisor;
    `divided` says which channels of a head come of it, the others pass as they are.
    """

    gain: Float[Tensor, "head d_head"]
    bias: Float[Tensor, "head d_head"]
    eps: float
    centred: bool
    whole: bool
    after_rotary: bool
    latent: Float[Tensor, "channel rank"] | None = None
    divided: Bool[Tensor, " d_head"] | None = None

    __repr__ = brief

    @classmethod
    def plain(cls, shape: Sequence[int], eps: float, *, centred: bool, whole: bool, after_rotary: bool) -> HeadNorm:
        """The norm of a form without gain or bias."""
        return cls(torch.ones(*shape), torch.zeros(*shape), eps, centred, whole, after_rotary)

    def with_gain(self, gain: Float[Tensor, "head d_head"], bias: Float[Tensor, "head d_head"]) -> HeadNorm:
        """The same form with a gain and a bias."""
        return replace(self, gain=gain, bias=bias)

    def to(self, device: torch.device | str) -> HeadNorm:
        """The same norm on another device."""
        return replace(self, gain=self.gain.to(device), bias=self.bias.to(device))

    @property
    def commutes(self) -> bool:
        """Whether the order of norm and rotary makes no difference beyond the one `after_rotary` tells."""
        level = bool((self.gain - self.gain[0, 0]).abs().max() <= 1e-4 * self.gain.abs().max())
        return not self.after_rotary or (level and not self.centred)

    def __call__(self, x: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch head d_head"]:
        """The norm of x."""
        return self.linear(x) / self.divisor(x) + self.bias

    def divisor(self, x: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch #head #d_head"]:
        """What the norm of x divides by: a positive number of the token, or of each of its heads."""
        if self.latent is None:
            over = (-2, -1) if self.whole else (-1,)
            return (self._centre(x).square().mean(over, keepdim=True) + self.eps).sqrt()
        sizes = (x.flatten(-2) @ self.latent.to(x)).square().mean(-1)
        divisor = (sizes + self.eps).sqrt()[..., None, None]
        return divisor if self.divided is None else torch.where(self.divided.to(x.device), divisor, 1.0)

    @property
    def even(self) -> bool:
        """Whether all channels of a head are divided by one number."""
        return self.divided is None or bool(self.divided.all())

    def linear(self, x: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch head d_head"]:
        """gain * c(x): what is left of the norm when its divisor is frozen at one."""
        return self._centre(x) * self.gain

    def fold(self, matrix: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head d_model d_head"]:
        """x W followed by `linear`, as one matrix per head."""
        return self.linear(matrix.movedim(0, -2)).movedim(-2, 0)

    def _centre(self, x: Tensor) -> Tensor:
        over = (-2, -1) if self.whole else (-1,)
        return x - x.mean(over, keepdim=True) if self.centred else x
