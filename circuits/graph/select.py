"""Which edges make a circuit: the largest, those above a threshold, or those reached from the logits; and pruning.

Functions take scores [sender, slot] and the layout and return a mask of the same form. Edges without a score (NaN) are
never chosen. `absolute` ranks by magnitude, else by sign: then edges that hurt the metric are left out first.
"""

from __future__ import annotations

import heapq

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from circuits.graph.layout import Layout
from interp.errors import SchemaError

Scores = Float[ndarray, "sender slot"]
Mask = Bool[ndarray, "sender slot"]


def strength(scores: Scores, layout: Layout, *, absolute: bool) -> Scores:
    """What edges are ranked by; -inf where there is no edge or no score."""
    keys = np.abs(scores) if absolute else scores
    return np.where(layout.exists & ~np.isnan(scores), keys, -np.inf)


def top(scores: Scores, layout: Layout, n: int, *, absolute: bool = True) -> Mask:
    """The n largest; ties go to the earlier edge, in the order of the stream."""
    if n < 0:
        raise SchemaError(f"{n} edges asked for; at least 0")
    strengths = strength(scores, layout, absolute=absolute).ravel()
    order = np.argsort(-strengths, kind="stable")[:n]
    mask = np.zeros(strengths.shape, dtype=bool)
    mask[order[np.isfinite(strengths[order])]] = True
    return mask.reshape(scores.shape)


def above(scores: Scores, layout: Layout, threshold: float, *, absolute: bool = True) -> Mask:
    """Score (or its magnitude) at least the threshold."""
    return strength(scores, layout, absolute=absolute) >= threshold


def greedy(scores: Scores, layout: Layout, n: int, *, absolute: bool = True) -> Mask:
    """The n edges found by growing from the logits, always the strongest edge into what is already there.

    Every edge chosen leads to the logits (Hanna et al., arXiv 2403.17806); after `prune` it comes from `embed` too.
    """
    if n < 0:
        raise SchemaError(f"{n} edges asked for; at least 0")
    strengths = strength(scores, layout, absolute=absolute)
    mask = np.zeros(scores.shape, dtype=bool)
    reached_senders = np.zeros(len(layout.senders), dtype=bool)
    opened_slots = np.zeros(len(layout.slots), dtype=bool)
    heap: list[tuple[float, int, int]] = []

    def open_slots(columns: ndarray) -> None:
        for column in columns[~opened_slots[columns]]:
            opened_slots[column] = True
            for row in np.flatnonzero(np.isfinite(strengths[:, column])):
                heapq.heappush(heap, (-float(strengths[row, column]), int(row), int(column)))

    open_slots(np.array([len(layout.slots) - 1]))
    for _ in range(n):
        if not heap:
            break
        _, row, column = heapq.heappop(heap)
        mask[row, column] = True
        if not reached_senders[row]:
            reached_senders[row] = True
            open_slots(np.flatnonzero(layout.owners[:, row]))
    return mask


def prune(mask: Mask, layout: Layout) -> Mask:
    """Without dangling edges: every sender left but `embed` is fed, and everything left leads to the logits.

    A head counts as fed by any of q, k and v. Repeated until nothing changes.
    """
    mask = mask & layout.exists
    while True:
        writers = np.any(mask, axis=1)
        fed_senders = np.any(np.any(mask, axis=0)[:, None] & layout.owners, axis=0) | (np.arange(len(writers)) == 0)
        live_slots = np.any(layout.owners & writers[None, :], axis=1)
        logits = np.arange(mask.shape[1]) == mask.shape[1] - 1
        live_edges = mask & (writers & fed_senders)[:, None] & (live_slots | logits)[None, :]
        if (live_edges == mask).all():
            return mask
        mask = live_edges
