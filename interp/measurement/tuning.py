"""Tuning of a few weights: chosen entries of matrices are trained, all others stay, and the model is not touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.edits import Edit
from interp.model import Model
from interp.shapes import brief
from interp.weights.changes import Matrix, WeightMatrices
from interp.zoo.trained.loop import TrainingRun, update
from interp.zoo.trained.recipe import Recipe

Loss = Callable[[Sequence[Edit]], Tensor]
"""Edits -> what is minimised, as a scalar that takes gradients."""


@dataclass(frozen=True, eq=False)
class Entries:
    """Some entries of some matrices.

    Attributes:
        index: of each matrix that has any, its flat entries, in order.
    """

    index: Mapping[Matrix, Int[Tensor, " entry"]]

    __repr__ = brief

    def __len__(self) -> int:
        return sum(len(x) for x in self.index.values())

    @classmethod
    def of(cls, masks: Mapping[Matrix, Bool[Tensor, "..."]]) -> Entries:
        """Those that are True."""
        return cls({name: mask.flatten().nonzero()[:, 0] for name, mask in masks.items() if bool(mask.any())})

    @classmethod
    def largest(cls, sizes: Mapping[Matrix, Float[Tensor, "..."]], k: int) -> Entries:
        """The k entries of largest |size| of all matrices together."""
        flat = torch.cat([x.abs().flatten() for x in sizes.values()])
        chosen = torch.zeros(len(flat), dtype=torch.bool)
        chosen[flat.topk(min(k, len(flat))).indices] = True
        parts = chosen.split([x.numel() for x in sizes.values()])
        return cls.of(dict(zip(sizes, parts, strict=True)))

    def matched(self, sizes: Mapping[Matrix, Float[Tensor, "..."]], rng: np.random.Generator) -> Entries:
        """As many entries of each matrix, drawn from its others while there are, so that no size of a layer counts."""
        index = {}
        for name, own in self.index.items():
            free = np.setdiff1d(np.arange(sizes[name].numel()), own.numpy())
            pool = free if len(free) >= len(own) else np.arange(sizes[name].numel())
            index[name] = torch.from_numpy(np.sort(rng.choice(pool, len(own), replace=False)))
        return Entries(index)

    def filled(
        self, like: Mapping[Matrix, Float[Tensor, "..."]], values: Float[Tensor, " entry"]
    ) -> dict[Matrix, Float[Tensor, "..."]]:
        """Changes with these values at the entries, in order, and zero elsewhere."""
        parts = values.split([len(x) for x in self.index.values()])
        return {
            name: torch.zeros(like[name].numel()).index_put((at,), part).view(like[name].shape)
            for (name, at), part in zip(self.index.items(), parts, strict=True)
        }


class _Values(nn.Module):
    """What is trained: a number for each entry."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(n))


class _NoData:
    """A loss that brings its own prompts."""

    def batch(self, step: int) -> int:
        return step

    def advance(self, step: int, parts: Mapping[str, Tensor]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def tune(
    model: Model, matrices: WeightMatrices, entries: Entries, loss: Loss, *, steps: int, learning_rate: float
) -> dict[Matrix, Float[Tensor, "..."]]:
    """Changes of the entries that AdamW (no decay, a linear fall of its rate to zero) finds to make a loss small.

    The model is as before; `matrices.edits(changes)` are the edits that make it the tuned one.

    Args:
        model: any backend that can run with gradients.
        matrices: of the model.
        entries: what is trained.
        loss: edits -> scalar; it runs the model with `edits` and `gradients=True`.
        steps: updates.
        learning_rate: at the start.
    """
    recipe = Recipe[Any, Any](
        facts={},
        steps=steps,
        model=lambda: _Values(len(entries)),
        data=lambda progress: _NoData(),
        loss=lambda _, edits, step: (value := loss(edits), {"loss": value}),
        schedule=lambda step: learning_rate * (1 - step / steps),
        weight_decay=0.0,
        outputs=lambda own, step: matrices.edits(entries.filled(matrices.values, own.values)),
    )
    run = TrainingRun.begin(recipe)
    with torch.enable_grad(), model.frozen():
        while run.step < steps:
            update(run)
    return entries.filled(matrices.values, run.model.values.detach())
