"""Attention statistics from fused attention and its log-sum-exp. O(n) memory; README.md derives each identity.

The forward pass of the model is computed here once, fused, giving the output z and L_i = log sum_j exp s_ij.
Each question is then answered from q, k and L: p_ij = exp(s_ij - L_i) where few pairs are asked for; one pass over
tiles of scores (`streamed`) for all questions that are sums over every score, on a CPU. On other devices those that can
be are one more fused call each, with other values or with the roles of queries and keys exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor
from torch.nn.functional import pad

from interp.attention.call import Call
from interp.attention.kernels import flash
from interp.attention.masks import Segment
from interp.attention.statistics import (
    ByDistance,
    Distance,
    Entropy,
    KeyMass,
    Mean,
    Offset,
    Pairs,
    Received,
    Rows,
    Statistic,
    SumSquares,
    TopKeys,
)
from interp.attention.streamed import Forward, answer_streamed, row_weight
from interp.attention.windowed import with_dropped
from interp.attention.windows import WindowMask
from interp.shapes import Float

PAIR_CHUNK = 1 << 22  # elements of gathered queries at a time: 16 MiB in float32
TILED = frozenset({"cpu"})
"""Kinds of device on which one pass over tiles of scores costs less than one more fused call."""
NEVER = -1e30  # log of zero weight that survives arithmetic in the kernel; exp gives exactly 0


def answer_all(call: Call, questions: Mapping[str, Statistic]) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output in the call's dtype, and the answer to each question in float32."""
    output, lse = attend(call)
    forward = Forward(call.float(), lse.to(torch.promote_types(lse.dtype, torch.float32)))
    streamed = {name: question for name, question in questions.items() if streams(_asked(question), forward)}
    sums = answer_streamed({name: _asked(question) for name, question in streamed.items()}, forward)
    answers = {name: finish(question, sums[name], forward) for name, question in streamed.items()}
    return output, {n: answers[n] if n in answers else answer(q, forward) for n, q in questions.items()}


def answer_one(question: Statistic, forward: Forward) -> Tensor:
    """The answer to one question, in a pass over tiles of its own where it takes one."""
    asked = _asked(question)
    if not streams(asked, forward):
        return answer(question, forward)
    return finish(question, answer_streamed({"": asked}, forward)[""], forward)


def _asked(question: Statistic) -> Statistic:
    """What a mean is of, any other question itself."""
    return question.of if isinstance(question, Mean) else question


def streams(question: Statistic, forward: Forward) -> bool:
    """Whether a question is answered in the pass over tiles: on `TILED` devices every sum over all scores is.

    Elsewhere those alone that no fused call answers: sums of squares, means by distance, and entropies and mass
    received under a soft-cap or (mass received) within a window.
    """
    call = forward.call
    if isinstance(question, SumSquares | ByDistance):
        return True
    if isinstance(question, KeyMass):
        return forward.lse.device.type in TILED and not _few(question, forward)
    if not isinstance(question, Entropy | Received | Distance):
        return False
    windowed = isinstance(question, Received) and not all(segment.full for segment in call.mask.segments)
    capped = call.softcap is not None and not isinstance(question, Distance)
    return forward.lse.device.type in TILED or windowed or capped


def finish(question: Statistic, total: Tensor, forward: Forward) -> Tensor:
    """What is left to do with a sum over tiles: rows without a key of the set, and means over rows."""
    if isinstance(question, Mean):
        return _mean(question, finish(question.of, total, forward))
    return _of_set(question, total, forward) if isinstance(question, KeyMass) else total


def _mean(question: Mean, value: Tensor) -> Tensor:
    if question.rows is not None:
        value = value.masked_fill(~question.rows.to(value.device)[:, None], torch.nan)
    return value.nanmean(-1)


def attend(
    call: Call, value: Float[Tensor, "batch kv_head key d_value"] | None = None
) -> tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]:
    """sum_j p_ij v_j for the call's values or others, and L_i; padding rows give zeros and -inf."""
    v = call.value if value is None else value
    first = call.mask.segments[0] if len(call.mask.segments) == 1 else None
    if first is not None and first.full and call.mask.padding is None and call.softcap is None:
        output, lse = flash(call.query, call.key, v, scale=call.scale, causal=first.causal)
    else:
        output, lse = _attend_segments(call, v)
    if isinstance(call.mask, WindowMask) and call.mask.window.compensate:
        output, lse = with_dropped(call, v, output, lse)
    return with_slot(call, output, lse)


def with_slot(call: Call, output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of keys alone, with the sink slot of models that have one: L' = logaddexp(L, sink)."""
    if call.sinks is None:
        return output, lse
    if torch.is_grad_enabled() and call.softcap is None and (call.query.requires_grad or call.key.requires_grad):
        lse = _with_gradient(call, lse)
    with_sink = torch.logaddexp(lse, call.sinks[None, :, None].to(lse.dtype))
    return output * (lse - with_sink).exp()[..., None].to(output.dtype), with_sink


def _with_gradient(call: Call, lse: Tensor) -> Tensor:
    """L_i with its gradient, which fused kernels leave out: dL_i = sum_j p_ij ds_ij, one more fused call with V = K."""
    frozen = replace(call, query=call.query.detach(), key=call.key.detach(), sinks=None)
    slope = call.scale * (call.query * attend(frozen, call.key)[0]).sum(-1)
    return lse.detach() + (slope - slope.detach()).to(lse.dtype)


def _attend_segments(call: Call, v: Tensor) -> tuple[Tensor, Tensor]:
    shape, wide = call.query.shape[:3], torch.promote_types(v.dtype, torch.float32)
    output = v.new_zeros(*shape, v.shape[-1])
    lse = torch.full(shape, -torch.inf, device=v.device, dtype=wide)
    for segment in call.mask.segments:
        if segment.full and call.softcap is None:
            span = slice(segment.start, segment.stop)
            q, k, x = (t[segment.rows, :, span] for t in (call.query, call.key, v))
            out, part = flash(q, k, x, scale=call.scale, causal=segment.causal)
            output[segment.rows, :, span] = out
            lse[segment.rows, :, span] = part.to(wide)
        else:
            _attend_tiles(call, v, segment, output, lse)
    return output, lse


def _attend_tiles(call: Call, v: Tensor, segment: Segment, output: Tensor, lse: Tensor) -> None:
    for a, b, low, high in segment.blocks:
        keys = segment.keys(low, high)
        visible = call.mask.tile(segment.rows[:1], slice(a, b), keys)[:, None]
        q, k, x = call.query[segment.rows, :, a:b], _at(call.key, segment, keys), _at(v, segment, keys)
        if call.softcap is None:
            bias = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill(~visible, -torch.inf)
            out, part = flash(q, k, x, scale=call.scale, bias=bias.expand(len(q), -1, -1, -1))
        else:
            score = _scores(call, q, k).masked_fill(~visible, -torch.inf)
            part = score.logsumexp(-1)
            out = _by_group((score - part[..., None]).exp().to(x.dtype), x)
        output[segment.rows, :, a:b] = out
        lse[segment.rows, :, a:b] = part.to(lse.dtype)


def _at(x: Tensor, segment: Segment, keys: slice | Tensor) -> Tensor:
    """A segment's part of [batch head key d] at some keys."""
    return x[:, :, keys][segment.rows]


def _scores(call: Call, q: Tensor, k: Tensor) -> Float[Tensor, "rows head query key"]:
    """Capped scores of a tile in float32 or wider, keys shared within their group without being copied."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return call.cap(call.scale * _by_group(q.to(wide), k.to(wide).mT))


def _by_group(x: Float[Tensor, "rows head query inner"], y: Float[Tensor, "rows kv_head inner outer"]) -> Tensor:
    """x @ y where each y serves a group of consecutive heads of x."""
    rows, head, n, inner = x.shape
    kv = y.shape[1]
    return (x.reshape(rows, kv, (head // kv) * n, inner) @ y).reshape(rows, head, n, y.shape[-1])


def _nan_rows(forward: Forward) -> Float[Tensor, "batch head query"]:
    return torch.full_like(forward.lse, torch.nan)


def _real_only(value: Tensor, forward: Forward) -> Tensor:
    return value.masked_fill(~forward.call.mask.real()[:, None], torch.nan)


@singledispatch
def answer(question: Statistic, forward: Forward) -> Tensor:
    """One statistic, from the forward pass already done."""
    raise TypeError(f"no fused answer for {type(question).__name__}")


@answer.register
def _(question: Mean, forward: Forward) -> Tensor:
    return _mean(question, answer(question.of, forward))


@answer.register
def _(question: Offset, forward: Forward) -> Tensor:
    call, back = forward.call, question.distance
    result = _nan_rows(forward)
    first = max(0, back - call.mask.offset)  # first query that has a key so far back
    n = min(call.mask.n_query, call.mask.n_key - call.mask.offset + back)  # and last: keys of a source may be fewer
    if first >= n:
        return result
    i = torch.arange(first, n, device=result.device)
    j = i + call.mask.offset - back
    key = call.shared(call.key[:, :, j[0] : j[-1] + 1])
    score = call.cap(call.scale * (call.query[:, :, first:n] * key).sum(-1))
    rows = torch.arange(call.mask.batch, device=result.device)[:, None]
    visible, has_key = (m.visible(rows, i[None], j[None])[:, None] for m in (call.mask, call.mask.plain))
    p = (score - forward.lse[:, :, first:n]).exp().masked_fill(~visible, 0.0)
    result[:, :, first:n] = p.masked_fill(~(has_key & call.mask.real()[:, None, first:n]), torch.nan)
    return result


@answer.register
def _(question: Pairs, forward: Forward) -> Tensor:
    call = forward.call
    n_batch, n_head, n_query = forward.lse.shape
    total = torch.zeros(n_batch * n_query, n_head, dtype=forward.lse.dtype, device=forward.lse.device)
    has_pair = torch.zeros(n_batch * n_query, dtype=torch.bool, device=forward.lse.device)
    chunk = max(1, PAIR_CHUNK // (n_head * call.query.shape[-1]))
    pairs = torch.stack([question.batch, question.query, question.key]).to(forward.lse.device)
    for part in pairs.split(chunk, dim=1):
        b, i, j = part
        b, i, j = part[:, call.mask.plain.visible(b, i, j) & call.mask.real()[b, i]]
        key = call.key[b, :, j].repeat_interleave(call.group, dim=1)  # pairs head d_head
        score = call.cap(call.scale * (call.query[b, :, i] * key).sum(-1))
        row = b * n_query + i
        p = (score - forward.lse[b, :, i]).exp().masked_fill(~call.mask.visible(b, i, j)[:, None], 0.0)
        total.index_add_(0, row, p)
        has_pair[row] = True
    total[~has_pair] = torch.nan
    return total.view(n_batch, n_query, n_head).transpose(1, 2)


def _readout(forward: Forward, columns: Float[Tensor, "batch key column"]) -> Float[Tensor, "batch head query column"]:
    """sum_j p_ij x_jc: a fused call whose values are the columns, the same for every head."""
    value = columns[:, None].expand(-1, forward.call.key.shape[1], -1, -1).to(forward.call.key.dtype)
    return attend(forward.call, value)[0]


@answer.register
def _(question: KeyMass, forward: Forward) -> Tensor:
    readout = question.readout.to(forward.lse)
    few = _few(question, forward)
    result = _few_keys(forward, readout) if few else _readout(forward, readout[..., None])[..., 0]
    return _of_set(question, result, forward)


def _inside(question: KeyMass, forward: Forward) -> Tensor:
    """[batch, key]: the keys of the set."""
    inside, padding = question.readout.to(forward.lse) != 0, forward.call.mask.padding
    return inside if padding is None else inside & padding


def _few(question: KeyMass, forward: Forward) -> bool:
    """Whether pairs cost no more than another call: no more keys than d_head, on average over prompts."""
    call = forward.call
    return int(_inside(question, forward).sum()) <= call.query.shape[-1] * call.mask.batch


def _of_set(question: KeyMass, mass: Tensor, forward: Forward) -> Tensor:
    """NaN where a row sees no key of the set."""
    return mass.masked_fill(~_sees_any(forward, _inside(question, forward))[:, None], torch.nan)


def _few_keys(forward: Forward, readout: Tensor) -> Tensor:
    call = forward.call
    inside = (readout != 0) if call.mask.padding is None else (readout != 0) & call.mask.padding
    batch, key = inside.nonzero(as_tuple=True)
    total = torch.zeros_like(forward.lse)
    i = torch.arange(call.mask.n_query, device=total.device)
    for b, j in zip(batch.tolist(), key.tolist(), strict=True):
        k = call.shared(call.key[b : b + 1, :, j : j + 1])[0]  # head 1 d_head
        score = call.cap(call.scale * (call.query[b] @ k.mT)[..., 0])
        rows = torch.full_like(i, b)
        visible = call.mask.visible(rows, i, torch.full_like(i, j)) & call.mask.real()[b]
        total[b] += readout[b, j] * (score - forward.lse[b]).exp().masked_fill(~visible, 0.0)
    return total


def _sees_any(forward: Forward, inside: Tensor) -> Tensor:
    """[batch, query]: whether some key of the set is visible to a row."""
    mask = forward.call.mask.plain
    has_key = torch.zeros(mask.batch, mask.n_query, dtype=torch.bool, device=inside.device)
    for segment in mask.segments:
        if segment.full:
            span = slice(segment.start, segment.stop)
            keys = inside[segment.rows, span]
            has_key[segment.rows, span] = keys.cumsum(-1) > 0 if segment.causal else keys.any(-1, keepdim=True)
            continue
        for a, b, low, high in segment.blocks:
            keys = segment.keys(low, high)
            visible = mask.tile(segment.rows[:1], slice(a, b), keys)
            has_key[segment.rows, a:b] = (visible & inside[:, None, keys][segment.rows]).any(-1)
    return has_key & mask.real()


@answer.register
def _(question: Distance, forward: Forward) -> Tensor:
    mask = forward.call.mask
    j = torch.arange(mask.n_key, device=forward.lse.device, dtype=forward.lse.dtype)
    i = torch.arange(mask.n_query, device=forward.lse.device, dtype=forward.lse.dtype) + mask.offset
    middle = mask.n_key / 2  # positions centred, so that rounding grows with half the length
    mean_key = _readout(forward, (j - middle)[None, :, None].expand(mask.batch, -1, -1))[..., 0]
    total = 1.0 if forward.call.sinks is None else 1.0 - (forward.call.sinks[None, :, None] - forward.lse).exp()
    return _real_only((i - middle) * total - mean_key, forward)


@answer.register
def _(question: Entropy, forward: Forward) -> Tensor:
    call = forward.call
    mean_score = call.scale * (call.query * attend(call, call.key)[0]).sum(-1)
    if call.sinks is not None:
        slot = call.sinks[None, :, None]
        mean_score = mean_score + (slot - forward.lse).exp() * slot
    return _real_only(forward.lse - mean_score, forward)


@answer.register
def _(question: Received, forward: Forward) -> Tensor:
    mask, weight = forward.call.mask, row_weight(forward, question.weight)
    total = forward.lse.new_full((mask.batch, forward.lse.shape[1], mask.n_key), torch.nan)
    for segment in mask.segments:
        total[segment.rows, :, segment.start : segment.stop] = _received_swapped(forward, weight, segment)
    return total


def _received_swapped(forward: Forward, weight: Tensor, segment: Segment) -> Tensor:
    """log sum_i w_i p_ij is the log-sum-exp of attention with the roles of queries and keys exchanged."""
    call, span = forward.call, slice(segment.start, segment.stop)
    log_weight = weight[segment.rows, span].log().clamp(min=NEVER)
    bias = (log_weight[:, None] - forward.lse[segment.rows, :, span])[..., None]
    queries = torch.cat([call.scale * call.query[segment.rows, :, span], bias], dim=-1).flip(2)
    keys = call.shared(call.key[segment.rows, :, span])
    keys = torch.cat([keys, torch.ones_like(keys[..., :1])], dim=-1)
    # a key is seen by later queries: reversed in time, that is causal; without a mask the order does not matter
    _, lse = flash(keys.flip(2), queries, queries, scale=1.0, causal=segment.causal)
    return lse.flip(2).exp()


def _full_rows(forward: Forward, positions: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Full rows of chosen queries, a few at a time: which of them, probabilities, visibility, reality."""
    call, mask = forward.call, forward.call.mask
    positions = positions.to(forward.lse.device)
    batch = torch.arange(mask.batch, device=positions.device)[:, None, None]
    key = torch.arange(mask.n_key, device=positions.device)[None, None]
    step = max(1, PAIR_CHUNK // (mask.batch * forward.lse.shape[1] * mask.n_key))
    for first in range(0, positions.shape[1], step):
        part = slice(first, min(first + step, positions.shape[1]))
        i = positions[:, part].clamp(min=0)
        index = i[:, None, :, None].expand(-1, forward.lse.shape[1], -1, 1)
        q = call.query.gather(2, index.expand(-1, -1, -1, call.query.shape[-1]))
        visible, seen = (
            m.visible(batch, i[..., None], key).expand(mask.batch, i.shape[1], mask.n_key) for m in (mask, mask.plain)
        )
        real = mask.real().gather(1, i) & (positions[:, part] >= 0)
        p = (_scores(call, q, call.key) - forward.lse[..., None].gather(2, index)).exp()
        yield part, p.masked_fill(~visible[:, None], 0.0), seen, real


@answer.register
def _(question: Rows, forward: Forward) -> Tensor:
    parts = [p.masked_fill(~real[:, None, :, None], torch.nan) for _, p, _, real in _full_rows(forward, question.rows)]
    return torch.cat(parts, dim=2)


@answer.register
def _(question: TopKeys, forward: Forward) -> Tensor:
    parts = []
    for _, p, visible, real in _full_rows(forward, question.rows):
        allowed = visible & real[..., None]
        if question.exclude is not None:
            allowed = allowed & ~question.exclude.to(visible.device)[:, None]
        contest = pad(p.masked_fill(~allowed[:, None], -1.0), (0, max(0, question.k - p.shape[-1])), value=-1.0)
        top = contest.topk(question.k, dim=-1)
        missing = top.values < 0
        keys = top.indices.to(p.dtype).masked_fill(missing, -1.0)
        parts.append(torch.stack([top.values.masked_fill(missing, torch.nan), keys], dim=-1))
    return torch.cat(parts, dim=2)
