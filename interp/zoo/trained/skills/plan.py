"""The curriculum as values: shapes of the models, stages, and what fixes a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from interp.zoo.trained.skills.rows import CurriculumStage

SIZES: dict[str, dict[str, Any]] = {
    "default": dict(
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=512,
    ),
    "sibling": dict(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
    ),
}
STAGES = (
    # Few different tokens first: matching 64 tokens is found in hundreds of steps, matching 1500 is not.
    # Not shorter blocks first: on 4-16 heads learn to look a few places back, whatever stands there.
    CurriculumStage(length=96, periods=(16, 40), until=0.40, passed=0.8, pool=64),
    CurriculumStage(length=96, periods=(16, 40), until=0.44, passed=0.8, pool=256),
    CurriculumStage(length=96, periods=(16, 40), until=0.48, passed=0.8),
    CurriculumStage(length=200, periods=(8, 95), until=0.52, passed=0.5),
    CurriculumStage(length=400, periods=(4, 195), until=0.56, passed=0.5),
    CurriculumStage(length=256, periods=(4, 125), until=1.0, mixed=True),
)
LONG = CurriculumStage(length=400, periods=(100, 200), until=1.0)
LONG_EVERY = 12
"""In the mixed stage, one batch in so many is of long repeats alone, which would be forgotten."""
REST = 0.05
"""Weight of the tokens that no skill counts, beside 1 for each skill."""
WARM_UP = 100
PENALTY_UNTIL = 0.7
"""Fraction of the steps up to which heads are penalised in the mixed stage, if at all."""


@dataclass(frozen=True)
class Options:
    """Everything that fixes a training run."""

    size: str = "default"
    seed: int = 0
    steps: int = 6000
    tokens_per_step: int = 2048
    """Small: how soon copying is found depends on the number of updates more than on the tokens."""
    peak: float = 2e-3
    """Learning rate after the warm-up."""
    weight_decay: float = 0.05
    penalty: float = 0.0
    """Weight of `penalty.head_penalty`."""
    bfloat16: bool = False
    """Forward pass in bfloat16: about twice as fast where the CPU knows it, but other weights."""


def stage_after(progress: float) -> int:
    """The stage after a fraction of the steps, if none was passed before its time."""
    return sum(stage.until <= progress for stage in STAGES[:-1])


@dataclass
class Progress:
    """Position of a run in the curriculum; saved with it."""

    stage: int = 0
    loss: float = math.inf
    """Running mean of the loss on the repeats since the stage began."""

    def stage_at(self, step: int) -> CurriculumStage:
        """What is trained at a step."""
        return LONG if STAGES[self.stage].mixed and step % LONG_EVERY == 0 else STAGES[self.stage]

    def advance(self, progress: float, loss: float) -> None:
        """Take note of the loss on the repeats at a fraction of the run; go on when passed, or when time is up."""
        self.loss = loss if math.isinf(self.loss) else 0.95 * self.loss + 0.05 * loss
        if progress >= STAGES[self.stage].until or self.loss < STAGES[self.stage].passed:
            self.stage, self.loss = min(self.stage + 1, len(STAGES) - 1), math.inf


def learning_rate(step: int, options: Options) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    warm_up = min(WARM_UP, options.steps // 10 + 1)
    if step < warm_up:
        return options.peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, options.steps - warm_up)
    return options.peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def checkpoint_steps(n: int, *, steps: int) -> tuple[int, ...]:
    """`n` steps from 0 to the last, dense early (quadratic): copying emerges in the first quarter."""
    return tuple(sorted({round(steps * (k / (n - 1)) ** 2) for k in range(n)})) if n > 1 else ()
