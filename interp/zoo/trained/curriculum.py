"""The recipe of the rich models, `default` and `sibling`: copying first, then everything.

Mixed from the start, copying and retrieval are not learned at all. A stage ends when its loss is low enough.
What a step sees depends on the seed, the step and the stage alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from interp.zoo.trained.penalty import head_penalty
from interp.zoo.trained.recipe import Losses, Recipe
from interp.zoo.trained.skills import CONTEXT, SKILLS, export
from interp.zoo.trained.skills.judge import skill_accuracy
from interp.zoo.trained.skills.plan import (
    PENALTY_UNTIL,
    REST,
    SIZES,
    Options,
    Progress,
    checkpoint_steps,
    learning_rate,
    stage_after,
)
from interp.zoo.trained.skills.report import card_text, skill_scores
from interp.zoo.trained.skills.rows import GROUPS, LessonRows, batch, skill_losses
from interp.zoo.trained.skills.vocabulary import index, tokenizer
from interp.zoo.trained.untrained import untrained

ITEMS = 256
"""Held-out items for each skill of the card."""


def build(size: str, *, seed: int) -> LlamaForCausalLM:
    """The untrained model, in float32."""
    return untrained(SIZES[size], n_tokens=len(index()), context=CONTEXT, seed=seed)


@dataclass(frozen=True)
class Lesson:
    """One batch."""

    rows: LessonRows
    penalty: float
    """Weight of `head_penalty` at this step."""

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Input of the model."""
        return self.rows.tokens


class Lessons:
    """Batches of the stage that the run is in; the memory is where in the curriculum it is."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self.options, self.progress = options, progress

    def batch(self, step: int) -> Lesson:
        """Heads are penalised in the mixed stage, until `PENALTY_UNTIL`."""
        options, stage = self.options, self.progress.stage_at(step)
        rows = batch(Random(f"{options.seed} {step}"), stage, n_tokens=options.tokens_per_step)
        has_penalty = stage.mixed and step / options.steps < PENALTY_UNTIL
        return Lesson(rows, options.penalty if has_penalty else 0.0)

    def advance(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """A stage ends when the loss on the repeats is low enough, or its time is up."""
        self.progress.advance(step / self.options.steps, parts["repeats"].item())

    def state_dict(self) -> dict[str, Any]:
        """Stage, and the running loss in it."""
        return vars(self.progress)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in a stage."""
        self.progress = Progress(**state)


def lesson_loss(model: LlamaForCausalLM, logits: Float[Tensor, "batch pos d_vocab"], lesson: Lesson) -> Losses:
    """Mean over the skills of their mean losses in nats, a little of the other tokens' loss, and the penalty."""
    losses, counts = skill_losses(logits, lesson.rows)
    present = (counts[1:] > 0).sum().clamp(min=1)
    loss = losses[1:].sum() / present + REST * losses[0]
    if lesson.penalty:
        loss = loss + lesson.penalty * head_penalty(model)
    return loss, dict(zip(GROUPS, losses.detach(), strict=True))


def accuracies(model: LlamaForCausalLM, *, n: int = 16) -> str:
    """Held-out accuracy of every skill on a few items."""
    scores = {name: skill_accuracy(model, None, name, n=n, seed=1)["accuracy"] for name in SKILLS}
    return "  ".join(f"{name} {score:.2f}" for name, score in scores.items())


def recipe(options: Options, *, checkpoints: int = 0, items: int = ITEMS) -> Recipe[LlamaForCausalLM, Lesson]:
    """Recipe of a rich model, with `checkpoints` folders along the way, dense early."""
    return Recipe(
        facts=vars(options),
        steps=options.steps,
        model=partial(build, options.size, seed=options.seed),
        data=lambda progress: Lessons(options, Progress(stage=stage_after(progress))),
        loss=lesson_loss,
        schedule=partial(learning_rate, options=options),
        weight_decay=options.weight_decay,
        bfloat16=options.bfloat16,
        checkpoints=checkpoint_steps(checkpoints, steps=options.steps),
        watch=accuracies,
        publish=partial(_publish, options, checkpoints, items),
    )


def _publish(options: Options, checkpoints: int, items: int, folder: Path, minutes: float) -> str:
    fast = tokenizer(max_length=CONTEXT)
    fast.save_pretrained(folder)
    export.write_tasks(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)
    scores = skill_scores(model.eval(), fast, n=items)
    flags = f"--steps {options.steps} --seed {options.seed}"
    flags += f" --tokens-per-step {options.tokens_per_step} --penalty {options.penalty}"
    flags += f" --checkpoints {checkpoints}" if checkpoints else ""
    command = f"python -m interp.zoo.trained.train {options.size} {flags}{' --bfloat16' * options.bfloat16}"
    return card_text(model, scores, title=options.size, run=vars(options), minutes=minutes, command=command)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a training run."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to go on with")
    parser.add_argument("--seed", type=int, default=0)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=Options.steps)
    length.add_argument("--minutes", type=float, help="as many steps as fit, measured before the first")
    parser.add_argument("--checkpoints", type=int, default=0, help="folders step-NNNNN along the way, dense early")
    parser.add_argument("--penalty", type=float, default=0.0, help="gathers each role in few heads")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="the weights depend on it in the last bits")
    parser.add_argument("--tokens-per-step", type=int, default=Options.tokens_per_step)
    parser.add_argument("--items", type=int, default=ITEMS, help="held-out items for each skill of the card")


def from_arguments(arguments: argparse.Namespace, facts: Mapping[str, Any] | None) -> Recipe[LlamaForCausalLM, Lesson]:
    """The recipe that a command line names; `facts` of a run go before its options."""
    own = ("seed", "steps", "tokens_per_step", "penalty", "bfloat16")
    options = {"size": arguments.name, **{key: getattr(arguments, key) for key in own}} if facts is None else facts
    return recipe(Options(**options), checkpoints=arguments.checkpoints, items=arguments.items)
