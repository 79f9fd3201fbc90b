"""Circuits that others have published, as data, and how well scores of nodes or edges agree with one.

The tables disagree with one another. Each is kept as its source has it, under a name of its own, and `disagreements`
says where they differ: an AUROC is only comparable with another against the same variant of the same version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from interp import data
from interp.components import EMBED, LOGITS, Edge, kind
from interp.errors import SchemaError, nearest
from interp.zoo.ground_truth import Truth

FOLDER = "circuits"
SCHEMA = 1


@dataclass(frozen=True)
class Published:
    """One variant of a published circuit.

    Attributes:
        name, version, variant: which table this is.
        task, model: what it is a circuit of.
        source, checked: where it is from, and whether that was read or only quoted by others.
        layout: the model's components.
        heads, mlps: classes of components.
        edges: connections between them; empty where the source gives none.
        disagreements: where variants, or the source and its encodings, differ.
    """

    name: str
    version: int
    variant: str
    task: str
    model: str
    source: str
    checked: str
    layout: Layout
    heads: Mapping[str, tuple[str, ...]]
    mlps: Mapping[str, tuple[str, ...]]
    edges: tuple[Edge, ...]
    disagreements: tuple[str, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Heads and MLPs in the circuit, in the order of the stream."""
        inside = {name for group in (*self.heads.values(), *self.mlps.values()) for name in group}
        return tuple(name for name in self.layout.senders if name in inside)

    def graph(self) -> Graph:
        """The circuit as a graph, without scores.

        Raises:
            SchemaError: the source gives no edges.
        """
        if not self.edges:
            raise SchemaError(f"{self.name}, variant {self.variant!r}, lists components and no edges")
        provenance = {"circuit": self.name, "version": self.version, "variant": self.variant, "source": self.source}
        return Graph.of(self.layout, self.edges, provenance=provenance)


def names() -> tuple[str, ...]:
    """Circuits there are tables of."""
    return tuple(sorted(path.stem for path in (data.root() / FOLDER).glob("*.json")))


def variants(name: str) -> tuple[str, ...]:
    """Variants of a circuit, the default first."""
    content = _content(name)
    return tuple(sorted(content["variants"], key=lambda v: (v != content["default"], v)))


def published(name: str, *, variant: str | None = None) -> Published:
    """A published circuit; without `variant`, the one that its table calls the default.

    Raises:
        SchemaError: no such circuit or variant; names the nearest.
    """
    content = _content(name)
    variant_name = variant or content["default"]
    if variant_name not in content["variants"]:
        raise SchemaError(f"{name} has no variant {variant_name!r}; {nearest(variant_name, content['variants'])}")
    entry = content["variants"][variant_name]
    layout = Layout.of_dict(content["layout"])
    heads, mlps = ({k: tuple(v) for k, v in entry.get(part, {}).items()} for part in ("heads", "mlps"))
    return Published(
        name=name,
        version=content["version"],
        variant=variant_name,
        task=content["task"],
        model=content["model"],
        source=entry["source"],
        checked=entry["checked"],
        layout=layout,
        heads=heads,
        mlps=mlps,
        edges=_connection_edges(entry, {**heads, **mlps}, layout),
        disagreements=tuple(content["disagreements"]),
    )


def planted(truth: Truth, layout: Layout, *, mechanism: str | None = None) -> Graph:
    """The circuit of a planted model: its edges; shared keys and values are those of their key-value head.

    Of all its mechanisms, or what the task of one needs.

    Raises:
        SchemaError: the model has no such mechanism.
    """
    if mechanism is not None and mechanism not in truth.uses:
        raise SchemaError(f"no mechanism {mechanism!r} in this model; {nearest(mechanism, truth.uses)}")
    edges = truth.edges if mechanism is None else truth.uses[mechanism]
    provenance = {"circuit": "planted", "roles": list(truth.roles), "mechanism": mechanism}
    return Graph.of(layout, edges, provenance=provenance)


def judge_edges(scored: Graph, truth: Graph, *, absolute: bool = True, beside: Graph | None = None) -> dict[str, float]:
    """How well edge scores rank the true edges: `auroc`, `average_precision`, over every edge of the model.

    Edges without a score rank last. Edges of the circuit `beside` that are not of the truth are left out: what a model
    does for another task is neither right nor wrong. NaN where the truth holds no edge, or all.
    """
    if any(other.layout != scored.layout for other in (truth, beside) if other is not None):
        raise SchemaError("scores and truth are of different models")
    edge_mask = scored.layout.exists & (truth.mask | (True if beside is None else ~beside.mask))
    return _ranking_quality(scored.scores[edge_mask], truth.mask[edge_mask], absolute=absolute)


def judge_nodes(
    scores: Mapping[str, float], truth: Iterable[str], *, among: Iterable[str], absolute: bool = True
) -> dict[str, float]:
    """How well node scores rank the true nodes among those named (all heads, say); as `judge_edges`."""
    inside, candidates = set(truth), [name for name in among if name not in (EMBED, LOGITS)]
    values = np.array([scores.get(name, np.nan) for name in candidates], dtype=float)
    return _ranking_quality(values, np.array([name in inside for name in candidates], dtype=bool), absolute=absolute)


def _ranking_quality(values: ndarray, true: ndarray, *, absolute: bool) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    ranking = np.abs(values) if absolute else values
    lowest = np.nanmin(ranking, initial=0.0) - 1.0
    ranking = np.where(np.isnan(ranking), lowest, ranking)
    both = bool(true.any()) and not bool(true.all())
    return {
        "auroc": float(roc_auc_score(true, ranking)) if both else float("nan"),
        "average_precision": float(average_precision_score(true, ranking)) if both else float("nan"),
        "n_true": float(true.sum()),
        "n": float(true.size),
    }


def _content(name: str) -> dict[str, Any]:
    if name not in names():
        raise SchemaError(f"no published circuit is called {name!r}; {nearest(name, names())}")
    content = data.read_json(data.path(FOLDER, f"{name}.json"))
    if content.get("schema") != SCHEMA:
        raise SchemaError(f"{name} is not of schema {SCHEMA}")
    return content


def _connection_edges(
    entry: Mapping[str, Any], classes: Mapping[str, tuple[str, ...]], layout: Layout
) -> tuple[Edge, ...]:
    """Edges of all connections, once each, in the order of the stream; those against the stream do not exist."""
    places: set[tuple[int, int]] = set()
    for connection in entry["connections"]:
        senders, receivers = (_members(connection[end], classes) for end in ("from", "to"))
        for sender in senders:
            for receiver in receivers:
                for port in connection["ports"]:
                    places |= set(_path(layout, sender, receiver, port, through_mlps=entry["mlps_between"]))
    return tuple(layout.edge(*place) for place in sorted(places))


def _members(name: str, classes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    if name in (EMBED, LOGITS):
        return (name,)
    if name not in classes:
        raise SchemaError(f"a connection names the class {name!r}; {nearest(name, classes)}")
    return classes[name]


def _path(layout: Layout, sender: str, receiver: str, port: str, *, through_mlps: bool) -> Iterable[tuple[int, int]]:
    """The direct edge and, through MLPs, every edge of every path from sender to receiver over MLPs alone."""
    start, end = layout.sender_index[sender], layout.slot_index[receiver, port]
    if not layout.exists[start, end]:
        return
    yield start, end
    if not through_mlps:
        return
    between = [
        (layout.sender_index[name], layout.slot_index[name, "in"])
        for name in layout.senders
        if kind(name) == "mlp"
        and layout.exists[start, layout.slot_index[name, "in"]]
        and layout.exists[layout.sender_index[name], end]
    ]
    for i, (row, column) in enumerate(between):
        yield start, column
        yield row, end
        yield from ((earlier, column) for earlier, _ in between[:i])
