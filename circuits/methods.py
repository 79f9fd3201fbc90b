"""The ways to find a circuit that `find.circuit` and the scoreboard know by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from circuits.attribution.edge_gradients import edge_attribution
from circuits.graph.graph import Graph
from circuits.patching.paths import all_edges_exact
from circuits.search._acdc import acdc_sweep
from interp.model import Model
from interp.tasks import PromptTask

THRESHOLDS = (0.00001, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Of ACDC's sweep, in nats of KL. A head that only makes an improbable token less probable hardly changes KL: the
lowest are for its edges, and still far above what rounding does."""

Run = Callable[[Model, PromptTask, str | None, int, int], Graph]
"""(model, task, metric, batch size, seed) -> a score for every edge, or a circuit."""


@dataclass(frozen=True)
class Method:
    """A way to find a circuit.

    Attributes:
        costs: passes, in words. run: the scores.
        chooses: it gives a circuit, not scores from which one is chosen by size.
    """

    costs: str
    run: Run
    chooses: bool = False


def _attributed(method: str, *, steps: int = 5) -> Run:
    def run(model: Model, task: PromptTask, metric: str | None, batch_size: int, seed: int) -> Graph:
        return edge_attribution(model, task, method=method, metric=metric, steps=steps, batch_size=batch_size).graph

    return run


def _exact(model: Model, task: PromptTask, metric: str | None, batch_size: int, seed: int) -> Graph:
    return all_edges_exact(model, task, metric=metric)


def _swept(model: Model, task: PromptTask, metric: str | None, batch_size: int, seed: int) -> Graph:
    return acdc_sweep(model, task, thresholds=THRESHOLDS, metric=metric or "kl", seed=seed).graph


METHODS: Mapping[str, Method] = {
    "exact": Method("a share of a forward pass for every edge", _exact),
    "eap": Method("2 forward, 1 backward", _attributed("eap")),
    "eap-ig": Method("7 forward, 5 backward", _attributed("eap-ig")),
    "eap-ig-activations": Method("5 (2 layers + 1), half of each", _attributed("eap-ig-activations")),
    "clean-corrupted": Method("2 forward, 2 backward", _attributed("clean-corrupted")),
    "acdc": Method(f"a share of a forward pass for every edge and each of {len(THRESHOLDS)} thresholds", _swept),
}
"""By name; `edge_attribution`, `acdc` and `all_edges_exact` have more options."""
