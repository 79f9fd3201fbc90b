"""`Runs`: what every query sees as one run of keys, found from a mask's predicate in O(n log n)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.attention.masks import ApartMask, CausalMask, Segment
from interp.attention.windows import WindowMask
from interp.errors import BackendError
from interp.shapes import Bool, Int


@dataclass(frozen=True)
class Runs:
    """Query i of a prompt sees the keys `low[i] <= j < high[i]`, and of the first `extra` from `start` those up to i.

    A query that sees none has `low == high`; both grow with i.
    """

    low: Int[Tensor, "batch query"]
    high: Int[Tensor, "batch query"]
    start: Int[Tensor, " batch"]
    extra: int = 0

    def sees(self, keys: Bool[Tensor, "batch key"], positions: Int[Tensor, " query"]) -> Bool[Tensor, "batch query"]:
        """Whether a query sees any of some keys: differences of running counts."""
        count = torch.nn.functional.pad(keys.long().cumsum(1), (1, 0))
        some = count.gather(1, self.high.long()) > count.gather(1, self.low.long())
        if self.extra:
            first = self.start.long()[:, None]
            end = torch.minimum(positions[None] + 1, first + self.extra).clamp(max=keys.shape[1])
            some |= (count.gather(1, end) > count.gather(1, first.expand_as(end))) & (self.high > self.low)
        return some


def visible_runs(mask: CausalMask) -> Runs:
    """The runs of a mask.

    Raises:
        BackendError: keys that are not one run, or a window that puts the mean of what it drops in their place.
    """
    whole, extra = mask, 0
    if isinstance(mask, WindowMask):
        if mask.window.compensate:
            raise BackendError("a window with the mean of what it drops is no run of keys")
        whole, extra = mask.whole, mask.window.sinks
    size = (mask.batch, mask.n_query)
    low, high = (torch.zeros(size, dtype=torch.int32, device=mask.device) for _ in range(2))
    start = torch.zeros(mask.batch, dtype=torch.int32, device=mask.device)
    for segment in whole.segments:
        first, last = segment.blocks[0][0], segment.blocks[-1][1]
        lows, highs = _of_segment(whole, segment, first, last)
        if isinstance(mask, WindowMask):
            position = torch.arange(first, last, device=mask.device) + mask.offset
            lows = torch.maximum(lows, position + 1 - mask.window.width)
        low[segment.rows, first:last], high[segment.rows, first:last] = lows.int(), highs.int()
        low[segment.rows, last:] = high[segment.rows, last:] = segment.stop
        start[segment.rows] = segment.start
    return Runs(low, high, start, extra)


def _of_segment(mask: CausalMask, segment: Segment, first: int, last: int) -> tuple[Tensor, Tensor]:
    """First visible key and end of keys of a segment's queries."""
    query = torch.arange(first, last, device=mask.device)
    if not segment.causal:
        return _all_keys(mask, segment, query)
    row, position = segment.rows[:1], query + mask.offset
    none = ~mask.visible(row, query, position).expand_as(query)
    left, right = torch.full_like(query, segment.start), position.clone()
    while bool((left < right).any()):  # keys of a run that ends at the query: halve where it begins
        middle = (left + right) // 2
        seen = mask.visible(row, query, middle).expand_as(query)
        left, right = torch.where(seen, left, middle + 1).minimum(right), torch.where(seen, middle, right)
    return torch.where(none, position + 1, left), position + 1


def _all_keys(mask: CausalMask, segment: Segment, query: Tensor) -> tuple[Tensor, Tensor]:
    """Every real key for every query, as in encoders and where keys are of a source."""
    real = mask.keys()[segment.rows[0]].nonzero()[:, 0]
    whole = segment.full or (isinstance(mask, ApartMask) and _sees_all(mask, segment, query))
    if not whole or len(real) == 0 or int(real[-1]) + 1 - int(real[0]) != len(real):
        raise BackendError("queries see later keys, and not all of them alike: no run of keys")
    return torch.full_like(query, int(real[0])), torch.full_like(query, int(real[-1]) + 1)


def _sees_all(mask: CausalMask, segment: Segment, query: Tensor) -> bool:
    rows, span = segment.rows[:1], slice(int(query[0]), int(query[-1]) + 1)
    return bool((mask.tile(rows, span, slice(0, mask.n_key)) == mask.keys()[rows][:, None]).all())
