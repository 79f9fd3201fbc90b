"""Edits and captures inside attention: q, k and v changed, patterns captured or edited, z made of them."""

from __future__ import annotations

from collections.abc import Sequence
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
from interp.edits import Edit, Tile, edit_pattern, edit_scores, softmax
from interp.edits.where import row_index, site_heads
from interp.sites import Site

INSIDE = ("q", "k", "v", "pattern")  # kinds that exist only inside the attention function


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
        if not plan.active or not plan.asks(layer, "pattern"):
            return z
        plan.visited.add(("pattern", layer))
        if spread is None:
            return mix_heads(layer, call, z)
        return spread.local(mix_heads(layer, spread.whole(call), spread.gather(z, 2)), 2)

    def mix_heads(layer: int, call: Call, z: Tensor) -> Tensor:
        place = ("pattern", layer)
        edits, captures = plan.edits.get(place, ()), plan.captures.get(place, ())
        whole = sorted({h for w in captures for h in site_heads(w.site, call.query.shape[1])})
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
    plan: Pass, layer: int, call: Call, pairs: tuple[Tensor, Tensor], span: slice, edits: Sequence[Edit]
) -> Tensor:
    """p_ij of some pairs and query rows, [pair query key], after the edits."""
    rows, heads = pairs
    scores, visible = pair_scores(call, rows, heads, span)
    keys = call.mask.keys() if isinstance(call.mask, ApartMask) else None  # of a source; a cache has `offset` instead
    offset = plan.offset if keys is not None else call.mask.offset
    sizes = (call.query.shape[1], call.mask.n_query, span.start, offset)
    tile = Tile(rows, heads, visible, plan.mask, *sizes, keys)
    scores = edit_scores(scores, tile, edits)
    p = softmax(scores, None if call.sinks is None else call.sinks[heads])
    return edit_pattern(call.weight(p, ~torch.isneginf(scores)), tile, edits, layer=layer)


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
        for span in query_spans(call, len(rows))
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
    parts = [pattern(plan, layer, call, pairs, span, edits) for span in query_spans(call, len(pairs[0]))]
    p = torch.cat(parts, dim=1).unflatten(0, (batch, len(heads))).to(call.query.dtype)
    for w in captures:
        local = Site("pattern", layer, head=_place(w.site, heads), position=w.site.position)
        part = w.take(p, plan.mask, at=local)
        plan.acts[w.site] = part
        if plan.gradients and w.reducer is None and part is not p:
            p = _rebuild(p, part, local, plan)
    if not (edits or plan.gradients):
        return z
    values = pair_values(call, *pairs)
    z = z.clone()
    z[:, :, head] = (p.flatten(0, 1) @ values).unflatten(0, (batch, len(heads))).transpose(1, 2)
    return z


def _place(site: Site, heads: Sequence[int]) -> int | None:
    return None if site.head is None else list(heads).index(site.head)


def _rebuild(p: Tensor, part: Tensor, site: Site, plan: Pass) -> Tensor:
    """A pattern made of the part that was kept, so that gradients reach it."""
    index = torch.arange(p.numel(), device=p.device).view(p.shape)
    where = narrow(index, site, plan.mask)
    return p.flatten().index_copy(0, where.flatten(), part.flatten()).view(p.shape)
