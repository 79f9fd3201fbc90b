"""What of a bias, behind a norm and of a size is beta's, where a stream is split into beta and gamma."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from interp.weights.norms import HeadNorm, Norm

SMALL = 1e-12


def bias_part(bias: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """beta's part of a bias; all of it is gamma's where both are zero."""
    return bias * (beta.abs() / (beta.abs() + gamma.abs()).clamp(min=SMALL))


def normed(norm: Norm | None, beta: Tensor, x: Tensor) -> Tensor:
    """beta behind a norm with the divisor of x."""
    if norm is None:
        return beta
    norm = norm.to(x.device)
    divisor = norm.divisor(x)
    out = norm.linear(beta) / divisor
    return out + bias_part(norm.bias, out, norm.linear(x) / divisor - out)


def head_normed(norm: HeadNorm, beta: Tensor, x: Tensor) -> Tensor:
    """The same for a norm inside attention."""
    norm = replace(norm, gain=norm.gain.to(x), bias=norm.bias.to(x))
    divisor = norm.divisor(x)
    out = norm.linear(beta) / divisor
    return out + bias_part(norm.bias, out, norm.linear(x) / divisor - out)


def share_of(beta: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """sum |beta| / (sum |beta| + sum |gamma|), over real tokens where a mask [batch (head) pos] is given."""
    sizes = []
    for part in (beta, x - beta):
        size = part.abs().sum(-1)
        sizes.append(size if mask is None else (size * mask).sum(-1))
    return sizes[0] / (sizes[0] + sizes[1]).clamp(min=SMALL)
