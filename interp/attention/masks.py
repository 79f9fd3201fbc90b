"""`CausalMask`: keys that a query may see: causal, windowed, chunked or all, padded on either side, never n x n.

transformers builds masks by calling the mask function registered under the attention implementation's name.
Ours returns a `CausalMask`, which keeps transformers' own index predicate and evaluates it in tiles on demand.
Without a mask function of the same name the padding mask would be dropped without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from interp.errors import BackendError
from interp.shapes import Bool, Int

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
BLOCK = 256  # query rows per tile where scores must be looked at; 256 measured faster than 128 on CPU


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Every key up to and including the query."""
    return key <= query


def everything(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Every key, later ones too: attention without a mask, as in encoders."""
    return (key >= 0) & (query >= 0)


@dataclass(frozen=True)
class Segment:
    """Batch rows whose real tokens occupy the same positions `start..stop-1`, and how far back (and ahead) they see.

    `blocks` holds `(first query, end of queries, first key, end of keys)` per tile; `causal` says that no query sees a
    later key; `full` that every query sees every real key (every earlier one where causal), so that one fused call does
    for the whole segment. `extra` counts first keys of the segment that every tile reaches besides.
    """

    rows: Int[Tensor, " rows"]
    start: int
    stop: int
    blocks: tuple[tuple[int, int, int, int], ...]
    full: bool
    causal: bool
    extra: int = 0

    def keys(self, low: int, high: int) -> slice | Int[Tensor, " key"]:
        """Keys that a tile reaches: from `low` to `high`, and the segment's first ones before them."""
        if self.extra == 0:
            return slice(low, high)
        if low <= self.start + self.extra:
            return slice(self.start, high)
        first, near = ((self.start, self.start + self.extra), (low, high))
        return torch.cat([torch.arange(*span, device=self.rows.device) for span in (first, near)])


class CausalMask:
    """Visible(batch, query, key) as a predicate on indices, with the padding kept beside it.

    Causal unless the predicate says otherwise. Whether queries see later keys is asked of one in `BLOCK`.

    Args:
        batch, n_query, n_key: sizes. Query i stands at position `i + offset` among the keys.
        predicate: broadcasting index predicate `(batch, head, query, key) -> bool`; transformers' convention.
        padding: True where a key is a real token; None when all are.
        offset: position of the first query, 0 unless keys come from a cache.
        device: where tiles are built.
    """

    def __init__(
        self,
        batch: int,
        n_query: int,
        n_key: int,
        *,
        predicate: Predicate = causal,
        padding: Bool[Tensor, "batch key"] | None = None,
        offset: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.batch, self.n_query, self.n_key, self.offset = batch, n_query, n_key, offset
        self.predicate = predicate
        self.device = torch.device(device)
        all_real = padding is None or bool(padding.all())
        self.padding = None if all_real or padding is None else padding.to(self.device, torch.bool)

    def visible(self, rows: Tensor, query: Tensor, key: Tensor) -> Bool[Tensor, "..."]:
        """The predicate at integer index tensors that broadcast together, padding included."""
        head = torch.zeros((), dtype=torch.long, device=self.device)
        result = self.predicate(rows, head, query + self.offset, key)
        return result if self.padding is None else result & self.padding[rows, key]

    def tile(
        self, rows: Int[Tensor, " rows"], query: slice, key: slice | Int[Tensor, " key"]
    ) -> Bool[Tensor, "rows query key"]:
        """Visibility of a rectangle of queries and keys for some batch rows."""
        i = torch.arange(query.start, query.stop, device=self.device)[None, :, None]
        j = torch.arange(key.start, key.stop, device=self.device) if isinstance(key, slice) else key
        visible = self.visible(rows[:, None, None], i, j[None, None, :])
        return visible.expand(len(rows), query.stop - query.start, len(j))

    def real(self) -> Bool[Tensor, "batch query"]:
        """True where a query is a real token (padding rows attend to nothing that means anything)."""
        if self.padding is None:
            return torch.ones(self.batch, self.n_query, dtype=torch.bool, device=self.device)
        return self.padding[:, self.offset : self.offset + self.n_query]

    def keys(self) -> Bool[Tensor, "batch key"]:
        """True where a key is a real token."""
        if self.padding is None:
            return torch.ones(self.batch, self.n_key, dtype=torch.bool, device=self.device)
        return self.padding

    @property
    def plain(self) -> CausalMask:
        """The mask as the model has it: what a window leaves out of it gets 0, which is an answer."""
        return self

    def check(self) -> None:
        """Raise what `segments` raises, for code that does not use them."""
        _ = self.segments

    @property
    def is_causal(self) -> bool:
        """Whether no query sees a later key (one token alone cannot tell, and counts as causal)."""
        return all(segment.causal for segment in self.segments)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Batch rows grouped by the span of their real tokens, each span cut into tiles.

        Raises:
            BackendError: padding with holes, or causal attention whose queries see keys that are not one run ending at
                themselves.
        """
        if self.padding is None:
            return (self._segment(torch.arange(self.batch, device=self.device), 0, self.n_key),)
        spans: dict[tuple[int, int], list[int]] = {}
        for row, real in enumerate(self.padding):
            where = real.nonzero()[:, 0]
            if len(where) == 0:
                continue
            start, stop = int(where[0]), int(where[-1]) + 1
            if stop - start != len(where):
                raise BackendError(f"batch row {row}: padding inside the prompt; pad on the left or the right only")
            spans.setdefault((start, stop), []).append(row)
        return tuple(
            self._segment(torch.tensor(rows, device=self.device), start, stop) for (start, stop), rows in spans.items()
        )

    def _segment(self, rows: Tensor, start: int, stop: int) -> Segment:
        # queries live at key positions offset..offset+n_query-1
        first, last = max(start, self.offset) - self.offset, stop - self.offset
        if last <= first:  # every token of these prompts stands before the queries
            return Segment(rows, start, stop, (), False, True)
        starts = list(range(first, last, BLOCK))
        ends = [min(a + BLOCK, last) for a in starts]
        square = self.offset == 0 and self.n_query == self.n_key
        lows = self._lowest_keys(rows[:1], [*starts, last - 1], start)
        if lows is None:
            spans, whole = self._spans(rows[:1], list(zip(starts, ends, strict=True)), start, stop)
        else:
            spans = [(low, b + self.offset) for low, b in zip(lows, ends, strict=False)]
            whole = all(low == start for low in lows)
        blocks = tuple((a, b, *span) for a, b, span in zip(starts, ends, spans, strict=True))
        return Segment(rows, start, stop, blocks, square and whole, lows is not None)

    def _lowest_keys(self, row: Tensor, queries: list[int], start: int) -> list[int] | None:
        """First visible key of chosen queries, each of which must see one unbroken run that ends at itself.

        None where one of them sees a later key.
        """
        j = torch.arange(self.n_key, device=self.device)[None, None, :]
        lows = []
        for i in queries:
            visible = self.visible(row[:, None, None], torch.tensor([[[i]]], device=self.device), j)
            where = visible.expand(1, 1, self.n_key)[0, 0].nonzero()[:, 0]
            position = i + self.offset
            if len(where) and int(where[-1]) > position:
                return None
            low = int(where[0]) if len(where) else position
            if len(where) and (position - low + 1 != len(where)):
                raise BackendError(f"query {position} sees {len(where)} keys that are not one run ending at itself")
            lows.append(max(low, start))
        return lows

    def _spans(
        self, row: Tensor, tiles: list[tuple[int, int]], start: int, stop: int
    ) -> tuple[list[tuple[int, int]], bool]:
        """First key and end of keys that any query of a tile sees, every query looked at; and whether all see all."""
        spans, whole = [], True
        for a, b in tiles:
            visible = self.tile(row, slice(a, b), slice(0, self.n_key))[0]
            where = visible.any(0).nonzero()[:, 0]
            spans.append((int(where[0]), int(where[-1]) + 1) if len(where) else (start, start + 1))
            whole = whole and bool(visible[:, start:stop].all())
        return spans, whole


class ApartMask(CausalMask):
    """Visible(batch, query, key) where keys are of other tokens than queries: cross-attention to a source.

    `queries` are the real ones among the queries, [batch query]; all are where it is None. The order of keys says
    nothing about queries, so nothing here is causal.
    """

    def __init__(self, mask: CausalMask, queries: Bool[Tensor, "batch query"] | None = None) -> None:
        sizes = (mask.batch, mask.n_query, mask.n_key)
        super().__init__(*sizes, predicate=mask.predicate, padding=mask.padding, offset=mask.offset, device=mask.device)
        self.queries = None if queries is None else queries.to(self.device)

    def real(self) -> Bool[Tensor, "batch query"]:
        """True where a query is a real token."""
        if self.queries is None:
            return torch.ones(self.batch, self.n_query, dtype=torch.bool, device=self.device)
        return self.queries

    @property
    def is_causal(self) -> bool:
        """False."""
        return False

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """One segment per batch row (one of all where none is padded), every query with every key."""
        rows = torch.arange(self.batch, device=self.device)
        starts = range(0, self.n_query, BLOCK)
        blocks = tuple((a, min(a + BLOCK, self.n_query), 0, self.n_key) for a in starts)
        groups = (rows,) if self.padding is None else rows.split(1)
        return tuple(Segment(group, 0, self.n_key, blocks, False, False) for group in groups)


def lazy_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Predicate = causal,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **_: object,
) -> CausalMask:
    """Mask function for `transformers.AttentionMaskInterface`: keeps the predicate instead of filling a matrix."""
    if int(kv_offset) != 0:
        raise BackendError("a cache that dropped its oldest keys cannot be measured; run with use_cache=False")
    padding = attention_mask
    if padding is not None and padding.shape[-1] < kv_length:
        padding = torch.nn.functional.pad(padding, (0, kv_length - padding.shape[-1]))
    return CausalMask(
        batch_size, q_length, kv_length, predicate=mask_function, padding=padding, offset=int(q_offset), device=device
    )
