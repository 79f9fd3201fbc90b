"""Whether a model can do a task at all: its accuracy and metric beside chance, said before anything is explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from scipy.stats import binom
from torch import Tensor

from interp.model import Model
from interp.patching.case import Case
from interp.results.stats import Interval, bootstrap_mean
from interp.tasks import PromptTask, metrics

LOW_IS_GOOD = ("loss_nats", "kl", "rank")
"""Metrics of `interp.tasks.metrics` of which a model that can do the task has less."""
LEVEL = 0.05
"""p of the accuracy below which a model counts as able."""
Asked = Case | PromptTask
"""Prompts with answers that a model is asked."""


@dataclass(frozen=True)
class Ability:
    """Share of prompts that a model answers rightly.

    Attributes:
        accuracy: share in which the right answer's logit is above every wrong one's, or, where no answer is wrong, the
            largest of all.
        chance: of that if all answers compared were equally likely: 1 / (1 + wrong ones), or 1 / logits.
        n: prompts. p: of at least as many right ones by chance (binomial).
        contrasted: whether answers were compared with wrong ones.
        metric: what the task is measured by; "" where that is its accuracy alone.
        value: its mean over prompts. value_by_chance: of equal logits (`metrics.of_equal_logits`). NaN without it.
    """

    accuracy: float
    chance: float
    n: int
    p: float
    contrasted: bool
    metric: str = ""
    value: float = float("nan")
    value_by_chance: float = float("nan")

    @classmethod
    def of(cls, logits: Float[Tensor, "..."], task: PromptTask) -> Ability:
        """From logits [batch pos d_vocab], or [batch d_vocab] at END."""
        at = metrics.answer_logits(logits, task)
        measured = task.metric_name in metrics.METRICS and task.metric_name != "kl"  # that needs another run
        value = task.value(at) if measured else torch.full((len(at),), torch.nan)
        return cls._of_task(task, metrics.right(at, task), value, task.metric_name, at.shape[-1])

    @classmethod
    def of_case(cls, case: Case) -> Ability:
        """On a case's clean prompts; no pass where their metric is known already."""
        info = case.model.info
        return cls._of_task(case.task, case.right, case.clean, case.metric, info.n_logits or info.d_vocab)

    @classmethod
    def of_right(
        cls, right: Shaped[np.ndarray, " prompt"], chance: float, *, contrasted: bool = False, **metric: Any
    ) -> Ability:
        """From which prompts were answered right (1) and which not (0), and the chance of either."""
        return cls.of_counts(int(np.asarray(right).sum()), len(right), chance, contrasted=contrasted, **metric)

    @classmethod
    def of_counts(cls, hits: int, n: int, chance: float, *, contrasted: bool = False, **metric: Any) -> Ability:
        """From how many of n prompts were answered right."""
        return cls(hits / n, chance, n, float(binom.sf(hits - 1, n, chance)), contrasted, **metric)

    @classmethod
    def _of_task(
        cls, task: PromptTask, right: Bool[Tensor, " batch"], value: Float[Tensor, " batch"], metric: str, n_logits: int
    ) -> Ability:
        wrong = (task.wrong >= 0).sum(1).double()
        chance = float((1 / (1 + wrong)).mean()) if task.contrasted else 1 / n_logits
        own = {
            "metric": metric,
            "value": float(value.detach().double().mean()),
            "value_by_chance": float(metrics.of_equal_logits(metric, task, n_logits).mean()),
        }
        return cls.of_right(right.cpu().numpy(), chance, contrasted=task.contrasted, **own)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ability:
        """What `as_dict` gave, as it stands in provenance."""
        known: dict[str, Any] = {name: values[name] for name in cls.__annotations__ if name in values}
        known |= {name: np.nan for name, value in known.items() if value is None}
        return cls(**known)

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
            return f"Whether the model does this task better than chance cannot be told from {_prompts(self.n)}."
        return "The model does not do this task better than chance: what it does instead is no mechanism of the task."

    @property
    def brief(self) -> str:
        """`the model does this task at chance: .48 of .50`, or that so few prompts cannot tell; "" if it is able."""
        if self.able:
            return ""
        if self.chance**self.n >= LEVEL:
            return f"whether the model does this task cannot be told from {_prompts(self.n)}"
        accuracy, chance = (f"{x:.2f}".lstrip("0") for x in (self.accuracy, self.chance))
        return f"the model does this task at chance: {accuracy} of {chance}"

    def sentence(self) -> str:
        """`right in 0.97 of 64 prompts (chance 0.50)`."""
        return f"right in {self.accuracy:.2f} of {_prompts(self.n)} (chance {self.chance:.2g})"

    def whole_sentence(self) -> str:
        """`right in 0.97 of 64 prompts (chance 0.50); logit_diff 3.21 (by chance 0)`."""
        if not self.metric or np.isnan(self.value):
            return self.sentence()
        by_chance = "" if np.isnan(self.value_by_chance) else f" (by chance {self.value_by_chance:.3g})"
        return f"{self.sentence()}; {self.metric} {self.value:.3g}{by_chance}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance; what is no number is None."""
        values = {name: None if value != value else value for name, value in asdict(self).items()}  # noqa: PLR0124  NaN
        return {**values, "able": self.able}


def _prompts(n: int) -> str:
    return f"{n} prompt{'s' * (n != 1)}"


def abilities(model: Model, asked: Asked | Mapping[str, Ability]) -> dict[str, Ability]:
    """By task's name: of a case without a pass of its own, of a task with one; what is known already stays as it is."""
    if isinstance(asked, Mapping):
        return dict(asked)
    if isinstance(asked, Case):
        return {asked.task.name: Ability.of_case(asked)}
    return {asked.name: ability(model, asked)}


def ability(model: Model, task: PromptTask, *, batch_size: int = 64) -> Ability:
    """`Ability` on a task's clean prompts; one pass over them."""
    return Ability.of(end_logits(model, task, batch_size=batch_size), task.to("cpu"))


@torch.no_grad()
def end_logits(model: Model, task: PromptTask, *, batch_size: int = 64) -> Float[Tensor, "batch d_vocab"]:
    """Logits at END of a task's clean prompts, on the CPU; one pass over them."""
    parts = []
    for first in range(0, len(task), batch_size):
        part = task.select(slice(first, first + batch_size))
        logits = model.run(part.clean).logits
        assert logits is not None  # no `stop`
        parts.append(metrics.answer_logits(logits, part).cpu())
    return torch.cat(parts)


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
