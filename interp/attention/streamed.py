"""Tiles of the pattern, and statistics as sums over them: one pass for all that are asked. O(n) memory.

A tile is of some heads, up to 256 queries and 1024 keys, so small that it stays in the cache: s_ij from a matrix
product, p_ij = exp(s_ij - L_i) from the log-sum-exp that the forward pass left, and each statistic adds what it needs.
The pass costs less than the fused forward pass itself (no product with values), however many statistics share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from interp.attention.call import Call
from interp.attention.masks import Segment
from interp.attention.statistics import ByDistance, Distance, Entropy, KeyMass, Received, Statistic, SumSquares
from interp.shapes import Bool, Float, Int

TILE = 1 << 18
"""Scores in a tile, of all its heads: 1 MiB in float32."""
KEYS = 1 << 10
"""Keys of a tile."""
UNSEEN = -1e30
"""Score of a key that a query does not see: its probability is exactly 0, and 0 * UNSEEN no NaN."""


@dataclass(frozen=True)
class Forward:
    """A finished forward pass of one call in float32: what every answer starts from."""

    call: Call
    lse: Float[Tensor, "batch head query"]


@dataclass(frozen=True)
class Tile:
    """Queries and keys of some (prompt, head) pairs: log p_ij and p_ij, 0 where a query does not see a key.

    `spare` is room for a product.
    """

    prompt: Int[Tensor, " pair"]
    head: Int[Tensor, " pair"]
    queries: slice
    keys: slice
    log_p: Float[Tensor, "pair query key"]
    p: Float[Tensor, "pair query key"]
    spare: Float[Tensor, "pair query key"]


def tiles(forward: Forward) -> Iterator[Tile]:
    """Every tile of a call that some query sees a key in; its tensors are overwritten by the next."""
    room = forward.lse.new_empty(0)
    for segment in forward.call.mask.segments:
        for a, b, low, high in segment.blocks:
            for keys in _key_slices(segment, low, high):
                queries, first = slice(a, b), keys.start
                pairs = min(_pairs(queries, keys), len(segment.rows) * forward.lse.shape[1])
                if room.numel() < 3 * pairs * (b - a) * (keys.stop - first):
                    room = forward.lse.new_empty(3 * pairs * (b - a) * (keys.stop - first))
                yield from _of_heads(forward, segment, queries, keys, room)


def _key_slices(segment: Segment, low: int, high: int) -> Iterator[slice]:
    """Keys that a tile of queries reaches, a few at a time: from `low` to `high`, and first ones of the segment."""
    first = segment.start + segment.extra
    spans = (
        [(low, high)]
        if not segment.extra
        else [(segment.start, high)]
        if low <= first
        else [(segment.start, first), (low, high)]
    )
    for start, stop in spans:
        for begin in range(start, stop, KEYS):
            yield slice(begin, min(begin + KEYS, stop))


def _pairs(queries: slice, keys: slice) -> int:
    """How many (prompt, head) pairs share a tile of this size."""
    return max(1, TILE // ((queries.stop - queries.start) * (keys.stop - keys.start)))


def _of_heads(forward: Forward, segment: Segment, queries: slice, keys: slice, room: Tensor) -> Iterator[Tile]:
    """The tile at some queries and keys, a few (prompt, head) pairs at a time."""
    call, size = forward.call, (queries.stop - queries.start, keys.stop - keys.start)
    seen = segment.full and (not segment.causal or keys.stop - 1 <= queries.start)
    visible = None if seen else call.mask.tile(segment.rows[:1], queries, keys)[0]
    heads = torch.arange(call.query.shape[1], device=segment.rows.device)
    prompt, head = torch.cartesian_prod(segment.rows, heads).T
    many = _pairs(queries, keys)
    for b, h in zip(prompt.split(many), head.split(many), strict=True):
        log_p, p, spare = room[: 3 * len(b) * size[0] * size[1]].view(3, len(b), *size)
        _fill(forward, b, h, queries, keys, log_p)
        if visible is not None:
            log_p.masked_fill_(~visible, UNSEEN)
        torch.exp(log_p, out=p)
        yield Tile(b, h, queries, keys, log_p, p, spare)


def _fill(forward: Forward, b: Tensor, h: Tensor, queries: slice, keys: slice, out: Tensor) -> None:
    """s_ij - L_i, keys shared within their group."""
    call = forward.call
    q, k = call.query[b, h, queries], call.key[b, h // call.group, keys]
    torch.bmm(q * call.scale, k.mT, out=out)
    if call.softcap is not None:
        out.div_(call.softcap).tanh_().mul_(call.softcap)
    out.sub_(forward.lse[b, h, queries, None])


@torch.no_grad()
def answer_streamed(questions: Mapping[str, Statistic], forward: Forward) -> dict[str, Tensor]:
    """Answers to questions that are sums over tiles, all in one pass; without gradients."""
    totals = {name: total_of(question, forward) for name, question in questions.items()}
    for tile in tiles(forward) if totals else ():
        for total in totals.values():
            total.add(tile)
    return {name: total.answer() for name, total in totals.items()}


class Total:
    """A per-row statistic while its tiles are added up: [batch head query]."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.sum = torch.zeros_like(forward.lse)

    def add(self, tile: Tile) -> None:
        """Add a tile's part of each row."""
        self.sum[tile.prompt, tile.head, tile.queries] += self.part(tile)

    def part(self, tile: Tile) -> Float[Tensor, "pair query"]:
        """A tile's part of each row."""
        raise NotImplementedError

    def answer(self) -> Tensor:
        """The sum, NaN at padding."""
        return self.sum.masked_fill(~self.forward.call.mask.real()[:, None], torch.nan)

    def slot(self) -> Float[Tensor, "batch head query"]:
        """log-probability of the sink slot."""
        assert self.forward.call.sinks is not None
        return self.forward.call.sinks[None, :, None] - self.forward.lse


@singledispatch
def total_of(question: Statistic, forward: Forward) -> Total:
    """The running total of a statistic."""
    raise TypeError(f"{type(question).__name__} is no sum over tiles")


class EntropyTotal(Total):
    """-sum_j p_ij log p_ij, and the same of the slot."""

    def part(self, tile: Tile) -> Tensor:
        """-p log p of a tile."""
        return -torch.mul(tile.p, tile.log_p, out=tile.spare).sum(-1)

    def answer(self) -> Tensor:
        """With the slot as one outcome more."""
        if self.forward.call.sinks is not None:
            log_p = self.slot()
            self.sum -= log_p.exp() * log_p
        return super().answer()


class SumSquaresTotal(Total):
    """sum_j p_ij^2."""

    def part(self, tile: Tile) -> Tensor:
        """p^2 of a tile."""
        return torch.mul(tile.p, tile.p, out=tile.spare).sum(-1)


class ReadoutTotal(Total):
    """sum_j p_ij x_j for numbers x [batch key]."""

    def __init__(self, forward: Forward, readout: Bool[Tensor, "batch key"] | Float[Tensor, "batch key"]) -> None:
        super().__init__(forward)
        self.readout = readout.to(forward.lse)

    def part(self, tile: Tile) -> Tensor:
        """A tile's probabilities times the numbers at its keys."""
        return torch.bmm(tile.p, self.readout[tile.prompt, tile.keys, None])[..., 0]


class DistanceTotal(Total):
    """sum_j p_ij (i - j), both counted from the tile's first query, so that rounding grows with the distance alone."""

    def part(self, tile: Tile) -> Tensor:
        """(i - a) sum_j p_ij - sum_j p_ij (j - a) of a tile that begins at query a."""
        first = tile.queries.start + self.forward.call.mask.offset
        i = torch.arange(tile.queries.stop - tile.queries.start, device=tile.p.device)
        j = torch.arange(tile.keys.start - first, tile.keys.stop - first, device=tile.p.device)
        return i * tile.p.sum(-1) - torch.bmm(tile.p, j.to(tile.p).expand(len(tile.p), -1)[..., None])[..., 0]


class ReceivedTotal(Total):
    """sum_i w_i p_ij for each key: [batch head key]."""

    def __init__(self, forward: Forward, weight: Tensor | None) -> None:
        mask, lse = forward.call.mask, forward.lse
        self.forward, self.weight = forward, row_weight(forward, weight)
        self.sum = lse.new_zeros(*lse.shape[:2], mask.n_key)

    def add(self, tile: Tile) -> None:
        """Add what a tile's keys receive."""
        weight = self.weight[tile.prompt, None, tile.queries]
        self.sum[tile.prompt, tile.head, tile.keys] += torch.bmm(weight, tile.p)[:, 0]

    def answer(self) -> Tensor:
        """The sum, NaN at padding keys."""
        return self.sum.masked_fill(~self.forward.call.mask.keys()[:, None], torch.nan)


class ByDistanceTotal(Total):
    """Weighted mean of p_ij over rows i with a key d back, for each distance d: [batch head distance]."""

    def __init__(self, forward: Forward, weight: Tensor | None) -> None:
        mask, lse = forward.call.mask, forward.lse
        self.forward, self.weight = forward, row_weight(forward, weight)
        self.sum = lse.new_zeros(*lse.shape[:2], mask.n_key)
        self.room, self.size = lse.new_zeros(0), (0, 0, 0)

    def add(self, tile: Tile) -> None:
        """Add a tile's diagonals."""
        weight, mask = self.weight[tile.prompt, tile.queries, None], self.forward.call.mask
        ahead = tile.queries.start + mask.offset - tile.keys.start  # distance at the tile's first query and key
        self._diagonals(self.sum, (tile.prompt, tile.head), tile.p, weight, ahead)

    def counts(self) -> Float[Tensor, "batch distance"]:
        """sum of w_i over rows that have a key d back, in the mask as the model has it."""
        mask, total = self.forward.call.mask.plain, self.sum.new_zeros(self.sum.shape[0], self.sum.shape[2])
        for segment in mask.segments:
            if segment.full and segment.causal:
                weight = self.weight[segment.rows, segment.start : segment.stop]
                total[segment.rows, : weight.shape[1]] += weight.flip(1).cumsum(1).flip(1)
                continue
            for a, b, low, high in segment.blocks:
                seen = mask.tile(segment.rows[:1], slice(a, b), slice(low, high))[0].to(total)
                ahead = a + mask.offset - low
                self._diagonals(total, (segment.rows,), seen, self.weight[segment.rows, a:b, None], ahead)
        return total

    def _diagonals(self, total: Tensor, at: tuple[Tensor, ...], p: Tensor, weight: Tensor, ahead: int) -> None:
        """Sums of w_i p_ij along i - j = d: the tile is written into rows one longer than they are read as."""
        pairs, (rows, keys) = len(weight), p.shape[-2:]
        room = self._zeros(pairs, rows, keys)
        torch.mul(p, weight, out=room[:, : rows * (rows + keys)].view(pairs, rows, rows + keys)[..., rows:])
        sums, lowest = room.view(pairs, rows, rows + keys + 1).sum(1).flip(-1), ahead - keys
        first, last = max(0, lowest), min(total.shape[-1], lowest + sums.shape[-1])
        if first < last:
            total[(*at, slice(first, last))] += sums[:, first - lowest : last - lowest]

    def _zeros(self, pairs: int, rows: int, keys: int) -> Tensor:
        """Room that is zero outside the tile; what a tile covers is written anew each time."""
        size = (pairs, rows, keys)
        if self.size != size:
            self.room, self.size = self.sum.new_zeros(pairs, rows * (rows + keys + 1)), size
        return self.room

    def answer(self) -> Tensor:
        """The mean, NaN at distances that no counted row has."""
        count = self.counts()[:, None]
        return self.sum / count.masked_fill(count == 0, torch.nan)


def row_weight(forward: Forward, weight: Tensor | None) -> Float[Tensor, "batch query"]:
    """Weight of each query row: 1 unless given, 0 at padding."""
    real = forward.call.mask.real().to(forward.lse.dtype)
    return real if weight is None else real * weight.to(real)


total_of.register(Entropy)(lambda question, forward: EntropyTotal(forward))
total_of.register(SumSquares)(lambda question, forward: SumSquaresTotal(forward))
total_of.register(KeyMass)(lambda question, forward: ReadoutTotal(forward, question.readout))
total_of.register(Distance)(lambda question, forward: DistanceTotal(forward))
total_of.register(Received)(lambda question, forward: ReceivedTotal(forward, question.weight))
total_of.register(ByDistance)(lambda question, forward: ByDistanceTotal(forward, question.weight))
