"""Columns of a pattern re-weighted, spans calibrated and windows put on scores: pure, on [pair query key]."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def scale_columns(
    pattern: Float[Tensor, "pair query key"], chosen: Bool[Tensor, "pair #query key"], factor: float
) -> Float[Tensor, "pair query key"]:
    """p_ij times `factor` at chosen keys, the others of a row raised alike so that the row's sum stays.

    A row that has nothing on other keys is left alone.
    """
    mass = pattern.masked_fill(~chosen, 0.0).sum(-1, keepdim=True)
    rest = pattern.masked_fill(chosen, 0.0).sum(-1, keepdim=True)
    new = (factor * mass).minimum(mass + rest)
    tiny = torch.finfo(pattern.dtype).tiny
    on, off = new / mass.clamp(min=tiny), (mass + rest - new) / rest.clamp(min=tiny)
    return torch.where((rest > 0) & (mass > 0), pattern * torch.where(chosen, on, off), pattern)


def received(
    pattern: Float[Tensor, "pair query key"],
    visible: Bool[Tensor, "pair query key"],
    rows: Bool[Tensor, "pair query"],
    *,
    least: int = 1,
) -> Float[Tensor, "pair key"]:
    """c_j = sum_i p_ij / #{i: i sees j} over some query rows; 0 for keys that fewer than `least` of them see."""
    seen = visible & rows[..., None]
    count = seen.sum(-2)
    mean = pattern.masked_fill(~seen, 0.0).sum(-2) / count.clamp(min=1)
    return mean.masked_fill(count < least, 0.0)


def calibrated(
    pattern: Float[Tensor, "pair query key"],
    spans: Bool[Tensor, "pair span key"],
    baseline: Float[Tensor, "pair span"],
    temperature: float,
) -> Float[Tensor, "pair query key"]:
    """Each row's mass on all spans, shared out anew by softmax((mass on span - baseline) / temperature)."""
    inside = spans.to(pattern.dtype)
    mass = torch.einsum("pqk,psk->pqs", pattern, inside)
    there = mass > 0
    logits = ((mass - baseline[:, None]) / temperature).masked_fill(~there, -torch.inf)
    share = logits.masked_fill(~there.any(-1, keepdim=True), 0.0).softmax(-1)
    change = torch.where(there, share * mass.sum(-1, keepdim=True) / mass.where(there, torch.ones_like(mass)), 1.0)
    factor = torch.einsum("pqs,psk->pqk", change, inside)
    return pattern * torch.where(spans.any(1)[:, None], factor, 1.0)


def windowed(
    scores: Float[Tensor, "pair query key"], kept: Bool[Tensor, "pair query key"], *, compensate: bool
) -> Float[Tensor, "pair query key"]:
    """Scores -inf at keys that are not kept; or, to compensate, the mean score of those that a row leaves out."""
    if not compensate:
        return scores.masked_fill(~kept, -torch.inf)
    dropped = ~kept & ~torch.isneginf(scores)
    mean = scores.masked_fill(~dropped, 0.0).sum(-1, keepdim=True) / dropped.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(dropped, mean, scores)
