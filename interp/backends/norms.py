"""What a norm computes, read off by what it does rather than from a parameter's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.backends.watch import device_of

SMALL = 1e-3  # scale of the input at which eps shows


@dataclass(frozen=True, eq=False)
class Norm:
    """n(x) = gain * c(x) / sqrt(mean(c(x)^2) + eps) + bias; c takes off the mean for LayerNorm, nothing for RMSNorm."""

    gain: Float[Tensor, " width"]
    bias: Float[Tensor, " width"]
    eps: float
    centred: bool

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
        centred, divisor = self._centre(x), self.divisor(x)
        scaled = grad * self.gain / divisor
        along = (scaled * centred).sum(-1, keepdim=True) / (x.shape[-1] * divisor.square())
        return self._centre(scaled - centred * along)

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True, eq=False)
class HeadNorm:
    """A norm inside attention, of q, k or v: over each head's channels, or with `whole` over all heads' together.

    `after_rotary` says that positions have been applied before it; otherwise they come after.
    """

    gain: Float[Tensor, "head d_head"]
    bias: Float[Tensor, "head d_head"]
    eps: float
    centred: bool
    whole: bool
    after_rotary: bool

    @classmethod
    def plain(cls, shape: Sequence[int], eps: float, **form: bool) -> HeadNorm:
        """The norm of a form without gain or bias."""
        return cls(torch.ones(*shape), torch.zeros(*shape), eps, **form)

    def with_gain(self, gain: Float[Tensor, "head d_head"], bias: Float[Tensor, "head d_head"]) -> HeadNorm:
        """The same form with a gain and a bias."""
        return replace(self, gain=gain, bias=bias)

    @property
    def commutes(self) -> bool:
        """Whether the order of norm and rotary makes no difference beyond the one `after_rotary` tells."""
        level = bool((self.gain - self.gain[0, 0]).abs().max() <= 1e-4 * self.gain.abs().max())
        return not self.after_rotary or (level and not self.centred)

    def __call__(self, x: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch head d_head"]:
        """The norm of x."""
        over = (-2, -1) if self.whole else (-1,)
        scale = (self._centre(x).square().mean(over, keepdim=True) + self.eps).sqrt()
        return self.linear(x) / scale + self.bias

    def linear(self, x: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch head d_head"]:
        """gain * c(x): what is left of the norm when its divisor is frozen at one."""
        return self._centre(x) * self.gain

    def fold(self, matrix: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head d_model d_head"]:
        """x W followed by `linear`, as one matrix per head."""
        return self.linear(matrix.movedim(0, -2)).movedim(-2, 0)

    def _centre(self, x: Tensor) -> Tensor:
        over = (-2, -1) if self.whole else (-1,)
        return x - x.mean(over, keepdim=True) if self.centred else x


def read_norm(norm: nn.Module, width: int) -> Norm:
    """Gain, bias, eps and centring of a norm over the last axis.

    With x of zero mean and mean square m: n(x) + n(-x) = 2 bias and n(x) - n(-x) = 2 gain x / sqrt(m + eps). With a x
    for a small a the odd part shrinks by less than a, which gives eps. A constant input leaves only the bias where the
    mean is taken off.
    """
    x = _balanced(norm, (width,))
    plus, minus = _norm(norm, x), _norm(norm, -x)
    eps = read_eps(norm, (width,))
    gain = (plus - minus) / 2 / x * (x.double().square().mean() + eps).sqrt()
    bias = (plus + minus) / 2
    flat = _norm(norm, torch.ones_like(x)) - bias
    centred = bool(flat.norm() < 0.1 * (plus - minus).norm() / 2)
    return Norm(gain.float().cpu(), bias.float().cpu(), eps, centred)


def read_eps(norm: nn.Module, shape: tuple[int, ...]) -> float:
    """eps of a norm that takes tensors [1, *shape].

    From r = |odd part at a x| / |odd part at x| with mean square m of x: eps = a^2 m (1 - r^2) / (r^2 - a^2).
    """
    x = _balanced(norm, shape)
    one, small = (_norm(norm, a * x) - _norm(norm, -a * x) for a in (1.0, SMALL))
    if not one.any():
        return 0.0  # a gain of zero everywhere: eps cannot matter
    r2 = float(small.norm() ** 2 / one.norm() ** 2)
    m = float(x.square().mean())
    return max(0.0, SMALL**2 * m * (1 - r2) / (r2 - SMALL**2))


def gain(norm: nn.Module | None, width: int) -> Float[Tensor, " width"]:
    """Per-channel factor of a norm (Llama's weight, Gemma's 1 + weight, LayerNorm's weight); ones without a norm."""
    return torch.ones(width) if norm is None else read_norm(norm, width).gain


def _balanced(norm: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Alternating +1, -1 along the last axis (ending in 1, 1, -2 where its length is odd): zero mean, no zeros."""
    parameter = next(norm.parameters(), None)
    x = torch.ones(shape, dtype=input_dtype(norm), device=None if parameter is None else device_of(norm))
    x[..., 1::2] = -1
    if shape[-1] % 2 and shape[-1] > 1:
        x[..., -2], x[..., -1] = 1, -2
    return x


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return exactly(norm, x[None])[0].double()


def exactly(module: nn.Module, *args: object, **kwargs: object):
    """The module's output with its half-precision parameters read in float32, so that nothing is rounded on the way.

    A module that holds anything but floating-point parameters (quantised, or offloaded) is called as it is.
    """
    with torch.no_grad():
        if not upcasts(module):
            return module(*args, **kwargs)
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        wide = {name: x.float() for name, x in state.items() if x.dtype in (torch.bfloat16, torch.float16)}
        if not wide:
            return module(*args, **kwargs)
        return torch.func.functional_call(module, wide, args, kwargs)


def upcasts(module: nn.Module) -> bool:
    """Whether `exactly` can compute with this module in float32."""
    return all(p.is_floating_point() and p.itemsize > 1 and not p.is_meta for p in module.parameters())


def input_dtype(module: nn.Module) -> torch.dtype:
    """The dtype in which `exactly` takes its inputs: float32 unless the module insists on another."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point() and p.itemsize > 1}
    if torch.float64 in dtypes or (dtypes and not upcasts(module)):
        return next(iter(dtypes))
    return torch.float32
