"""Edits and captures inside attention: q, k and v changed, patterns captured or edited, z made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.attention import Call, Recorder
from interp.attention.dense import pair_scores, pair_values, query_spans
from interp.attention.masks import ApartMask
from interp.backends.hf.anatomy import Anatomy
from interp.backends.plan.capture import Pass
from interp.backends.plan.places import SiteCapture, narrow
from interp.edits import Apply, Edit, Tile, edit_activation_scores, edit_pattern, edit_scores, softmax
from interp.edits import whole as needs_whole
from interp.edits.where import row_index, site_heads
from interp.sites import SQUARE, Site

INSIDE = ("q", "k", "v", *SQUARE)  # kinds that exist only inside the attention function


def goes_inside(plan: Pass, gated: frozenset[int]) -> bool:
    """Whether a pass asks for anything inside attention; `gated` are the layers whose z stands only there."""
    return any(kind in INSIDE or (kind == "z" and layer in gated) for kind, layer in (*plan.captures, *plan.edits))


def connect(recorder: Recorder, plan: Pass, anatomy: Anatomy | None = None) -> Recorder:
    """Let a recorder carry out what a pass asks of attention, on all heads where they are spread over processes.

    Where an anatomy is given, z of its gated layers is visited here and not where the output projection takes it, and
    keys and values are as many as in the layer that has most.
    """
    spread = None if anatomy is None else anatomy.shards
    gated: frozenset[int] = frozenset() if anatomy is None else anatomy.gated

    def change(layer: int, call: Call) -> Call:
        if not plan.active or not plan.asks(layer, "q", "k", "v"):
            return call
        call = call if spread is None else spread.whole(call)
        if anatomy is not None and plan.asks(layer, "k", "v"):
            times = anatomy.n_kv_heads // call.key.shape[1]
            k, v = (x if times == 1 else x.repeat_interleave(times, 1) for x in (call.key, call.value))
            call = replace(call, key=k, value=v)
        q = plan.visit("q", layer, call.query.transpose(1, 2)).transpose(1, 2)
        k, v = (plan.visit(n, layer, x.transpose(1, 2), offset=0) for n, x in (("k", call.key), ("v", call.value)))
        call = replace(call, query=q, key=k.transpose(1, 2), value=v.transpose(1, 2))
        return call if spread is None else spread.part(call)

    def mix(layer: int, call: Call, z: Tensor) -> Tensor:
        if not plan.active or not plan.asks(layer, *SQUARE):
            return z
        plan.visited.update((kind, layer) for kind in SQUARE)
        if spread is None:
            return mix_heads(layer, call, z)
        return spread.local(mix_heads(layer, spread.whole(call), spread.gather(z, 2)), 2)

    def mix_heads(layer: int, call: Call, z: Tensor) -> Tensor:
        edits = [edit for kind in SQUARE for edit in plan.at(kind, layer)]
        captures = [w for kind in SQUARE for w in plan.captures.get((kind, layer), ())]
        functions = [e for e in edits if captures and isinstance(e, Apply)]  # these see all of their heads at once
        whole = sorted({h for w in (*captures, *functions) for h in site_heads(w.site, call.query.shape[1])})
        if edits:
            hits = _hits(call, edits)
            hits[:, whole] = False
            z = _edit_pairs(plan, layer, call, z, edits, hits)
        return _capture(plan, layer, call, z, edits, captures, whole) if captures else z

    def edit(layer: int, z: Tensor) -> Tensor:
        if not plan.active or layer not in gated or not plan.asks(layer, "z"):
            return z
        if spread is None:
            return plan.visit("z", layer, z)
        return spread.local(plan.visit("z", layer, spread.gather(z, 2)), 2)

    recorder.change, recorder.mix, recorder.edit = change, mix, edit
    return recorder


def pattern(
    plan: Pass,
    layer: int,
    call: Call,
    pairs: tuple[Tensor, Tensor],
    span: slice,
    edits: Sequence[Edit],
    *,
    keep: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """p_ij of some pairs and query rows, [pair query key], after the edits; `keep` looks at the scores in between."""
    rows, heads = pairs
    scores, visible = pair_scores(call, rows, heads, span)
    keys = call.mask.keys() if isinstance(call.mask, ApartMask) else None  # of a source; a cache has `offset` instead
    offset = plan.offset if keys is not None else call.mask.offset
    tile = Tile(rows, heads, visible, plan.mask, call.query.shape[1], call.mask.n_query, span.start, offset, keys)
    own = [e for e in edits if e.site.kind == "pattern"]
    scores = edit_scores(scores, tile, own)
    scores = edit_activation_scores(scores, tile, [e for e in edits if e.site.kind == "scores"], layer=layer)
    if keep is not None:
        scores = keep(scores)
    p = scores.relu() if call.relu else softmax(scores, None if call.sinks is None else call.sinks[heads])
    return edit_pattern(call.weight(p, ~torch.isneginf(scores)), tile, own, layer=layer)


def _hits(call: Call, edits: Sequence[Edit]) -> Bool[Tensor, "batch head"]:
    """Heads of batch rows whose pattern some edit means."""
    n_heads = call.query.shape[1]
    hits = torch.zeros(call.query.shape[:2], dtype=torch.bool, device=call.query.device)
    for edit in edits:
        rows = row_index(edit.rows, len(hits), edit.site, hits.device)
        hits[rows[:, None], torch.tensor(site_heads(edit.site, n_heads), device=hits.device)] = True
    return hits


def _edit_pairs(
    plan: Pass, layer: int, call: Call, z: Tensor, edits: Sequence[Edit], hits: Bool[Tensor, "batch head"]
) -> Tensor:
    """z with the touched heads computed anew, a tile of query rows at a time."""
    rows, heads = hits.nonzero(as_tuple=True)
    if not len(rows):
        return z
    values = pair_values(call, rows, heads)
    parts = [
        (pattern(plan, layer, call, (rows, heads), span, edits).to(values.dtype) @ values)
        for span in _spans(call, len(rows), edits)
    ]
    z = z.clone()
    z[rows, :, heads] = torch.cat(parts, dim=1)
    return z


def _capture(
    plan: Pass,
    layer: int,
    call: Call,
    z: Tensor,
    edits: Sequence[Edit],
    captures: Sequence[SiteCapture],
    heads: list[int],
) -> Tensor:
    """Patterns of the heads asked for, kept; z of these heads is made of them where that can make a difference."""
    batch = call.query.shape[0]
    head = torch.tensor(heads, device=z.device)
    pairs = torch.arange(batch, device=z.device).repeat_interleave(len(heads)), head.repeat(batch)
    by_kind = {kind: [w for w in captures if w.site.kind == kind] for kind in SQUARE}

    def keep(kind: str, x: Tensor) -> Tensor:
        for w in by_kind[kind]:
            local = Site(kind, layer, head=_place(w.site, heads), position=w.site.position)
            part = w.take(x, plan.mask, at=local)
            plan.store(w, part)
            if plan.gradients and w.reducer is None and part is not x:
                x = _rebuild(x, part, local, plan)
        return x

    def scores(x: Tensor) -> Tensor:
        kept = keep("scores", x.unflatten(0, (batch, len(heads))).to(call.query.dtype))
        return kept.flatten(0, 1).to(x.dtype)

    options = {"keep": scores} if by_kind["scores"] else {}
    spans = _spans(call, len(pairs[0]), edits, whole=bool(options))
    parts = [pattern(plan, layer, call, pairs, span, edits, **options) for span in spans]
    p = torch.cat(parts, dim=1).unflatten(0, (batch, len(heads))).to(call.query.dtype)
    p = keep("pattern", p)
    if not (edits or plan.gradients):
        return z
    values = pair_values(call, *pairs)
    z = z.clone()
    z[:, :, head] = (p.flatten(0, 1) @ values).unflatten(0, (batch, len(heads))).transpose(1, 2)
    return z


def _spans(call: Call, pairs: int, edits: Sequence[Edit], *, whole: bool = False) -> Iterable[slice]:
    """Query rows in pieces; all at once where an edit or a capture has to see them together."""
    return [slice(0, call.mask.n_query)] if whole or needs_whole(edits) else query_spans(call, pairs)


def _place(site: Site, heads: Sequence[int]) -> int | None:
    return None if site.head is None else list(heads).index(site.head)


def _rebuild(p: Tensor, part: Tensor, site: Site, plan: Pass) -> Tensor:
    """A pattern made of the part that was kept, so that gradients reach it."""
    index = torch.arange(p.numel(), device=p.device).view(p.shape)
    where = narrow(index, site, plan.mask)
    return p.flatten().index_copy(0, where.flatten(), part.flatten()).view(p.shape)
