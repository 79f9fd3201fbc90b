"""Norms as values: kind, gain, bias and eps from outputs, not from parameter names."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.numerics import device_of, exactly, input_dtype
from interp.weights.norms import Norm

SMALL = 1e-3  # scale of the input at which eps shows


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


def forgets_scale(module: nn.Module, x: Tensor) -> bool:
    """Whether four times the input gives the same output: a norm does, a linear map does not."""
    once, more = exactly(module, x).float(), exactly(module, 4 * x).float()
    return bool(once.norm() > 0) and bool((more - once).norm() < 0.02 * once.norm())


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
