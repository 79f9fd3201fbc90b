"""Train a shipped zoo model from a seed: `python -m interp.zoo.trained.train NAME --out DIR`.

The one training loop. What a model learns, from what and at which rate is a `Recipe`: `interp.zoo.trained.curriculum`
makes those of `default` and `sibling`, which are taught many skills, `interp.zoo.trained.copying` those of models that
learn to copy. An interrupted run goes on where it was: the same command continues from `DIR/training.pt`, and ends with
the same weights.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.zoo.trained import copying, curriculum
from interp.zoo.trained.plan import COPYING
from interp.zoo.trained.recipe import B, Data, M, Recipe
from interp.zoo.trained.skills.plan import SIZES

log = logging.getLogger(__name__)

STATE = "training.pt"
"""What an interrupted run leaves in its folder."""


def optimizer_of(model: PreTrainedModel, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; gains are not decayed. The learning rate is set at each step."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=weight_decay)


@dataclass
class TrainingRun(Generic[M, B]):
    """A training run in memory: everything that an interrupted one needs to go on."""

    recipe: Recipe[M, B]
    model: M
    optimizer: torch.optim.AdamW
    data: Data[B]
    step: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Time they took."""

    @classmethod
    def begin(cls, recipe: Recipe[M, B], *, progress: float = 0.0) -> TrainingRun[M, B]:
        """An untrained model, and the data as they stand after a fraction `progress` of the run."""
        model = recipe.model().train()
        return cls(recipe, model, optimizer_of(model, weight_decay=recipe.weight_decay), recipe.data(progress))

    def save(self, path: Path) -> None:
        """Write the state; a crash in between leaves the one before."""
        state = {key: getattr(self, key).state_dict() for key in ("model", "optimizer", "data")}
        state |= {"facts": dict(self.recipe.facts), "step": self.step, "seconds": self.seconds}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def restore(self, path: Path) -> None:
        """Go on from what was saved; ValueError where that is another run."""
        state = torch.load(path, weights_only=True)
        if state["facts"] != self.recipe.facts:
            raise ValueError(f"{path} belongs to another run: {state['facts']}, not {dict(self.recipe.facts)}")
        for key in ("model", "optimizer", "data"):
            getattr(self, key).load_state_dict(state[key])
        self.step, self.seconds = state["step"], state["seconds"]


def update(run: TrainingRun[M, B]) -> Mapping[str, Tensor]:
    """One update of the weights; returns the parts of the loss, in nats."""
    recipe, batch = run.recipe, run.data.batch(run.step)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
        logits = run.model(batch.tokens, use_cache=False).logits
    loss, parts = recipe.loss(run.model, logits, batch)
    for group in run.optimizer.param_groups:
        group["lr"] = recipe.schedule(run.step)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    return parts


def train(
    recipe: Recipe[M, B], *, out: Path, log_every: float = 120.0, stop_after: int | None = None
) -> tuple[M, float]:
    """Train, or go on from the state in the folder `out`; returns the model in eval mode and the minutes it took.

    Every `log_every` seconds the losses are logged and the state is saved. `stop_after` ends the run at that step, as
    an interruption would, with the state saved.
    """
    out.mkdir(parents=True, exist_ok=True)
    run, state = TrainingRun.begin(recipe), out / STATE
    if state.is_file():
        run.restore(state)
    last_report = run.seconds
    while run.step < min(recipe.steps, stop_after or recipe.steps):
        start = time.perf_counter()
        _checkpoint(run, out)
        parts = update(run)
        run.data.advance(run.step, parts)
        run.seconds += time.perf_counter() - start
        if run.seconds - last_report > log_every:
            _report(run, parts)
            run.save(state)
            last_report = run.seconds
    run.save(state)
    _checkpoint(run, out)
    return run.model.eval(), run.seconds / 60


def _checkpoint(run: TrainingRun[M, B], out: Path) -> None:
    if run.step in run.recipe.checkpoints:
        save_half(run.model, out / f"step-{run.step:05d}")


def _report(run: TrainingRun[M, B], parts: Mapping[str, Tensor]) -> None:
    log.info("step %d/%d  %.1f min", run.step, run.recipe.steps, run.seconds / 60)
    log.info("  loss: %s", "  ".join(f"{name} {x.item():.2f}" for name, x in parts.items() if x))
    if run.recipe.watch:
        log.info("  accuracy: %s", run.recipe.watch(run.model.eval()))
        run.model.train()


def save_half(model: PreTrainedModel, folder: Path) -> None:
    """A Hugging Face folder in float16; the model in memory stays as it is."""
    deepcopy(model).half().save_pretrained(folder)
    # safetensors writes a file that its owner alone can read; a package has to be readable by all.
    (folder / "model.safetensors").chmod(0o644)


def steps_for(minutes: float, recipe: Recipe[M, B]) -> int:
    """Number of steps that fit into `minutes`, by the time of a few throw-away steps at the end of the recipe."""
    run = TrainingRun.begin(recipe, progress=1.0)
    run.step = max(0, recipe.steps - 6)
    times = []
    while run.step < recipe.steps:
        start = time.perf_counter()
        update(run)
        times.append(time.perf_counter() - start)
    return max(1, int(minutes * 60 / sorted(times)[len(times) // 2]))


def train_and_save(recipe: Recipe[M, B], out: Path) -> str:
    """Train or go on, save in half precision, measure what was saved; returns the card written from it."""
    model, minutes = train(recipe, out=out)
    save_half(model, out)
    card = recipe.publish(out, minutes) if recipe.publish else ""
    (out / "README.md").write_text(card)
    (out / STATE).unlink()
    return card


def recipe_of(arguments: argparse.Namespace) -> Recipe[Any, Any]:
    """The recipe that a command line names; where its folder holds the state of a run, the recipe of that run."""
    family = curriculum if arguments.name in SIZES else copying
    state = arguments.out / STATE
    if state.is_file():
        return family.from_arguments(arguments, torch.load(state, weights_only=True)["facts"])
    recipe: Recipe[Any, Any] = family.from_arguments(arguments, None)
    if arguments.minutes is None:
        return recipe
    return family.from_arguments(arguments, {**recipe.facts, "steps": steps_for(arguments.minutes, recipe)})


def main(arguments: list[str] | None = None) -> None:
    """Train, save in half precision, measure what was saved, write the card from it."""
    parser = argparse.ArgumentParser(prog="python -m interp.zoo.trained.train", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for size in SIZES:
        curriculum.add_arguments(names.add_parser(size, help="taught many skills"))
    for name in COPYING:
        copying.add_arguments(names.add_parser(name, help="taught to copy"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    sys.stdout.write(train_and_save(recipe_of(options), options.out))


if __name__ == "__main__":
    main()
