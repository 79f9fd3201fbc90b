"""`Portions`: answers about whole prompts, put together from chunks of their queries, each with all keys up to its end.

With queries cut into chunks, rows are answered in one chunk each, sums over rows are sums over chunks, and means over
rows are sums by counts: nothing is an approximation. `portion` says what to ask of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from interp.attention.call import Call
from interp.attention.statistics import ByDistance, KeyMass, Mean, Pairs, Received, Rows, Statistic, TopKeys
from interp.attention.streamed import ByDistanceTotal, Forward
from interp.shapes import Bool, Float, Int


@singledispatch
def portion(question: Statistic, start: int, stop: int) -> Statistic:
    """The question as it is asked of queries `start` to `stop` - 1, with keys 0 to `stop` - 1."""
    return question


@portion.register
def _(question: Pairs, start: int, stop: int) -> Statistic:
    here = (question.query >= start) & (question.query < stop) & (question.key < stop)
    return Pairs(question.batch[here], question.query[here] - start, question.key[here])


@portion.register
def _(question: KeyMass, start: int, stop: int) -> Statistic:
    return KeyMass(question.readout[:, :stop])


@portion.register(Received)
@portion.register(ByDistance)
def _(question: Received | ByDistance, start: int, stop: int) -> Statistic:
    return question if question.weight is None else replace(question, weight=question.weight[:, start:stop])


@portion.register
def _(question: TopKeys, start: int, stop: int) -> Statistic:
    exclude = None if question.exclude is None else question.exclude[:, :stop]
    return replace(question, rows=rows_in(question.rows, start, stop), exclude=exclude)


@portion.register
def _(question: Rows, start: int, stop: int) -> Statistic:
    return Rows(rows_in(question.rows, start, stop))


@portion.register
def _(question: Mean, start: int, stop: int) -> Statistic:
    return portion(question.of, start, stop)


def rows_in(rows: Int[Tensor, "batch rows"], start: int, stop: int) -> Int[Tensor, "batch rows"]:
    """Places of chosen rows within a chunk, -1 for those outside."""
    return torch.where((rows >= start) & (rows < stop), rows - start, -1)


class Portions:
    """The answer to one question at one layer, as chunks come in.

    Args:
        question: as it is asked of the whole prompts.
        keys: real tokens of the whole prompts.
    """

    def __init__(self, question: Statistic, keys: Bool[Tensor, "batch key"]) -> None:
        self.question, self.keys = question, keys.cpu()
        self.parts: list[Tensor] = []
        self.dtype = torch.float32
        self.sum: Tensor | None = None
        self.count: Tensor | None = None

    def add(self, answer: Tensor, start: int, stop: int, count: Tensor | None = None) -> None:
        """Add what one chunk answers to its `portion`; `count` are the rows behind each number, for `ByDistance`."""
        answer, question = answer.cpu(), self.question
        self.dtype = answer.dtype
        if isinstance(question, Rows):
            no_row = answer[..., :1].isnan()
            answer = torch.nn.functional.pad(answer, (0, self.keys.shape[1] - stop)).masked_fill(no_row, torch.nan)
        if isinstance(question, Rows | TopKeys):
            self._rows(answer, rows_in(question.rows.cpu(), start, stop) >= 0)
        elif isinstance(question, Mean):
            self._mean(answer, question.rows, start, stop)
        elif isinstance(question, Received | ByDistance):
            number = answer.nan_to_num(0.0).double()
            self._sum(number if count is None else number * count.double()[:, None], count)
        else:
            self.parts.append(answer)

    def answer(self) -> Tensor:
        """The answer about the whole prompts, as `measure` gives it."""
        if self.sum is None:
            return torch.cat(self.parts, dim=2)
        if isinstance(self.question, Rows | TopKeys):
            return self.sum
        if isinstance(self.question, Received):
            return self.sum.to(self.dtype).masked_fill(~self.keys[:, None], torch.nan)
        assert self.count is not None
        count = self.count if isinstance(self.question, Mean) else self.count[:, None]
        return (self.sum / count.masked_fill(count == 0, torch.nan)).to(self.dtype)

    def _rows(self, answer: Tensor, here: Tensor) -> None:
        here = here.view(len(here), 1, -1, *(1,) * (answer.ndim - 3))
        self.sum = answer if self.sum is None else torch.where(here, answer, self.sum)

    def _mean(self, answer: Tensor, rows: Tensor | None, start: int, stop: int) -> None:
        if rows is not None:
            answer = answer.masked_fill(~rows[:, None, start:stop].cpu(), torch.nan)
        total, count = answer.double().nansum(-1), (~answer.isnan()).sum(-1).double()
        self.sum = total if self.sum is None else self.sum + total
        self.count = count if self.count is None else self.count + count

    def _sum(self, number: Tensor, count: Tensor | None) -> None:
        """Add numbers by key or distance, of which later chunks have more."""
        if self.sum is None:
            self.sum = number.new_zeros(*number.shape[:2], self.keys.shape[1])
        self.sum[..., : number.shape[-1]] += number
        if count is not None:
            self.count = count.new_zeros(len(count), self.keys.shape[1]) if self.count is None else self.count
            self.count[:, : count.shape[-1]] += count


def distance_counts(call: Call, question: ByDistance) -> Float[Tensor, "batch distance"]:
    """sum of w_i over the rows of a call that see a key d back: what a mean by distance was divided by."""
    level = torch.zeros(call.mask.batch, 1, call.mask.n_query, device=call.query.device)
    return ByDistanceTotal(Forward(call, level), question.weight).counts().cpu()


def count_rows(
    questions: Mapping[str, Statistic], layers: tuple[int, ...], counts: dict[tuple[str, int], Tensor]
) -> Callable[[int, Call], Any]:
    """A `Recorder.watch` that puts the counts of every `ByDistance` at the layers asked for into `counts`."""

    def watch(layer: int, call: Call) -> None:
        for name, question in questions.items():
            if isinstance(question, ByDistance) and layer in layers:
                counts[name, layer] = distance_counts(call, question)

    return watch
