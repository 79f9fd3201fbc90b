"""Statistics by the kernels: which question is which of their sums, and what is left to other paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from interp.attention import fused
from interp.attention.call import Call
from interp.attention.masks import CausalMask
from interp.attention.statistics import (
    Distance,
    Entropy,
    KeyMass,
    Mean,
    Offset,
    Received,
    Statistic,
    SumSquares,
    TopKeys,
)
from interp.attention.streamed import Forward, row_weight
from interp.attention.triton.op import attend, received
from interp.attention.triton.runs import Runs, visible_runs
from interp.errors import BackendError
from interp.shapes import Bool

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 256
"""Head dimension that a program's registers hold."""


def refusal(call: Call) -> str | None:
    """Why the kernels cannot do a call; None where they can."""
    width = max(call.query.shape[-1], call.value.shape[-1])
    dtype = str(call.query.dtype).removeprefix("torch.")
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (call.query, call.key, call.value))
    reasons = {
        f"kernels read float32, bfloat16 and float16, not {dtype}": call.query.dtype not in DTYPES,
        f"heads of {width} dimensions; at most {WIDEST} fit": width > WIDEST,
        "scores with a bias of each pair": call.bias is not None,
        "weights that are not all softmax": call.softmax_share != 1.0,
        "a gradient is wanted, and kernels have none": wants_gradient,
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why is None:
        try:
            _runs(call.mask)
        except BackendError as error:
            return str(error)
    return why


_kept: WeakKeyDictionary[CausalMask, Runs] = WeakKeyDictionary()


def _runs(mask: CausalMask) -> Runs:
    """Runs of a mask, found once: the layers of a forward pass share their masks."""
    if mask not in _kept:
        _kept[mask] = visible_runs(mask)
    return _kept[mask]


@dataclass(frozen=True)
class _Plan:
    """What of the questions the kernel of one pass gives."""

    offsets: tuple[int, ...]
    masses: tuple[KeyMass, ...]
    entropy: bool
    distance: bool
    squares: bool
    best: bool


def _plan(asked: list[Statistic]) -> _Plan:
    offsets = dict.fromkeys(question.distance for question in asked if isinstance(question, Offset))
    masses = {id(question): question for question in asked if isinstance(question, KeyMass)}
    kinds = {type(question) for question in asked}
    best = any(isinstance(question, TopKeys) and _is_best(question) for question in asked)
    return _Plan(tuple(offsets), tuple(masses.values()), Entropy in kinds, Distance in kinds, SumSquares in kinds, best)


def _is_best(question: TopKeys) -> bool:
    return question.k == 1 and question.exclude is None


def answer_all(call: Call, questions: Mapping[str, Statistic]) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output in the call's dtype, and the answer to each question in float32.

    Raises:
        BackendError: a call that kernels cannot do (says what of it), or no GPU.
    """
    why = refusal(call)
    if why is not None:
        raise BackendError(f'method="triton": {why}; use method="auto"')
    asked = [_asked(question) for question in questions.values()]
    plan, runs = _plan(asked), _runs(call.mask)
    output, *sums = _one_pass(call, runs, plan)
    answers = _Answers(Forward(call, sums[0]), runs, plan, _Sums(*sums))
    return output, {name: _finished(question, answers) for name, question in questions.items()}


def _asked(question: Statistic) -> Statistic:
    return question.of if isinstance(question, Mean) else question


def _one_pass(call: Call, runs: Runs, plan: _Plan) -> tuple[Tensor, ...]:
    mask, device = call.mask, call.query.device
    readout = torch.zeros(mask.batch, 0, mask.n_key, device=device)
    if plan.masses:
        readout = torch.stack([question.readout.to(device, torch.float32) for question in plan.masses], 1).contiguous()
    return attend(
        call.query, call.key, call.value, runs.low, runs.high, runs.start,
        None if call.sinks is None else call.sinks.float(), readout,
        torch.tensor(plan.offsets, dtype=torch.int32, device=device),
        call.scale, call.softcap, mask.offset, runs.extra,
        plan.entropy, plan.distance, plan.squares, plan.best,
    )  # fmt: skip


class _Sums(NamedTuple):
    """What one pass gives beside the output, by row; empty where it was not asked for."""

    lse: Tensor
    entropy: Tensor
    distance: Tensor
    squares: Tensor
    best: Tensor
    best_key: Tensor
    mass: Tensor
    pairs: Tensor


@dataclass(frozen=True)
class _Answers:
    """Sums of one pass, and the runs they were taken over; `plain` runs say which rows have an answer."""

    forward: Forward
    runs: Runs
    plan: _Plan
    sums: _Sums

    def real(self, value: Tensor) -> Tensor:
        """NaN at padding."""
        return value.masked_fill(~self.forward.call.mask.real()[:, None], torch.nan)

    def plain(self) -> Runs:
        """Runs of the mask as the model has it."""
        mask = self.forward.call.mask
        return self.runs if mask.plain is mask else _runs(mask.plain)


@singledispatch
def _finished(question: Statistic, answers: _Answers) -> Tensor:
    """The answer to one question: here from L and the queries, as `fused` does; others of the pass or a second one."""
    return fused.answer_one(question, Forward(answers.forward.call.float(), answers.forward.lse))


@_finished.register
def _(question: Mean, answers: _Answers) -> Tensor:
    value, rows = _finished(question.of, answers), question.rows
    return (value if rows is None else value.masked_fill(~rows.to(value.device)[:, None], torch.nan)).nanmean(-1)


@_finished.register
def _(question: Entropy, answers: _Answers) -> Tensor:
    return answers.real(answers.sums.entropy)


@_finished.register
def _(question: Distance, answers: _Answers) -> Tensor:
    return answers.real(answers.sums.distance)


@_finished.register
def _(question: SumSquares, answers: _Answers) -> Tensor:
    return answers.real(answers.sums.squares)


@_finished.register
def _(question: Offset, answers: _Answers) -> Tensor:
    number = answers.plan.offsets.index(question.distance)
    return _at_offset(question.distance, answers.sums.pairs[:, :, number], answers)


@_finished.register
def _(question: KeyMass, answers: _Answers) -> Tensor:
    number = next(i for i, other in enumerate(answers.plan.masses) if other is question)
    return answers.sums.mass[:, :, number].masked_fill(~_has_key(question, answers)[:, None], torch.nan)


@_finished.register
def _(question: TopKeys, answers: _Answers) -> Tensor:
    if _is_best(question):
        return _best(question, answers.sums.best, answers.sums.best_key, answers)
    return fused.answer_one(question, Forward(answers.forward.call.float(), answers.forward.lse))


def _positions(answers: _Answers) -> Tensor:
    mask = answers.forward.call.mask
    return torch.arange(mask.n_query, device=answers.runs.low.device) + mask.offset


def _at_offset(back: int, p: Tensor, answers: _Answers) -> Tensor:
    """NaN where the model's own mask has no key so far back."""
    runs, key = answers.plain(), _positions(answers)[None] - back
    seen = (key >= runs.low) & (key < runs.high)
    return answers.real(p.masked_fill(~seen[:, None], torch.nan))


def _has_key(question: KeyMass, answers: _Answers) -> Bool[Tensor, "batch query"]:
    mask = answers.forward.call.mask
    inside = (question.readout.to(answers.runs.low.device) != 0) & mask.keys()
    return answers.plain().sees(inside, _positions(answers)) & mask.real()


@_finished.register
def _(question: Received, answers: _Answers) -> Tensor:
    call, runs, lse = answers.forward.call, answers.runs, answers.forward.lse
    weight = row_weight(answers.forward, question.weight).float().contiguous()
    total = received(
        call.query, call.key, runs.low, runs.high, runs.start, lse, weight, call.scale, call.softcap,
        call.mask.offset, runs.extra,
    )  # fmt: skip
    return total.masked_fill(~call.mask.keys()[:, None], torch.nan)


def _best(question: TopKeys, best: Tensor, best_key: Tensor, answers: _Answers) -> Tensor:
    rows = question.rows.to(best.device)
    index = rows.clamp(min=0)[:, None].expand(-1, best.shape[1], -1)
    missing = (rows < 0) | ~answers.forward.call.mask.real().gather(1, rows.clamp(min=0))
    p, key = best.gather(2, index), best_key.gather(2, index).to(best.dtype)
    none = missing[:, None] | (key < 0)
    return torch.stack([p.masked_fill(none, torch.nan), key.masked_fill(none, -1.0)], -1)[:, :, :, None]
