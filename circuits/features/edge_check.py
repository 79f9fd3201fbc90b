"""Edges of an attribution graph checked by intervention: the source is taken out, the change of the target measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from circuits.features.graph_files import AttributionGraph
from circuits.features.local import LocalModel
from circuits.features.own_neurons import neurons
from circuits.features.sources import Sources, Target
from interp.dictionaries import Dictionaries, Dictionary
from interp.errors import SchemaError
from interp.model import Model
from interp.results.stats import spearman
from interp.sites import Site

CLASSES = 4
"""Classes of strength, within which targets are exchanged for the control."""


@dataclass(frozen=True, eq=False)
class EdgeCheck:
    """What interventions say of edges.

    Attributes:
        table: a row for each edge: source, target, weight; `predicted` = -weight; `held`, `model`: change of the target
            when the source is 0, in the held model and in the model itself; `random`: change in the held model at
            another edge's target of the same strength class.
        held, model, random: Spearman's rank correlation of `predicted` with each; nan where one does not vary.
    """

    table: pd.DataFrame
    held: float
    model: float
    random: float

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<EdgeCheck: {len(self.table)} edges; rank correlation {self.held:.3f} held, {self.model:.3f} in the "
            f"model, {self.random:.3f} random>"
        )


@torch.no_grad()
def check_edges(
    model: Model,
    graph: AttributionGraph,
    dictionary: Dictionary | Dictionaries | None = None,
    *,
    n: int = 256,
    batch: int = 32,
    seed: int = 0,
) -> EdgeCheck:
    """Take the source of each of `n` edges out at its token, others held, and measure the target before its activation.

    In the held model that is the direct effect, which the weight predicts; in the model itself (`model`) patterns,
    divisors and gates follow. The control exchanges targets between edges of about the same |weight|.

    Args:
        model: of the graph.
        graph: as `attribution_graph` gives it.
        dictionary: the one it was made with.
        n: edges, drawn at random where there are more.
        batch: sources taken out in a pass, one in each row.
        seed: of the draw and of the control.

    Raises:
        SchemaError: a graph without edges, or of another prompt, model or dictionary.
    """
    if not len(graph.edges.weight):
        raise SchemaError("a graph without edges; prune it less, or keep more edges")
    local = LocalModel(model, neurons(model) if dictionary is None else dictionary, graph.provenance["ids"])
    sources = Sources(local)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(graph.edges.weight))[:n])
    e = graph.edges.where(torch.from_numpy(np.isin(np.arange(len(graph.edges.weight)), chosen)))
    predicted = -e.weight.double().numpy()
    other = exchanged(np.abs(predicted), e.target.numpy(), rng)
    numbers = sources.numbers(graph.nodes).cpu()
    ends = {int(t): None for t in e.target}
    places = dict(zip(ends, sources.targets([graph.nodes[t] for t in ends]), strict=True))
    frame = pd.DataFrame(
        {
            "source": [graph.nodes[i].name for i in e.source.tolist()],
            "target": [graph.nodes[i].name for i in e.target.tolist()],
            "weight": -predicted,
            "predicted": predicted,
        }
    )
    frame["held"], frame["model"], frame["random"] = 0.0, 0.0, 0.0
    owners = numbers[e.source]
    for held in (True, False):
        base = local.run(local.clean_values(1), held=held)
        for some in owners.unique().split(batch):
            read = local.run(_without(sources, some.to(model.device)), held=held)
            for row, number in enumerate(some.tolist()):
                for i in (owners == number).nonzero()[:, 0].tolist():
                    target = places[int(e.target[i])]
                    frame.loc[i, "held" if held else "model"] = _change(read, base, row, target)
                    if held:
                        frame.loc[i, "random"] = _change(read, base, row, places[int(other[i])])
    frame.loc[other == e.target.numpy(), "random"] = np.nan
    ranks = {name: rank_correlation(predicted, frame[name].to_numpy()) for name in ("held", "model", "random")}
    return EdgeCheck(frame, **ranks)


def _without(sources: Sources, some: Tensor) -> dict[Site, Tensor]:
    """What stands at the cuts with one source taken out in each row."""
    local, pos = sources.local, sources.positions(some)
    values = {site: x.clone() for site, x in local.clean_values(len(some)).items()}
    rows = torch.arange(len(some), device=some.device)
    for site, x in values.items():
        x[rows, pos] -= sources.vectors(some, site)
    return values


def _change(read: dict[Site, Tensor], base: dict[Site, Tensor], row: int, target: Target) -> float:
    site, pos, r = target
    return float((read[site][row, pos] - base[site][0, pos]).float() @ r)


def exchanged(size: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another edge's target for each edge, of the same class of strength; its own where the class has no other."""
    out = target.copy()
    for group in np.array_split(np.argsort(size, kind="stable"), CLASSES):
        for i in group:
            others = target[group][target[group] != target[i]]
            if len(others):
                out[i] = rng.choice(others)
    return out


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of the pairs in which b is a number."""
    return spearman(a[np.isfinite(b)], b[np.isfinite(b)], least=3).rho
