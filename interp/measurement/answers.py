"""What analyses ask of a task's answers: which task, whether the model does it, where in the stream an answer lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import tasks
from interp.decompose.answers import mean_over
from interp.errors import NotApplicable, TaskError
from interp.model import Model
from interp.numerics import wide
from interp.patching.case import Case
from interp.patching.readout import Exit
from interp.results import stats
from interp.shapes import brief
from interp.tasks import PromptTask, metrics
from interp.tasks.prompt import ragged
from interp.tasks.spell import MUTE

TASKS = ("facts", "fact", "capital_country")
"""Tasks about facts, the first that a model knows."""
SUBJECTS = ("SUBJECT", "s", "subject", "capital", "country", "ASKED")
"""Roles that name a subject, in order of preference."""
ANSWERED = 0.75
"""Share of prompts with the right answer above the wrong one from which a model does the task."""


def model_task(model: Model, task: PromptTask | str | None, names: tuple[str, ...], *, n: int, seed: int) -> PromptTask:
    """A task, by name or the first of `names` that there is for the model and that suits it.

    Raises:
        NotApplicable: none does.
    """
    if isinstance(task, PromptTask):
        return task
    if task is not None:
        return tasks.task(task, model, n=n, seed=seed)
    if model.tokenizer is None and not set(names) & set(tasks.task_names(model)):
        raise NotApplicable(MUTE)
    reasons = []
    for name in (n for n in names if n in tasks.task_names(model)):  # others are known to other checkpoints alone
        try:
            return tasks.task(name, model, n=n, seed=seed)
        except (NotApplicable, TaskError) as error:
            reasons.append(str(error))
    raise NotApplicable("; ".join(dict.fromkeys(reasons)))


def subject_role(task: PromptTask, name: str | None = None) -> str:
    """The role of a task's subject: the one given, else the first of `SUBJECTS` that it has.

    Raises:
        TaskError: none of them, or no such role.
    """
    found = name or next((s for s in SUBJECTS if s in task.roles), None)
    if found is None:
        raise TaskError(f"{task.name} has no role for a subject among {', '.join(task.roles)}; pass `subject`")
    task.role(found)
    return found


def candidates(answers: Int[Tensor, "batch k"]) -> Int[Tensor, "batch m"]:
    """For each prompt the right answers of the others that are not its own.

    Raises:
        TaskError: there are none.
    """
    all_answers = sorted(set(answers[answers >= 0].tolist()))
    rows = [[a for a in all_answers if a not in row] for row in answers.tolist()]
    if not all(rows):
        raise TaskError("all prompts of the task have the same answer: nothing to compare it with")
    return ragged(rows)


def derangements(n: int, *, draws: int, seed: int) -> list[Int[Tensor, " batch"]]:
    """Shifts of a random order: no prompt keeps its own answer."""
    generator = torch.Generator().manual_seed(seed)
    shifts = (torch.randperm(n - 1, generator=generator)[:draws] + 1).tolist()
    order = torch.randperm(n, generator=generator)
    orders = [torch.empty(n, dtype=torch.long) for _ in shifts]
    for row, shift in zip(orders, shifts, strict=True):
        row[order] = order.roll(shift)
    return orders


def answered(case: Case, end: Float[Tensor, "batch d_model"]) -> bool:
    """Whether the right answers' logits are above the wrong ones' in most prompts, whose streams end in `end`."""
    return AnswerDirections.of(case, end, draws=0, seed=0).answered


def right_share(logits: Float[Tensor, "..."], task: PromptTask) -> float:
    """Share of prompts answered right (`metrics.right`); logits [batch pos d_vocab], or [batch d_vocab] at END."""
    return float(metrics.right(logits, task).double().mean())


@dataclass(frozen=True, eq=False)
class AnswerDirections:
    """Vectors of the stream before the final norm whose product with what is written there is a difference of logits.

    w = W_U[right] - W_U[wrong], means where there are several, through the final norm with its divisor held at that of
    each prompt's own stream; where no answer is wrong, less the mean over the vocabulary. Before a soft-cap.

    Attributes:
        own: of each prompt's own answers.
        others: of other prompts' answers, one exchange after another: no prompt keeps its own.
        logit: the difference as the stream has it.
    """

    own: Float[Tensor, "batch d_model"]
    others: tuple[Float[Tensor, "batch d_model"], ...]
    logit: Float[Tensor, " batch"]

    __repr__ = brief

    @property
    def answered(self) -> bool:
        """Whether the difference is above 0 in a share of `ANSWERED` of the prompts, or more."""
        return bool((self.logit > 0).double().mean() >= ANSWERED)

    @classmethod
    def of(cls, case: Case, end: Float[Tensor, "batch d_model"], *, draws: int, seed: int) -> AnswerDirections:
        """Directions at streams `end` behind the last layer.

        Raises:
            NotApplicable: the logits are no multiple of what norm and unembedding give.
            TaskError: so few prompts that exchanges between them are too few.
        """
        exit_, task, n = Exit.of(case, end), case.task, len(case)
        if exit_.head is None:
            raise NotApplicable(
                f"{case.model.info.name}: its logits are not norm, unembedding and at most a multiplier"
            )
        if draws and n <= stats.LEAST_NULLS:
            least = stats.LEAST_NULLS + 1
            raise TaskError(f"{n} prompts: too few exchanges of answers for a null; give {least} at least")
        end, weights, norm = wide(end).cpu(), case.weights, exit_.norm
        columns = mean_over(weights.source.columns, task.answers.cpu())
        bias = mean_over(lambda ids: weights.b_u[ids], task.answers.cpu())
        if task.contrasted:
            columns = columns - mean_over(weights.source.columns, task.wrong.cpu())
            bias = bias - mean_over(lambda ids: weights.b_u[ids], task.wrong.cpu())
        else:
            columns, bias = columns - weights.w_u.mean(1), bias - weights.b_u.mean()
        columns, bias = columns * exit_.head[0], bias * exit_.head[0]
        constant = bias if norm is None else bias + columns @ norm.to("cpu").bias
        if norm is not None:
            columns = norm.to("cpu").transpose(columns)
        divisor = exit_.divisor(end) if norm is None else norm.to("cpu").divisor(end)
        orders = derangements(n, draws=draws, seed=seed) if draws else []
        own = columns / divisor
        return cls(own, tuple(columns[order] / divisor for order in orders), (end * own).sum(1) + constant)


def exchange_columns(
    mean: Float[np.ndarray, "*component"],
    exchanges: Sequence[Float[np.ndarray, "*component"]],
    *,
    margin: float | Float[np.ndarray, "*component"],
    able: bool,
) -> dict[str, Float[np.ndarray, "*component"]]:
    """Columns null, p and q of means over prompts: two-sided, against the spread of exchanges; p is 1 unless `able`.

    p is for more than `margin`: with enough prompts all that a component does differs from what it does elsewhere.
    """
    null = np.stack(list(exchanges))
    p = stats.p_two_sided(mean, null, margin=margin) if able else np.where(np.isnan(mean), np.nan, 1.0)
    return {"null": null.mean(0), "p": p, "q": stats.benjamini_hochberg(p)}
