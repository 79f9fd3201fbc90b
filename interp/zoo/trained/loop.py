"""The one training loop: it runs a `Recipe`, saves its state, and goes on where an interrupted run was."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, cast

import torch
from torch import Tensor
from torch.nn import Module

from interp.errors import first_line
from interp.files import atomic_write, write_folder
from interp.zoo.trained.recipe import B, Data, M, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

STATE = "training.pt"
"""What an interrupted run leaves in its folder."""


def optimizer_of(model: Module, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; gains are not decayed. The learning rate is set at each step."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=weight_decay)


def read_state(path: Path) -> dict[str, Any]:
    """What `TrainingRun.save` wrote; ValueError where that is something else."""
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # of whatever stands there
        raise ValueError(f"{path} is no state of a training run: {first_line(error):.80}") from error
    if not isinstance(state, dict) or not {"facts", "model", "optimizer", "data", "step", "seconds"} <= state.keys():
        raise ValueError(f"{path} is no state of a training run")
    return state


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
        make = recipe.optimizer or partial(optimizer_of, weight_decay=recipe.weight_decay)
        return cls(recipe, model, make(model), recipe.data(progress))

    def save(self, path: Path) -> None:
        """Write the state; a crash in between leaves the one before."""
        state = {key: getattr(self, key).state_dict() for key in ("model", "optimizer", "data")}
        state |= {"facts": dict(self.recipe.facts), "step": self.step, "seconds": self.seconds}
        atomic_write(path, lambda p: torch.save(state, p), force=True)

    def restore(self, path: Path) -> None:
        """Go on from what was saved; ValueError where that is another run."""
        state = read_state(path)
        if state["facts"] != self.recipe.facts:
            raise ValueError(f"{path} belongs to another run: {state['facts']}, not {dict(self.recipe.facts)}")
        for key in ("model", "optimizer", "data"):
            getattr(self, key).load_state_dict(state[key])
        self.step, self.seconds = state["step"], state["seconds"]


def update(run: TrainingRun[M, B]) -> Mapping[str, Tensor]:
    """One update of the weights; returns the parts of the loss, in nats."""
    recipe, batch = run.recipe, run.data.batch(run.step)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
        outputs = recipe.outputs(run.model, batch)
    loss, parts = recipe.loss(run.model, outputs, batch)
    for group in run.optimizer.param_groups:
        group["lr"] = recipe.schedule(run.step)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    if recipe.after:
        recipe.after(run.model, run.optimizer, run.step, batch)
    run.step += 1
    return parts


def train(
    recipe: Recipe[M, B], *, out: Path, log_every: float = 120.0, stop_after: int | None = None
) -> tuple[M, float]:
    """Train, or go on from the state in the folder `out`; returns the model in eval mode and the minutes it took.

    Every `log_every` seconds the losses are logged and the state is saved. `stop_after` ends the run at that step, as
    an interruption would, with the state saved.
    """
    run, state = TrainingRun.begin(recipe), out / STATE
    out.mkdir(parents=True, exist_ok=True)
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
        save_half(cast(Any, run.model), out / f"step-{run.step:05d}")


def _report(run: TrainingRun[M, B], parts: Mapping[str, Tensor]) -> None:
    log.info("step %d/%d  %.1f min", run.step, run.recipe.steps, run.seconds / 60)
    log.info("  loss: %s", "  ".join(f"{name} {x.item():.2f}" for name, x in parts.items() if x))
    if run.recipe.watch:
        log.info("  accuracy: %s", run.recipe.watch(run.model.eval()))
        run.model.train()


def save_half(model: PreTrainedModel, folder: Path) -> None:
    """A Hugging Face folder in float16; the model in memory stays as it is."""
    write_folder(folder, deepcopy(model).half().save_pretrained, force=True)
