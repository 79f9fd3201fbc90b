"""Right answers against wrong ones: tasks that reasoning is asked on, and the same for other prompts' answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import TaskError
from interp.measurement.answers import derangements
from interp.results import stats
from interp.tasks import PromptTask, metrics

TASKS = ("fictional_ontology", "two_hop", "ioi", "induction")
"""Tasks whose answer follows from several tokens, the first that suits a model."""


def contrasted(task: PromptTask) -> PromptTask:
    """The task judged by the right answers' mean logit less the wrong ones'.

    Raises:
        TaskError: a prompt without a wrong answer, or so few prompts that exchanges of answers are too few for a null.
    """
    if len(task) <= stats.LEAST_NULLS:
        raise TaskError(
            f"{len(task)} prompts: too few exchanges of answers for a null; give {stats.LEAST_NULLS + 1} at least"
        )
    if not task.contrasted:
        raise TaskError(
            f"{task.name}: a conclusion is judged against a wrong one; give `wrong` for every prompt (interp.pair)"
        )
    return replace(task, metric="logit_diff")


def exchanged(task: PromptTask, *, draws: int, seed: int) -> list[PromptTask]:
    """The task itself, and the same prompts with other prompts' answers, right and wrong."""
    orders: Sequence[Int[Tensor, " batch"]] = derangements(len(task), draws=draws, seed=seed)
    return [task, *(replace(task, answers=task.answers[order], wrong=task.wrong[order]) for order in orders)]


def differences(logits: Float[Tensor, "batch d_vocab"], tasks: Sequence[PromptTask]) -> Float[np.ndarray, "way batch"]:
    """Mean logit of the right answers less that of the wrong ones at END, for each way of giving answers."""
    own = logits.float().cpu()
    return np.stack([metrics.logit_diff(own, task).double().numpy() for task in tasks])


def end_logits(logits: Float[Tensor, "batch pos d_vocab"] | None, task: PromptTask) -> Float[Tensor, "batch d_vocab"]:
    """Logits at END, on the CPU."""
    assert logits is not None  # runs here have no `stop`
    with torch.no_grad():
        return metrics.answer_logits(logits, task).float().cpu()
