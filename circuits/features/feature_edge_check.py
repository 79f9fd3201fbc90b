"""Edges of a feature circuit checked by intervention: the source is moved, the change of the target measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.edge_check import EdgeCheck, exchanged, rank_correlation
from circuits.features.node_changes import Portion, portions
from circuits.features.node_edges import METRIC, Cut, Sources, node_value
from circuits.features.node_effects import Nodes, gradients
from circuits.features.node_graph import METRIC_NAME, FeatureCircuit, sites_of
from circuits.features.node_sites import Given, NodeSite
from interp.edits import Edit
from interp.errors import SchemaError
from interp.model import Model, with_edits
from interp.patching.case import Case
from interp.patching.places import places
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric


@with_edits
def check_feature_edges(
    model: Model,
    task: PromptTask,
    circuit: FeatureCircuit,
    *,
    dictionaries: Given = None,
    n: int = 200,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> EdgeCheck:
    """Move the source of each of `n` edges to the baseline, all other nodes held, and measure the target.

    An edge's weight is a slope times the move. Measured is (dm/dd) (d after the move - d), summed over tokens and
    averaged over prompts: in a pass with every other node held at its clean value (`held`, the direct effect, which the
    weight approximates to first order), and in the model itself, where nodes in between follow (`model`). The control
    exchanges targets between edges of about the same |weight|.

    Args:
        model: of the circuit.
        task: the prompts that it was found on.
        circuit: as `feature_circuit` gives it.
        dictionaries: those that it was found with.
        n: edges, drawn at random where there are more.
        metric: as the circuit's.
        batch_size: prompts at a time.
        seed: of the draw and of the control.
        edits: changes under which the model runs.

    Returns:
        A row for each edge; `predicted` is its weight.

    Raises:
        SchemaError: a circuit without edges, from a file, or of other dictionaries.
    """
    if not len(circuit.edges):
        raise SchemaError("a circuit without edges; take more nodes, or a lower threshold")
    sites, nodes = sites_of(model, circuit, dictionaries), circuit.chosen()
    case = Case.of(model, task, metric=metric)
    at = places(model, case.task, circuit.option("positions", None))
    rng = np.random.default_rng(seed)
    edges = circuit.edges.iloc[np.sort(rng.permutation(len(circuit.edges))[:n])].reset_index(drop=True)
    number = {name: i for i, name in enumerate(circuit.nodes["name"])} | {METRIC_NAME: METRIC}
    source, target = (edges[c].map(number).to_numpy(dtype=int) for c in ("source", "target"))
    weight = edges["weight"].to_numpy(dtype=float)
    other = exchanged(np.abs(weight), target, rng)
    changes = np.zeros((len(edges), 3))
    for portion in portions(case, sites, baseline=circuit.option("baseline", ""), batch_size=batch_size):
        gradients(
            portion,
            sites,
            method=circuit.option("attribution", ""),
            steps=circuit.option("steps", 1),
            rule=circuit.option("rule", ""),
        )
        changes += _changes(portion, sites, nodes, Sources(portion, sites, nodes, at), source, target, other)
    frame = edges[["source", "target", "weight"]].assign(predicted=weight)
    frame[["held", "model", "random"]] = changes / len(case)
    frame.loc[other == target, "random"] = np.nan
    ranks = {c: rank_correlation(weight, frame[c].to_numpy(dtype=float)) for c in ("held", "model", "random")}
    return EdgeCheck(pd.DataFrame(frame), pd.DataFrame([{"size": 1.0, "sources": "all", "n": len(frame), **ranks}]))


@torch.no_grad()
def _changes(
    portion: Portion,
    sites: tuple[NodeSite, ...],
    nodes: Nodes,
    sources: Sources,
    source: np.ndarray,
    target: np.ndarray,
    other: np.ndarray,
) -> Float[np.ndarray, "edge 3"]:
    """Of each edge, summed over the portion's prompts: held, in the model itself, and held at the control's target."""
    out = np.zeros((len(source), 3))
    before = _Values(Cut(portion.case, sites, portion.acts), portion, nodes, sources.masks)
    for node in np.unique(source):
        values, own = sources.moved(int(node), nodes), np.flatnonzero(source == node)
        i = int(nodes.site[node])
        held = _Values(Cut(portion.case, sites, values), portion, nodes, sources.masks)
        free = _Values(Cut(portion.case, sites, values, only=i), portion, nodes, sources.masks)
        for edge in own:
            for column, after, to in ((0, held, target), (1, free, target), (2, held, other)):
                t = int(to[edge])
                if column < 2 or t == METRIC or int(nodes.site[t]) > i:  # what stands before is not changed
                    out[edge, column] = float((after[t] - before[t]).sum())
    return out


class _Values(Mapping[int, Tensor]):
    """(dm/dd) d of targets on each prompt of one pass, made when they are asked for."""

    def __init__(self, cut: Cut, portion: Portion, nodes: Nodes, masks: list[Tensor]) -> None:
        self.cut, self.portion, self.nodes, self.masks = cut, portion, nodes, masks
        self.features: dict[int, Tensor] = {}
        self.known: dict[int, Tensor] = {}

    def __getitem__(self, target: int) -> Float[Tensor, " batch"]:
        if target not in self.known:
            self.known[target] = self.cut.metric() if target == METRIC else self._node(target)
        return self.known[target]

    def __iter__(self):
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    def _node(self, target: int) -> Float[Tensor, " batch"]:
        i, feature = int(self.nodes.site[target]), int(self.nodes.feature[target])
        if i not in self.features:
            self.features[i] = self.cut.features(i)
        return node_value(self.cut, self.portion, i, self.features[i], feature, self.masks[self.nodes.place[target]])
