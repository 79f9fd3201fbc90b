"""Whether a model can do a task at all: its accuracy beside chance, said before anything is explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binom
from torch import Tensor

from interp.model import Model
from interp.results.stats import Interval, bootstrap_mean
from interp.tasks import PromptTask, metrics

LOW_IS_GOOD = ("loss_nats", "kl", "rank")
"""Metrics of `interp.tasks.metrics` of which a model that can do the task has less."""
LEVEL = 0.05
"""p of the accuracy at which a model counts as able."""


@dataclass(frozen=True)
class Ability:
    """Share of prompts that a model answers rightly.

    Attributes:
        accuracy: share in which the right answer's logit is above every wrong one's, or, where no answer is wrong, the
            largest of all.
        chance: of that if all answers compared were equally likely: 1 / (1 + wrong ones), or 1 / logits.
        n: prompts. p: of at least as many right ones by chance (binomial).
        contrasted: whether answers were compared with wrong ones.
    """

    accuracy: float
    chance: float
    n: int
    p: float
    contrasted: bool

    @classmethod
    def of(cls, logits: Float[Tensor, "..."], task: PromptTask) -> Ability:
        """From logits [batch pos d_vocab], or [batch d_vocab] at END."""
        at = metrics.answer_logits(logits, task)
        right = metrics.logit_margin(at, task) > 0 if task.contrasted else metrics.accuracy(at, task) > 0
        wrong = (task.wrong >= 0).sum(1).double()
        chance = float((1 / (1 + wrong)).mean()) if task.contrasted else 1 / at.shape[-1]
        n, hits = len(right), int(right.sum())
        return cls(hits / n, chance, n, float(binom.sf(hits - 1, n, chance)), task.contrasted)

    @property
    def able(self) -> bool:
        """Whether the accuracy is above chance at p < 0.05."""
        return self.p < LEVEL

    @property
    def caution(self) -> str:
        """What to say first of a model that is not able; "" of one that is."""
        if self.able:
            return ""
        if self.chance**self.n >= LEVEL:
            return f"Whether the model does this task better than chance cannot be told from {self.n} prompts."
        return "The model does not do this task better than chance: what it does instead is no mechanism of the task."

    def sentence(self) -> str:
        """`right in 0.97 of 64 prompts (chance 0.50)`."""
        return f"right in {self.accuracy:.2f} of {self.n} prompts (chance {self.chance:.2g})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return {"accuracy": self.accuracy, "chance": self.chance, "n": self.n, "p": self.p, "able": self.able}


@torch.no_grad()
def ability(model: Model, task: PromptTask, *, batch_size: int = 64) -> Ability:
    """`Ability` on a task's clean prompts; one pass over them."""
    parts = []
    for first in range(0, len(task), batch_size):
        part = task.select(slice(first, first + batch_size))
        logits = model.run(part.clean).logits
        assert logits is not None  # no `stop`
        parts.append(metrics.answer_logits(logits, part).cpu())
    return Ability.of(torch.cat(parts), task.to("cpu"))


def advantage(
    full: Float[np.ndarray, " prompt"], empty: Float[np.ndarray, " prompt"], metric: str, *, seed: int = 0
) -> Interval:
    """By how much the model does better than what is left of it, full - empty, with its interval over prompts.

    Signed so that above 0 is better: less of `LOW_IS_GOOD`, more of every other metric. A metric of one's own has no
    direction: there it is the size of the difference that is taken, with the sign of its mean.
    """
    gap = np.asarray(full, dtype=float) - np.asarray(empty, dtype=float)
    if metric in LOW_IS_GOOD or (metric not in metrics.METRICS and gap.mean() < 0):
        gap = -gap
    return bootstrap_mean(gap, seed=seed)
