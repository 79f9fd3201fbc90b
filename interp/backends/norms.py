"""The gain of a norm, read off by what it does rather than from a parameter's name."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def gain(norm: nn.Module | None, width: int) -> Float[Tensor, " width"]:
    """Per-channel factor of a norm (Llama's weight, Gemma's 1 + weight, LayerNorm's weight); ones without a norm.

    Found from n(x) - n(-x) = 2 g x / scale(x) with x alternating +1, -1: zero mean and unit scale in both families.
    """
    if norm is None:
        return torch.ones(width)
    parameter = next(norm.parameters())
    x = torch.ones(width, device=parameter.device, dtype=parameter.dtype)
    x[1::2] = -1
    with torch.no_grad():
        odd = (norm(x[None]) - norm(-x[None]))[0] / 2
    return (odd * x).float().cpu()
