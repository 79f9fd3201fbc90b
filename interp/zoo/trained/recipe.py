"""`Recipe`: model, data, loss and schedule of a training run, as a value. `train` runs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

M = TypeVar("M", bound=torch.nn.Module)
B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)

Losses = tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]
"""What is minimised, and its parts by name, in nats, for the log and for what comes next in the data."""


@runtime_checkable
class TrainingBatch(Protocol):
    """Data of one step of a language model."""

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Input of the model."""
        ...


@runtime_checkable
class Data(Protocol[B_co]):
    """A stream of batches, fixed by the recipe; what it has of a memory is saved with an interrupted run."""

    def batch(self, step: int) -> B_co:
        """The batch of a step; asked for once, in order."""
        ...

    def advance(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """Take note of the losses of the step before `step`: a curriculum goes on when they are low enough."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The memory, in values that `torch.load(weights_only=True)` reads."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a memory."""
        ...


def next_token_logits(model: Any, batch: TrainingBatch) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of a language model of transformers."""
    return model(batch.tokens, use_cache=False).logits


@dataclass(frozen=True)
class Recipe(Generic[M, B]):
    """Everything that fixes a training run, seed included: on one machine the same recipe gives the same weights."""

    facts: Mapping[str, Any]
    """Plain values that name the run; a saved run is gone on with where they are the same."""
    steps: int
    model: Callable[[], M]
    """The untrained model, in float32."""
    data: Callable[[float], Data[B]]
    """The stream as it stands after a fraction of the run, 0.0 at the start, if every stage takes all its time."""
    loss: Callable[[M, Any, B], Losses]
    """(model, outputs, batch) -> what is minimised."""
    schedule: Callable[[int], float]
    """Learning rate of a step."""
    weight_decay: float
    """Of matrices; gains are not decayed."""
    bfloat16: bool = False
    """Forward pass in bfloat16."""
    checkpoints: tuple[int, ...] = ()
    """Steps before which the model is saved, in `step-NNNNN`; the last may be `steps`."""
    watch: Callable[[M], str] | None = None
    """What the log says of the model in eval mode."""
    publish: Callable[[Path, float], str] | None = None
    """(folder with the trained weights, minutes of training) -> card; writes beside the weights what belongs there."""
    outputs: Callable[[M, Any], Any] = next_token_logits
    """(model, batch) -> what the loss is of: logits, of a language model."""
    optimizer: Callable[[M], torch.optim.AdamW] | None = None
    """AdamW with no decay of gains unless said."""
    after: Callable[[M, torch.optim.AdamW, int, B], None] | None = None
    """(model, optimizer, step, batch): what is done after each update, such as scaling weights to unit norm."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a run of a recipe that its name, a seed and a number of steps fix."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the recipe's own number")
    # One thread: the order of sums, hence the weights, does not depend on the number of cores.
    parser.set_defaults(threads=1, minutes=None)


def from_arguments(
    recipe: Callable[..., Recipe[Any, Any]], arguments: argparse.Namespace, facts: Mapping[str, Any] | None
) -> Recipe[Any, Any]:
    """What `recipe(name, seed=, steps=)` makes of a command line; `facts` of a run go before its options."""
    options = vars(arguments) if facts is None else facts
    return recipe(options["name"], seed=options["seed"], steps=options["steps"])
