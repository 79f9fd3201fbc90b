"""`LogitHead`: multiplier or soft-cap behind the unembedding, fitted to the logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BackendError

STEPS = 80  # halvings of the interval in which the soft-cap lies


@dataclass(frozen=True, eq=False)
class LogitHead:
    """logits = cap(multiplier * raw), raw what the unembedding gives.

    Attributes:
        before: multiplier * raw. given: logits as the model gives them.
        multiplier: 1 without. softcap: c of c tanh(x / c), None without.
    """

    before: Float[Tensor, "batch d_vocab"]
    logits: Float[Tensor, "batch d_vocab"]
    multiplier: float = 1.0
    softcap: float | None = None


def read_head(
    raw: Float[Tensor, "batch d_vocab"], logits: Float[Tensor, "batch d_vocab"], *, slack: float
) -> LogitHead:
    """The first of these that fits the logits of all tokens to `slack` of the largest.

    Raises:
        BackendError: none does.
    """
    size = float(logits.abs().max()) or 1.0  # all zero, as those of an ablated stream are

    def error_of(fit: Tensor) -> float:
        return float((fit - logits).abs().max()) / size

    if error_of(raw) <= slack:
        return LogitHead(raw, logits)
    a = float((raw.double() * logits).sum() / raw.double().square().sum())
    if error_of(raw * a) <= slack:
        return LogitHead(raw * a, logits, multiplier=a)
    for cap in _caps(raw, logits):
        if error_of(cap * torch.tanh(raw / cap)) <= 5 * slack:  # the slope of tanh takes part in the rounding
            return LogitHead(raw, logits, softcap=cap)
    raise BackendError(
        "the logits are not norm, unembedding and at most a multiplier or a soft-cap: nothing else can be attributed "
        f"(without: {error_of(raw):.1e} of the largest logit, with a multiplier {a:.3g}: {error_of(raw * a):.1e})"
    )


def _caps(raw: Tensor, logits: Tensor) -> Iterator[float]:
    """c with c tanh(x / c) = y at the largest logit x, as short a decimal as can be first."""
    where = int(raw.abs().argmax())
    x, y = abs(float(raw.flatten()[where])), abs(float(logits.flatten()[where]))
    if not 0 < y < x:
        return
    low, high = y, 1e4 * x
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        y_middle = middle * float(torch.tanh(torch.tensor(x / middle, dtype=torch.float64)))
        low, high = (middle, high) if y_middle < y else (low, middle)
    for digits in range(1, 7):
        yield float(f"{low:.{digits}g}")
