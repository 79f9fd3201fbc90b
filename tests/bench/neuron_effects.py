"""Every neuron of a GPT-2-small shape on 16 prompts: what it costs to score all of them and to remove the best."""

from __future__ import annotations

import beartype  # noqa: F401  (before nnsight)

# isort: split
from collections.abc import Callable

import numpy as np
from attributing import gpt2_small, task

import interp
from interp.measurement.neuron_effects import NeuronEffects
from interp.model import Model
from interp.patching.case import Case
from interp.results.stats import spearman

PROMPTS, TOKENS, BEST = 16, 16, 256


def model() -> Model:
    """The shape with random weights."""
    return interp.load(gpt2_small())


def forward(own: Model, *, tokens: int = TOKENS) -> Callable[[], np.ndarray]:
    """A plain pass of all prompts."""
    batch = task(PROMPTS, tokens).clean
    return lambda: own.run(batch).logits.detach().numpy()  # type: ignore[union-attr]


def scores(own: Model, *, tokens: int = TOKENS) -> Callable[[], np.ndarray]:
    """First-order and direct effects of all neurons, [two neuron]."""
    given = task(PROMPTS, tokens)

    def run() -> np.ndarray:
        effects = NeuronEffects.of(Case.of(own, given))
        return np.stack([effects.first_order("mean").mean(0), effects.direct().mean(0)])

    return run


def removal(own: Model, *, tokens: int = TOKENS, best: int = BEST) -> Callable[[], np.ndarray]:
    """First order and exact removal of the best by first order, [two neuron]."""
    given = task(PROMPTS, tokens)
    effects = NeuronEffects.of(Case.of(own, given))
    first = effects.first_order("mean").mean(0)
    order = np.argsort(-np.abs(first), kind="stable")[:best]
    neurons = [effects.names[i] for i in order]
    return lambda: np.stack([first[order], effects.removal(neurons, "mean").mean(0)])


def agreement(pairs: np.ndarray) -> float:
    """Rank correlation of two rows."""
    return spearman(*pairs).rho
