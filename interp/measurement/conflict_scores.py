"""What heads write of a context's answer over the known one, where the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from interp.decompose.attribution import attributions
from interp.errors import NotApplicable
from interp.measurement.scoring import LEVEL
from interp.model import Model
from interp.results import stats
from interp.shapes import brief
from interp.tasks import Conflict

LEAST = 24  # facts that the model must know before a conflict with memory is one
SHARE, SMALLEST = 0.05, 0.01  # of what all heads write: below SHARE no label, up to SMALLEST no claim
ROLES = ("context", "memory")


@dataclass(frozen=True, eq=False)
class ConflictScores:
    """Direct effects of heads on l[what the context says] - l[what the model knows] at END, in logits.

    Attributes:
        direct: of each prompt. null: mean over exchanges of answers within a relation. p, q: two-sided, over heads.
        label: q < 0.01 and 5 % of what all heads write. role: "context" above zero, "memory" below.
    """

    direct: Float[np.ndarray, "prompt layer head"]
    null: Float[np.ndarray, "layer head"]
    p: Float[np.ndarray, "layer head"]
    q: Float[np.ndarray, "layer head"]
    label: Bool[np.ndarray, "layer head"]
    role: Shaped[np.ndarray, "layer head"]

    __repr__ = brief


def known_conflicts(model: Model, candidates: Conflict) -> tuple[Conflict, float]:
    """Those prompts whose fact the model says when it is asked for it alone, and their share.

    Raises:
        NotApplicable: fewer than 24.
    """
    knowledge = _knowledge(model, candidates)
    if int(knowledge.sum()) < LEAST:
        raise NotApplicable(
            f"the model knows {int(knowledge.sum())} of {len(knowledge)} facts; {LEAST} are needed for a conflict"
        )
    return candidates.select(knowledge.nonzero()[:, 0]), float(knowledge.float().mean())


def conflict_scores(model: Model, conflicts: Conflict, *, n_null: int, seed: int) -> ConflictScores:
    """Scores of all heads, of one run; `n_null` exchanges of answers are the null."""
    generator = torch.Generator().manual_seed(seed)
    exchanges = [exchange(conflicts, generator) for _ in range(n_null)]
    direct, *others = _direct(model, conflicts, [(conflicts.task.answers, conflicts.task.wrong), *exchanges])
    null = np.stack([x.mean(0) for x in others])
    mean = direct.mean(0)
    total = float(np.abs(mean).sum())
    p = stats.p_two_sided(mean, null, margin=SMALLEST * total)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (np.abs(mean) >= SHARE * total)
    return ConflictScores(direct, null.mean(0), p, q, label, np.where(mean > 0, *ROLES))


def _knowledge(model: Model, prompts: Conflict) -> Tensor:
    """Whether the model says the fact when it is asked for it alone."""
    logits = model.run(prompts.questions).logits
    assert logits is not None  # the run has no `stop`
    rows = torch.arange(len(logits))
    predictions = logits[rows, prompts.questions.mask.sum(1) - 1].argmax(-1).cpu()
    return (predictions[:, None] == prompts.task.wrong).any(1)


def _direct(
    model: Model, prompts: Conflict, contrasts: Sequence[tuple[Tensor, Tensor]]
) -> list[Float[np.ndarray, "prompt layer head"]]:
    """Direct effects of heads on each contrast of answers with wrong ones."""
    layers = list(model.info.attention_layers)
    found = attributions(model, prompts.task.clean, contrasts)
    return [x.heads[layers].permute(2, 0, 1).double().numpy() for x in found]


def exchange(prompts: Conflict, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Answers of another prompt of the same relation, each pair kept together."""
    other = torch.arange(len(prompts.group))
    for group in prompts.group.unique():
        own = (prompts.group == group).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        other[own] = own.roll(1)
    return prompts.task.answers[other], prompts.task.wrong[other]
