"""`FeatureCircuit`: nodes and edges of a feature circuit as tables with one provenance; saved, read back, drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from circuits.features.feature_graph import FeatureGraph, Node
from circuits.features.influence import Edges
from circuits.features.node_edges import METRIC, Links
from circuits.features.node_effects import ERROR, Nodes
from circuits.features.node_sites import Given, NodeSite, node_sites
from circuits.features.picture import draw as draw_graph
from interp.errors import SchemaError
from interp.model import Model
from interp.patching.places import Place
from interp.results.results import Result, frame
from interp.sites import Site

if TYPE_CHECKING:
    import plotly.graph_objects as go

ANALYSIS = "features"
EXTRA = {
    "site": "str",
    "feature": "Int64",
    "role": "str",
    "token": "str",
    "activation": "float64",
    "source": "str",
    "target": "str",
    "size": "Int64",
    "measured": "float64",
    "residual": "float64",
}
"""Beside the common columns; which variant has which is said at `FeatureCircuit.result`."""
METRIC_NAME = "metric"


@dataclass(frozen=True, eq=False)
class FeatureCircuit:
    """Features and error nodes that a metric depends on, and what each does through each other one.

    Attributes:
        nodes: a row for each node chosen, the largest |effect| first: name, site, layer, feature (-1: the error node),
            position, role, token, effect, se, activation (on clean prompts, at tokens where it changes), active (on how
            many prompts).
        edges: a row for each edge chosen, the largest |weight| first: source, target ("metric" at the end), weight, se.
        sites: a row for each site: site, nodes (that change), effect (sum over them), measured (change of the metric
            with the whole site put to the baseline), residual (the difference), share (of the metric's change).
        ranking: every node that changes, strongest first; None in a circuit that was read from a file.
        places: of nodes in prompts. provenance: of the call.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    sites: pd.DataFrame
    ranking: Nodes | None = None
    places: tuple[Place, ...] = (Place(None),)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def result(self) -> Result:
        """Everything in the columns of every result, by variant.

        node   value: effect of the node `component`, with se, activation; n: prompts on which it changes;
        edge   value: weight from `source` to `target`;
        site   value: sum of the effects at the site `component`; measured and residual; n: its nodes.
        """
        nodes = self.nodes.rename(columns={"name": "component", "effect": "value", "active": "n"})
        edges = self.edges.rename(columns={"weight": "value"})
        edges["component"] = edges["source"] + " -> " + edges["target"]
        sites = self.sites.rename(columns={"effect": "value", "nodes": "n"}).drop(columns="share")
        sites["component"] = sites["site"]
        parts = [t.assign(variant=v) for v, t in (("node", nodes), ("edge", edges), ("site", sites)) if len(t)]
        rows = pd.concat(parts, ignore_index=True).assign(analysis=ANALYSIS, unit=self.provenance.get("metric"))
        return Result(frame(rows, extra=EXTRA), dict(self.provenance))

    @classmethod
    def of(cls, result: Result) -> FeatureCircuit:
        """The circuit in a result, without the ranking that it was chosen from.

        Raises:
            SchemaError: a result of something else.
        """
        table = result.table
        facts = result.provenance.get("scores", result.provenance)  # those of the method, where it was run by its name
        if set(table["analysis"]) != {ANALYSIS}:
            raise SchemaError(f"no feature circuit: a result of {', '.join(sorted(set(table['analysis'])))}")
        by = {name: table[table["variant"] == name].reset_index(drop=True) for name in ("node", "edge", "site")}
        nodes = by["node"].rename(columns={"component": "name", "value": "effect", "n": "active"})[list(NODE_COLUMNS)]
        edges = by["edge"].rename(columns={"value": "weight"})[["source", "target", "weight", "se"]]
        sites = by["site"].rename(columns={"value": "effect", "n": "nodes"})
        sites["share"] = sites["effect"] / facts["change"]
        return cls(nodes, edges, sites[list(SITE_COLUMNS)], provenance=facts)

    @property
    def n_changing(self) -> int:
        """Nodes that change on any prompt, of which these are the strongest."""
        return int(self.sites["nodes"].sum())

    def option(self, name: str, default: Any) -> Any:
        """What `feature_circuit` was called with."""
        call = self.provenance.get("call", {})
        return call.get("passed", {}).get(name, call.get("defaults", {}).get(name, default))

    def chosen(self, n: int | None = None) -> Nodes:
        """The n strongest of all nodes; without n the circuit's own, in the order of `nodes`.

        Raises:
            SchemaError: a circuit from a file, or more nodes than there are.
        """
        if self.ranking is None:
            raise SchemaError("a circuit that was read from a file has no ranking to draw from; find it again")
        count = len(self.nodes) if n is None else n
        if not 0 < count <= len(self.ranking):
            raise SchemaError(f"{count} nodes; expected 1 to {len(self.ranking)}, those that change")
        return self.ranking.take(np.arange(count))

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the tables to `.parquet`, `.json` or `.csv`; `load` reads the first. `force` as in `Result.save`."""
        return self.result().save(path, force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureCircuit:
        """The circuit of a parquet file that `save` wrote.

        Raises:
            SchemaError: not such a file.
        """
        return cls.of(Result.load(path))

    def draw(self, *, title: str = "") -> go.Figure:
        """Figure: sites upwards in the order of the forward pass, places along x, the strongest edges."""
        graph, rows = self._graph()
        figure = draw_graph(graph, title=title or f"Feature circuit of {self.provenance.get('metric', 'a metric')}")
        labels = [rows.get(str(text), str(text)) for text in figure.layout.yaxis.ticktext]  # type: ignore[attr-defined]
        figure.update_yaxes(ticktext=labels)
        figure.for_each_trace(lambda trace: trace.update(name=METRIC_NAME) if trace.name == "logit" else None)
        figure.update_xaxes(title="position or role; all tokens together where nothing is said")
        return figure

    def _graph(self) -> tuple[FeatureGraph, dict[str, str]]:
        """As a graph that is drawn, and how its rows are called."""
        names = list(dict.fromkeys([*self.nodes["name"], METRIC_NAME]))
        at = {name: i for i, name in enumerate(names)}
        sites = {str(s): Site.parse(str(s)) for s in self.nodes["site"].unique()}
        depth = {s: i for i, s in enumerate(sorted(sites, key=lambda s: NodeSite(sites[s]).depth))}
        labels = [_label(row) for _, row in self.nodes.iterrows()]
        columns = list(dict.fromkeys(labels)) or [""]
        drawn = [
            Node(
                "error" if row["feature"] == ERROR else "feature",
                depth[row["site"]],
                columns.index(label),
                str(row["site"]),
                int(row["feature"]),
                float(row["effect"]),
                str(row["name"]),
            )
            for (_, row), label in zip(self.nodes.iterrows(), labels, strict=True)
        ]
        drawn.append(Node("logit", len(depth), len(columns) - 1, METRIC_NAME, 0, 1.0, METRIC_NAME))
        source, target = (torch.tensor([at[x] for x in self.edges[c]], dtype=torch.long) for c in ("source", "target"))
        weight = torch.tensor(self.edges["weight"].to_numpy(dtype=float))
        total = torch.zeros(len(names), dtype=weight.dtype).index_add_(0, target, weight.abs())
        edges = Edges(source, target, weight, total)
        graph = FeatureGraph(tuple(drawn), edges, tuple(columns), "", 1.0, 0.0, 0.0)
        return graph, {f"layer {i}": s for s, i in depth.items()} | {"logits": METRIC_NAME}

    def __repr__(self) -> str:
        """One line."""
        return f"<FeatureCircuit: {len(self.nodes)} nodes, {len(self.edges)} edges at {len(self.sites)} sites>"

    def _repr_html_(self) -> str:
        """Strongest nodes for a notebook."""
        return self.nodes.head(20).to_html(index=False, na_rep="", float_format=lambda x: f"{x:.3g}")


def sites_of(model: Model, circuit: FeatureCircuit, dictionaries: Given) -> tuple[NodeSite, ...]:
    """Where a circuit's nodes stand, with the dictionaries that it was found with.

    Raises:
        SchemaError: they are others.
    """
    sites = node_sites(model, dictionaries, elsewhere=circuit.option("elsewhere", "error"))
    own, known = {str(s.site): s.size for s in sites}, circuit.provenance.get("sites", {})
    if own.keys() != known.keys() or not np.allclose([*own.values()], [*known.values()], rtol=1e-4):
        raise SchemaError(f"these dictionaries are of {', '.join(own)}; the circuit's are others: {', '.join(known)}")
    return sites


NODE_COLUMNS = (
    *("name", "site", "layer", "feature", "position", "role", "token"),
    *("effect", "se", "activation", "active"),
)
SITE_COLUMNS = ("site", "nodes", "effect", "measured", "residual", "share")


def node_table(nodes: Nodes, sites: Sequence[NodeSite], places: Sequence[Place]) -> pd.DataFrame:
    """`FeatureCircuit.nodes` of nodes in the order given."""
    rows = []
    for site, place, feature in zip(nodes.site, nodes.place, nodes.feature, strict=True):
        own = sites[site].site
        rows.append({"site": str(own), "layer": own.first, "feature": int(feature), **places[place].labels})
    table = pd.DataFrame(rows, columns=["site", "layer", "feature", "role", "position", "token"])
    table["name"] = [_name(row) for _, row in table.iterrows()]
    numbers = {"effect": nodes.effect, "se": nodes.se, "activation": nodes.value, "active": nodes.active}
    types = {"site": "str", "name": "str", "role": "str", "token": "str", "layer": "Int64", "position": "Int64"}
    return table.assign(**numbers)[list(NODE_COLUMNS)].astype(types)


def edge_table(links: Links, names: Sequence[str]) -> pd.DataFrame:
    """`FeatureCircuit.edges` of links in the order given, between nodes of these names."""
    return pd.DataFrame(
        {
            "source": [names[i] for i in links.source],
            "target": [METRIC_NAME if i == METRIC else names[i] for i in links.target],
            "weight": links.weight,
            "se": links.se,
        }
    )


def _name(row: pd.Series) -> str:
    place = _label(row)
    number = "error" if row["feature"] == ERROR else str(row["feature"])
    return f"{row['site']}:{number}" + (f"@{place}" if place else "")


def _label(row: pd.Series) -> str:
    if isinstance(row["role"], str):
        return row["role"]
    return "" if pd.isna(row["position"]) else str(int(row["position"]))


def strongest(values: np.ndarray, *, n: int | None, threshold: float | None) -> np.ndarray:
    """Numbers of the entries chosen, the largest |value| first: n at most, and those with at least the threshold."""
    order = np.argsort(-np.abs(values), kind="stable")
    if threshold is not None:
        order = order[np.abs(values[order]) >= threshold]
    return order if n is None else order[:n]
