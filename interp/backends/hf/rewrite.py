"""Edits and captures inside attention: q, k and v changed, patterns captured or edited, z made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.attention import Call, Recorder, Statistic, Window
from interp.attention.dense import pair_scores, pair_values, query_spans
from interp.attention.masks import ApartMask
from interp.attention.naive import answer
from interp.attention.windowed import of_heads
from interp.backends.hf.anatomy import Anatomy
from interp.backends.plan.capture import Pass
from interp.backends.plan.places import SiteCapture, narrow
from interp.edits import (
    Apply,
    Edit,
    RotaryBase,
    RotaryEdit,
    SinkWindow,
    Tile,
    edit_activation_scores,
    edit_pattern,
    edit_scores,
    softmax,
    turn_keys,
    turn_queries,
)
from interp.edits import whole as needs_whole
from interp.edits.where import row_index, site_heads
from interp.errors import SiteError
from interp.sites import SQUARE, Site

INSIDE = ("q", "k", "v", *SQUARE)  # kinds that exist only inside the attention function


def goes_inside(plan: Pass, gated: frozenset[int]) -> bool:
    """Whether a pass asks for anything inside attention; `gated` are the layers whose z stands only there."""
    return any(kind in INSIDE or (kind == "z" and layer in gated) for kind, layer in (*plan.captures, *plan.edits))


def connect(
    recorder: Recorder, plan: Pass, anatomy: Anatomy | None = None, *, asked: Recorder | None = None
) -> Recorder:
    """Let a recorder carry out what a pass asks of attention, on all heads where they are spread over processes.

    Where an anatomy is given, z of its gated layers is visited here and not where the output projection takes it, and
    keys and values are as many as in the layer that has most. `asked` is the recorder that has the questions, where
    that is another.
    """
    asked = recorder if asked is None else asked
    spread = None if anatomy is None else anatomy.shards
    gated: frozenset[int] = frozenset() if anatomy is None else anatomy.gated

    def change(layer: int, call: Call) -> Call:
        if not plan.active:
            return call
        if plan.asks(layer, "q", "k", "v"):
            call = visit_inputs(layer, call)
        if not plan.asks(layer, *SQUARE):
            return call
        rotary = plan.rotary(layer)
        if rotary and spread is None:
            call = turned(call, plan, layer, rotary)
        elif rotary and spread is not None:
            call = spread.part(turned(spread.whole(call), plan, layer, rotary))
        if spread is not None or plan.captures.get(("scores", layer)):
            return call
        return limited(call, plan.at("pattern", layer), questions=asked.asks(layer))

    def visit_inputs(layer: int, call: Call) -> Call:
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
        edits = [e for kind in SQUARE for e in plan.at(kind, layer) if not isinstance(e, RotaryEdit)]
        captures = [w for kind in SQUARE for w in plan.captures.get((kind, layer), ())]
        functions = [e for e in edits if captures and isinstance(e, Apply)]  # these see all of their heads at once
        whole = sorted({h for w in (*captures, *functions) for h in site_heads(w.site, call.query.shape[1])})
        if edits:
            hits = outside(call, edits)
            hits[:, whole] = False
            z = _edit_pairs(plan, layer, call, z, edits, hits)
        return _capture(plan, layer, call, z, edits, captures, whole) if captures else z

    def edit(layer: int, z: Tensor) -> Tensor:
        if not plan.active or layer not in gated or not plan.asks(layer, "z"):
            return z
        if spread is None:
            return plan.visit("z", layer, z)
        return spread.local(plan.visit("z", layer, spread.gather(z, 2)), 2)

    def revise(
        layer: int, call: Call, questions: Mapping[str, Statistic], answers: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        edits = [e for kind in SQUARE for e in plan.at(kind, layer) if not isinstance(e, RotaryEdit)]
        if not plan.active or not edits:
            return answers
        return answers_of_edited(plan, layer, call, edits, questions, answers)

    recorder.change, recorder.mix, recorder.edit, recorder.revise = change, mix, edit, revise
    return recorder


def turned(call: Call, plan: Pass, layer: int, edits: Sequence[RotaryEdit]) -> Call:
    """A call with its queries and keys behind rotary edits.

    Raises:
        SiteError: queries and keys are of two texts.
    """
    if isinstance(call.mask, ApartMask):
        raise SiteError(f"{edits[0].site}: queries and keys of two texts have no distance to turn by")
    planes = plan.planes[layer]
    query = turn_queries(call.query, planes, edits, plan.mask, call.mask.offset)
    bases = [e for e in edits if isinstance(e, RotaryBase)]
    if not bases:
        return replace(call, query=query)
    alike = call.group == 1 or all(e.site.head is None for e in bases)
    key, value = (call.key, call.value) if alike else (call.shared(call.key), call.shared(call.value))
    return replace(call, query=query, key=turn_keys(key, planes, bases), value=value)


def limited(call: Call, edits: Sequence[Edit], *, questions: bool) -> Call:
    """A call with the windows of its heads, where fused attention can do it and nothing else is asked of them."""
    windows = [e for e in edits if isinstance(e, SinkWindow)]
    plain = call.bias is None and call.softmax_share == 1.0 and call.mask.offset == 0
    if not windows or not plain or isinstance(call.mask, ApartMask) or not call.mask.is_causal:
        return call
    whole = call.softcap is None and all(segment.full for segment in call.mask.segments)
    others = _hits(call, [e for e in edits if not isinstance(e, SinkWindow | RotaryEdit)])
    taken = torch.stack([_hits(call, [e]) for e in windows])
    several, result = taken.sum(0) > 1, []
    for edit, hits in zip(windows, taken, strict=True):
        every = edit.positions is None and edit.site.position is None
        if every and not (edit.compensate and (questions or not whole)):
            own = hits & ~several & ~others
            result += [(Window(edit.sinks, edit.window, edit.compensate), own)] if bool(own.any()) else []
    return replace(call, windows=tuple(result))


def outside(call: Call, edits: Sequence[Edit]) -> Bool[Tensor, "batch head"]:
    """Heads whose pattern some edit means that the call itself does not carry out."""
    hits = _hits(call, edits)
    for _, done in call.windows:
        hits = hits & ~done
    return hits


def answers_of_edited(
    plan: Pass,
    layer: int,
    call: Call,
    edits: Sequence[Edit],
    questions: Mapping[str, Statistic],
    answers: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Answers of one layer, those of heads whose pattern is edited taken from it; whole patterns are held."""
    hits = outside(call, edits)
    heads = hits.any(0).nonzero()[:, 0]
    if not len(heads):
        return answers
    batch, rows = len(hits), torch.arange(len(hits), device=hits.device).repeat_interleave(len(heads))
    whole = slice(0, call.mask.n_query)
    p = pattern(plan, layer, call, (rows, heads.repeat(batch)), whole, edits).unflatten(0, (batch, len(heads)))
    part = replace(of_heads(call, heads), bias=None)
    part = part.float()
    lse = p.new_zeros(p.shape[:-1])
    if part.sinks is not None:  # the slot's share is what a row leaves
        lse = part.sinks[None, :, None] - (1 - p.sum(-1)).clamp(min=torch.finfo(p.dtype).tiny).log()
    result = {}
    for name, question in questions.items():
        x, old = answer(question, p, part, lse), answers[name]
        chosen = hits[:, heads].view(batch, -1, *(1,) * (x.ndim - 2))
        result[name] = old.index_copy(1, heads, torch.where(chosen, x.to(old), old[:, heads]))
    return result


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
