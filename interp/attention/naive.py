"""Statistics from the whole pattern, each by its definition: the oracle. O(n^2) memory.

Slow and obvious on purpose. `fused` must agree with it to 1e-4 in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

import torch
from torch import Tensor

from interp.attention.call import Call
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
from interp.shapes import Float

Pattern = Float[Tensor, "batch head query key"]


def dense_pattern(call: Call) -> tuple[Pattern, Float[Tensor, "batch head query"]]:
    """p_ij and L_i. Rows sum to one, less the sink slot's share where there are sink logits; see `Call`."""
    score = call.scale * call.query @ call.shared(call.key).mT
    score = call.cap(score if call.bias is None else score + call.bias)
    rows = torch.arange(call.mask.batch, device=call.mask.device)
    visible = call.mask.tile(rows, slice(0, call.mask.n_query), slice(0, call.mask.n_key))[:, None]
    score = score.masked_fill(~visible, -torch.inf)
    if call.relu:
        return score.relu(), score.logsumexp(-1)
    if call.sinks is not None:
        slot = call.sinks[None, :, None, None].expand(*score.shape[:3], 1)
        score = torch.cat([score, slot], dim=-1)
    lse = score.logsumexp(-1)
    pattern = (score - lse[..., None]).exp()
    pattern = pattern if call.sinks is None else pattern[..., :-1]
    return call.weight(
        pattern.masked_fill(~visible, 0.0), visible
    ), lse  # a row that sees no key is 0, not exp(-inf + inf)


def answer_all(call: Call, questions: Mapping[str, Statistic]) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output in the call's dtype, and the answer to each question."""
    exact = call.float()
    pattern, lse = dense_pattern(exact)
    output = (pattern @ exact.shared(exact.value)).to(call.value.dtype)
    return output, {name: answer(question, pattern, exact, lse) for name, question in questions.items()}


@singledispatch
def answer(question: Statistic, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    """One statistic of a dense pattern."""
    raise TypeError(f"no naive answer for {type(question).__name__}")


def _visible(call: Call) -> Tensor:
    mask = call.mask.plain
    rows = torch.arange(mask.batch, device=mask.device)
    visible = mask.tile(rows, slice(0, mask.n_query), slice(0, mask.n_key))
    return visible & mask.real()[:, :, None]


def _where(value: Tensor, has_answer: Tensor) -> Tensor:
    """NaN where no answer exists; `has_answer` is [batch, query]."""
    return value.masked_fill(~has_answer[:, None], torch.nan)


def _masked_sum(pattern: Tensor, selection: Tensor) -> Tensor:
    return _where((pattern * selection[:, None]).sum(-1), selection.any(-1))


@answer.register
def _(question: Offset, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    selection = torch.ones_like(pattern[0, 0], dtype=torch.bool)
    shift = call.mask.offset - question.distance
    selection = selection.triu(shift) & selection.tril(shift)
    return _masked_sum(pattern, selection[None] & _visible(call))


@answer.register
def _(question: Pairs, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    times = torch.zeros_like(pattern[:, 0])
    one = torch.ones_like(question.key, dtype=pattern.dtype)
    times.index_put_((question.batch, question.query, question.key), one, accumulate=True)
    return _masked_sum(pattern * times[:, None], (times > 0) & _visible(call))


@answer.register
def _(question: KeyMass, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    readout = question.readout.to(pattern.dtype)
    has_key = (_visible(call) & (readout != 0)[:, None]).any(-1)
    return _where((pattern * readout[:, None, None]).sum(-1), has_key)


@answer.register
def _(question: Distance, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    n_query, n_key = pattern.shape[-2:]
    i = torch.arange(n_query, device=pattern.device)[:, None] + call.mask.offset
    back = (i - torch.arange(n_key, device=pattern.device)).to(pattern.dtype)
    return _where((pattern * back).sum(-1), call.mask.real())


@answer.register
def _(question: Entropy, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    entropy = torch.special.entr(pattern).sum(-1)
    if call.sinks is not None:
        entropy = entropy + torch.special.entr((call.sinks[None, :, None] - lse).exp())
    return _where(entropy, call.mask.real())


@answer.register
def _(question: SumSquares, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    return _where(pattern.square().sum(-1), call.mask.real())


@answer.register
def _(question: ByDistance, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    visible = _visible(call).to(pattern.dtype)
    weight = visible if question.weight is None else visible * question.weight.to(pattern.dtype)[..., None]
    distances = range(call.mask.n_key)
    shift = [call.mask.offset - d for d in distances]
    weighted = pattern * weight[:, None]
    mass = [weighted.diagonal(s, 2, 3).sum(-1) for s in shift]
    rows = [weight.diagonal(s, 1, 2).sum(-1) for s in shift]
    count = torch.stack(rows, dim=-1)[:, None]
    return torch.stack(mass, dim=-1) / count.masked_fill(count == 0, torch.nan)


@answer.register
def _(question: Received, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    real = call.mask.real()
    weight = real.to(pattern.dtype) if question.weight is None else question.weight.to(pattern.dtype) * real
    keys = torch.ones(pattern.shape[0], pattern.shape[-1], dtype=torch.bool, device=pattern.device)
    keys = keys if call.mask.padding is None else call.mask.padding
    return _where((pattern * weight[:, None, :, None]).sum(-2), keys)


@answer.register
def _(question: Rows, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    index = question.rows.clamp(min=0)[:, None, :, None].expand(-1, pattern.shape[1], -1, pattern.shape[-1])
    real = call.mask.real().gather(1, question.rows.clamp(min=0)) & (question.rows >= 0)
    return pattern.gather(2, index).masked_fill(~real[:, None, :, None], torch.nan)


@answer.register
def _(question: TopKeys, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    rows = answer(Rows(question.rows), pattern, call, lse)
    index = question.rows.clamp(min=0)[:, :, None].expand(-1, -1, pattern.shape[-1])
    allowed = _visible(call).gather(1, index)
    if question.exclude is not None:
        allowed = allowed & ~question.exclude[:, None]
    contest = rows.nan_to_num(-1.0).masked_fill(~allowed[:, None], -1.0)
    contest = torch.nn.functional.pad(contest, (0, max(0, question.k - contest.shape[-1])), value=-1.0)
    top = contest.topk(question.k, dim=-1)
    missing = (top.values < 0) | (question.rows < 0)[:, None, :, None]
    keys = top.indices.to(rows.dtype).masked_fill(missing, -1.0)
    return torch.stack([top.values.masked_fill(missing, torch.nan), keys], dim=-1)


@answer.register
def _(question: Mean, pattern: Pattern, call: Call, lse: Tensor) -> Tensor:
    value = answer(question.of, pattern, call, lse)
    if question.rows is not None:
        value = value.masked_fill(~question.rows[:, None], torch.nan)
    return value.nanmean(-1)
