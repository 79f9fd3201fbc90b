"""Attention edits applied to scores and probabilities: pure, on any set of (batch row, head) pairs and query rows.

The layout is [pair query key], a pair being one head of one batch row, so that only the heads edited are ever looked
at; a backend that has the whole [batch head query key] flattens it (`Tile.dense`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from interp.edits.apply import apply_function, broadcast, change
from interp.edits.columns import calibrated, received, scale_columns, windowed
from interp.edits.reshape import CalibrateSpans, RotaryEdit, ScaleColumns, SinkWindow
from interp.edits.values import Apply, AttentionBias, AttentionEdit, Edit, ForcePattern, KnockOut, Uniform
from interp.edits.where import column_mask, pair_mask, row_index, single
from interp.errors import SiteError


@dataclass(frozen=True, eq=False)
class Tile:
    """Some query rows of some heads of some batch rows.

    Attributes:
        rows, heads: batch row and query head of each pair.
        visible: which keys each query may see (padding and causality).
        mask: real tokens of the prompts.
        n_heads: query heads of the layer.
        n_query: query rows of the whole call, of which this tile starts at `first`.
        offset: column of the call's first query; not 0 when decoding with a cache.
        keys: real tokens among the keys, where they are those of another text; None where they are the prompts' own.
    """

    rows: Int[Tensor, " pair"]
    heads: Int[Tensor, " pair"]
    visible: Bool[Tensor, "pair query key"]
    mask: Bool[Tensor, "batch prompt"]
    n_heads: int
    n_query: int
    first: int = 0
    offset: int = 0
    keys: Bool[Tensor, "batch key"] | None = None

    @classmethod
    def dense(
        cls, visible: Bool[Tensor, "batch query key"], n_heads: int, *, mask: Bool[Tensor, "batch prompt"]
    ) -> Tile:
        """All heads of all rows, in the order in which [batch head query key] flattens."""
        batch, n_query, n_key = visible.shape
        rows = torch.arange(batch, device=visible.device).repeat_interleave(n_heads)
        heads = torch.arange(n_heads, device=visible.device).repeat(batch)
        return cls(rows, heads, visible[rows], mask, n_heads, n_query, 0, n_key - n_query)

    @property
    def columns(self) -> slice:
        """Columns of the prompt at which the tile's queries stand."""
        start = self.offset + self.first
        return slice(start, start + self.visible.shape[1])


def edits_scores(edit: Edit) -> bool:
    """Whether an edit acts before the softmax (the others act on probabilities, or on queries and keys)."""
    return isinstance(edit, AttentionBias | SinkWindow) or (isinstance(edit, KnockOut) and edit.renormalise)


def edit_scores(
    scores: Float[Tensor, "pair query key"], tile: Tile, edits: Sequence[Edit]
) -> Float[Tensor, "pair query key"]:
    """Scores (-inf where not visible) after the edits that act before the softmax."""
    for edit in filter(edits_scores, edits):
        hits, local = _hits(edit, tile)
        if not len(hits):
            continue
        if isinstance(edit, KnockOut):
            result = scores[hits].masked_fill(_knock_out_mask(edit, tile, hits, local), -torch.inf)
        elif isinstance(edit, SinkWindow):
            kept = _window(edit, tile, hits) | ~_queries(edit, tile, hits)[..., None]
            result = windowed(scores[hits], kept, compensate=edit.compensate)
        else:
            bias = _value(edit.bias, edit, tile, hits, local) if isinstance(edit, AttentionBias) else 0.0
            result = torch.where(_queries(edit, tile, hits)[..., None], scores[hits] + bias, scores[hits])
        scores = scores.index_copy(0, hits, result.to(scores.dtype))
    return scores


def edit_activation_scores(
    scores: Float[Tensor, "pair query key"], tile: Tile, edits: Sequence[Edit], *, layer: int | None = None
) -> Float[Tensor, "pair query key"]:
    """Scores after activation edits of the site `scores`; -inf stays where a key is not visible."""
    if not edits:
        return scores
    return edit_pattern(scores, tile, edits, layer=layer).masked_fill(~tile.visible, -torch.inf)


def whole(edits: Sequence[Edit]) -> bool:
    """Whether some edit has to see all queries of its heads at once: a function, or a threshold of what is received."""
    return any(isinstance(e, Apply) or (isinstance(e, ScaleColumns) and e.threshold is not None) for e in edits)


def edit_pattern(
    pattern: Float[Tensor, "pair query key"], tile: Tile, edits: Sequence[Edit], *, layer: int | None = None
) -> Float[Tensor, "pair query key"]:
    """Probabilities after the edits that act behind the softmax, activation edits of the pattern included."""
    for edit in edits:
        if edits_scores(edit) or isinstance(edit, RotaryEdit):
            continue
        hits, local = _hits(edit, tile)
        if not len(hits):
            continue
        old = pattern[hits]
        if isinstance(edit, Apply):
            pattern = pattern.index_copy(0, hits, _function(old, edit, tile, hits).to(pattern.dtype))
            continue
        result = _probabilities(old, edit, tile, hits, local, layer)
        if result is not old:
            result = torch.where(_queries(edit, tile, hits)[..., None], result, old).to(pattern.dtype)
            pattern = pattern.index_copy(0, hits, result)
    return pattern


def softmax(
    scores: Float[Tensor, "pair query key"], sinks: Float[Tensor, " pair"] | None = None
) -> Float[Tensor, "pair query key"]:
    """exp(s_ij) / (sum_j exp s_ij + exp sink); a row with no key left is zeros."""
    empty = torch.isneginf(scores).all(-1, keepdim=True)
    scores = scores.masked_fill(empty, 0.0)
    if sinks is None:
        return scores.softmax(-1).masked_fill(empty, 0.0)
    slot = sinks.to(scores)[:, None, None].expand(*scores.shape[:2], 1)
    return torch.cat([scores, slot], -1).softmax(-1)[..., :-1].masked_fill(empty, 0.0)


def _probabilities(old: Tensor, edit: Edit, tile: Tile, hits: Tensor, local: Tensor, layer: int | None) -> Tensor:
    if isinstance(edit, ScaleColumns):
        return scale_columns(old, _columns(old, edit, tile, hits, layer), float(edit.factor))
    if isinstance(edit, CalibrateSpans):
        return _calibrated(old, edit, tile, hits, local)
    return _set_probabilities(old, edit, tile, hits, local, layer)


def _set_probabilities(old: Tensor, edit: Edit, tile: Tile, hits: Tensor, local: Tensor, layer: int | None) -> Tensor:
    if isinstance(edit, KnockOut):
        return old.masked_fill(_knock_out_mask(edit, tile, hits, local), 0.0)
    if isinstance(edit, Uniform):
        visible = tile.visible[hits].to(old.dtype)
        return visible / visible.sum(-1, keepdim=True).clamp(min=1.0)
    if isinstance(edit, ForcePattern):
        return _value(edit.pattern, edit, tile, hits, local)
    if isinstance(edit, AttentionEdit):
        raise SiteError(f"{edit.site}: no rule for {type(edit).__name__}")
    verb, value = change(edit, _shape(edit, tile, narrow=single(edit.positions, edit.site)), layer, tile.offset)
    value = _value(value, edit, tile, hits, local)
    if verb == "set":
        return value.expand_as(old)
    return old * value if verb == "scale" else old + value


def _function(old: Tensor, edit: Apply, tile: Tile, hits: Tensor) -> Tensor:
    """The chosen pairs after a function of [batch head query key], or of the part of it that the edit means."""
    rows, heads = tile.rows[hits], tile.heads[hits]
    full = old.new_zeros(len(tile.mask), old.shape[1], tile.n_heads, old.shape[2])
    full[rows, :, heads] = old

    def function(x: Tensor) -> Tensor:  # queries stand in front of heads here
        return edit.function(x.transpose(1, 2)).transpose(1, 2) if x.ndim == full.ndim else edit.function(x)

    return apply_function(full, replace(edit, function=function), tile.mask, tile.offset)[rows, :, heads]


def _hits(edit: Edit, tile: Tile) -> tuple[Tensor, Tensor]:
    """The pairs an edit means, and the place of each pair's batch row among the edit's rows."""
    rows = row_index(edit.rows, len(tile.mask), edit.site, tile.rows.device)
    place = torch.full((len(tile.mask),), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    is_hit = place[tile.rows] >= 0
    if edit.site.head is not None:
        is_hit = is_hit & (tile.heads == edit.site.head)
    hits = is_hit.nonzero()[:, 0]
    return hits, place[tile.rows[hits]]


def _queries(edit: Edit, tile: Tile, hits: Tensor) -> Bool[Tensor, "chosen query"]:
    """True at the query rows an edit means."""
    rows = tile.rows[hits]
    mask = torch.ones(len(rows), tile.visible.shape[1], dtype=torch.bool, device=rows.device)
    limits = [(edit.positions, edit.positions is not None or edit.site.position is not None)]
    if isinstance(edit, KnockOut | Uniform):
        limits.append((edit.queries, edit.queries is not None))
    for positions, applies in limits:
        if applies:
            columns = column_mask(positions, edit.site, tile.mask, rows)
            mask = mask & _fit(columns, tile.columns.stop)[:, tile.columns]
    return mask


def _knock_out_mask(edit: KnockOut, tile: Tile, hits: Tensor, local: Tensor) -> Bool[Tensor, "chosen query key"]:
    rows, n_key = tile.rows[hits], tile.visible.shape[-1]
    queries = _queries(edit, tile, hits)
    if edit.pairs is not None:
        pairs = pair_mask(edit.pairs, edit.site, tile.mask, rows)
        width = max(n_key, tile.columns.stop)
        pairs = pad(pairs, (0, width - pairs.shape[2], 0, width - pairs.shape[1]))
        return pairs[:, tile.columns, :n_key] & queries[..., None]
    if edit.keys is None:
        return queries[..., None].expand(-1, -1, n_key)
    keys = column_mask(edit.keys, edit.site, tile.mask if tile.keys is None else tile.keys, rows)
    return queries[..., None] & _fit(keys, n_key)[:, None, :n_key]


def _window(edit: SinkWindow, tile: Tile, hits: Tensor) -> Bool[Tensor, "chosen query key"]:
    """True at the keys that a window leaves."""
    if tile.keys is not None:
        raise SiteError(f"{edit.site}: a window counts back from the query; attention to a source has no such order")
    column = torch.arange(tile.columns.start, tile.columns.stop, device=hits.device)
    key = torch.arange(tile.visible.shape[-1], device=hits.device)
    if bool((tile.visible[hits] & (key > column[:, None])).any()):
        raise SiteError(f"{edit.site}: a window of the last tokens needs attention that sees no later ones")
    first = tile.mask.long().argmax(1)[tile.rows[hits]]
    near = column[:, None] - key < edit.window
    return near | (key < first[:, None, None] + edit.sinks)


def _columns(old: Tensor, edit: ScaleColumns, tile: Tile, hits: Tensor, layer: int | None) -> Tensor:
    """True at the keys whose columns are scaled, [chosen 1 key]."""
    rows, n_key = tile.rows[hits], tile.visible.shape[-1]
    prompt = tile.mask if tile.keys is None else tile.keys
    if edit.threshold is None:
        return _fit(column_mask(edit.keys, edit.site, prompt, rows), n_key)[:, None, :n_key]
    if tile.offset == 0 or tile.keys is not None:
        real = _fit(tile.mask[rows], tile.columns.stop)[:, tile.columns]
        above = received(old, tile.visible[hits], real, least=edit.least) > edit.threshold
        above[torch.arange(len(rows), device=rows.device), prompt.long().argmax(1)[rows]] = False
        full = edit._found.setdefault(layer, above.new_zeros(len(tile.mask), tile.n_heads, n_key))
        full[rows, tile.heads[hits]] = above
    found = edit._found[layer][rows, tile.heads[hits]]
    return _fit(found, n_key)[:, None, :n_key]


def _calibrated(old: Tensor, edit: CalibrateSpans, tile: Tile, hits: Tensor, local: Tensor) -> Tensor:
    rows, n_key = tile.rows[hits], tile.visible.shape[-1]
    spans = torch.stack([_fit(column_mask(s, edit.site, tile.mask, rows), n_key)[:, :n_key] for s in edit.spans], 1)
    baseline = edit.baseline if isinstance(edit.baseline, Tensor) else torch.tensor(float(edit.baseline))
    heads = () if edit.site.head is not None else (tile.n_heads,)
    n_rows = len(row_index(edit.rows, len(tile.mask), edit.site, "cpu"))
    wide = broadcast(baseline.to(old), (n_rows, *heads, len(edit.spans)), edit)
    wide = wide[local] if edit.site.head is not None else wide[local, tile.heads[hits]]
    last = (spans.any(1) * torch.arange(1, n_key + 1, device=rows.device)).amax(1)  # one behind the last span's end
    start = max(0, int(last.min()) - tile.columns.start)  # rows before it are all among the spans
    if start >= old.shape[1]:
        return old
    column = torch.arange(tile.columns.start + start, tile.columns.stop, device=rows.device)
    behind, part = (column >= last[:, None])[..., None], old[:, start:]
    new = torch.where(behind, calibrated(part, spans, wide, float(edit.temperature)), part)
    return torch.cat([old[:, :start], new], dim=1)


def _fit(columns: Tensor, width: int) -> Tensor:
    """A mask of prompt columns, False at those generated since."""
    return pad(columns, (0, max(0, width - columns.shape[1])))


def _shape(edit: Edit, tile: Tile, *, narrow: bool) -> tuple[int, ...]:
    rows = len(row_index(edit.rows, len(tile.mask), edit.site, "cpu"))
    heads = () if edit.site.head is not None else (tile.n_heads,)
    queries = () if narrow else (tile.n_query,)
    return (rows, *heads, *queries, tile.visible.shape[-1])


def _value(value: float | Tensor, edit: Edit, tile: Tile, hits: Tensor, local: Tensor) -> Tensor:
    """The value at the chosen pairs and the tile's queries, [chosen query key]."""
    if not isinstance(value, Tensor):
        return torch.tensor(value, device=tile.rows.device)
    full = _shape(edit, tile, narrow=False)
    narrow = single(edit.positions, edit.site) and value.ndim < len(full)
    value = value.to(tile.rows.device)
    wide = broadcast(value, _shape(edit, tile, narrow=narrow), edit)
    wide = wide[local] if edit.site.head is not None else wide[local, tile.heads[hits]]
    return wide[:, None] if narrow else wide[:, tile.first : tile.first + tile.visible.shape[1]]
