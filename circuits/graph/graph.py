"""A circuit as one value: which edges of a model are in it, what each scored, and where that came from.

>>> from circuits.graph.layout import Layout
>>> Graph.full(Layout(n_layers=12, n_heads=12, n_kv_heads=12)).n_edges
32491
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray

from circuits.graph import select
from circuits.graph.layout import Layout
from interp.components import EMBED, LOGITS, Edge, Link
from interp.errors import SchemaError
from interp.files import atomic_write, read_text
from interp.files.reading import MOST_JSON

if TYPE_CHECKING:
    import networkx as nx
    import plotly.graph_objects as go

    from circuits.graph.circuit_page import CircuitPage, Size
    from circuits.graph.roles import Roles

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Graph:
    """A set of edges of a model, with a score for every edge that was scored, in the set or not.

    Attributes:
        layout: the model's components.
        scores: score of each edge, NaN where there is none.
        mask: which edges are in the circuit.
        provenance: where it came from: plain values, saved along.
        columns: further values per edge, as ci_low, ci_high, p, q.
    """

    layout: Layout
    scores: Float[ndarray, "sender slot"]
    mask: Bool[ndarray, "sender slot"]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Float[ndarray, "sender slot"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse arrays of another form, and edges that do not exist."""
        form = (len(self.layout.senders), len(self.layout.slots))
        for name, array in {"scores": self.scores, "mask": self.mask, **self.columns}.items():
            if array.shape != form:
                raise SchemaError(f"{name} is {array.shape}; this layout has {form[0]} senders and {form[1]} slots")
        if (self.mask & ~self.layout.exists).any():
            row, column = np.argwhere(self.mask & ~self.layout.exists)[0].tolist()
            raise SchemaError(f"the mask holds {self.layout.edge(row, column)}, an edge that does not exist")

    @classmethod
    def full(
        cls,
        layout: Layout,
        scores: Float[ndarray, "sender slot"] | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
        columns: Mapping[str, ndarray] | None = None,
    ) -> Graph:
        """Every edge of the model; scores of pairs that are no edges are dropped."""
        array = np.full(layout.exists.shape, np.nan) if scores is None else np.asarray(scores, dtype=float)
        return cls(
            layout,
            np.where(layout.exists, array, np.nan) if array.shape == layout.exists.shape else array,
            layout.exists.copy(),
            dict(provenance or {}),
            {k: np.asarray(v, dtype=float) for k, v in (columns or {}).items()},
        )

    @classmethod
    def of(
        cls,
        layout: Layout,
        edges: Iterable[Edge | tuple[str, str, str]] | Mapping[Edge, float],
        *,
        provenance: Mapping[str, Any] | None = None,
    ) -> Graph:
        """From named edges, with their scores where it is a mapping.

        Raises:
            SchemaError: an edge that the layout does not have.
        """
        scores, mask = np.full(layout.exists.shape, np.nan), np.zeros(layout.exists.shape, dtype=bool)
        for edge in edges:
            place = layout.place(edge)
            mask[place] = True
            if isinstance(edges, Mapping):
                scores[place] = edges[edge]  # type: ignore[index]  # its keys are edges
        return cls(layout, scores, mask, dict(provenance or {}))

    @property
    def n_edges(self) -> int:
        """Edges in the circuit."""
        return int(self.mask.sum())

    @property
    def digest(self) -> str:
        """A hash of layout, edges and scores: what a call that takes the graph is known by."""
        content = repr(self.layout).encode() + self.mask.tobytes() + np.ascontiguousarray(self.scores).tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def fraction(self) -> float:
        """Edges in the circuit, as a fraction of the model's."""
        return self.n_edges / self.layout.n_edges

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Edges in the circuit, in the order of the stream."""
        return tuple(self.layout.edge(row, column) for row, column in np.argwhere(self.mask).tolist())

    @property
    def nodes(self) -> tuple[str, ...]:
        """Components that an edge of the circuit leaves or enters, in the order of the stream, `logits` last.

        Of a key-value group, the heads that lead somewhere; all of them where none does.
        """
        endpoints = {name for link in self.links() for name in link[:2]}
        return tuple(name for name in (*self.layout.senders, LOGITS) if name in endpoints)

    def __contains__(self, edge: Edge | tuple[str, str, str]) -> bool:
        return bool(self.mask[self.layout.place(edge)])

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges)

    def score(self, edge: Edge | tuple[str, str, str]) -> float:
        """Score of an edge, in the circuit or not."""
        return float(self.scores[self.layout.place(edge)])

    def links(self) -> Iterator[Link]:
        """Edges between components, for drawing and for graph libraries: groups are resolved into their heads."""
        live_senders = {self.layout.senders[row] for row in np.flatnonzero(self.mask.any(1))}
        for row, column in np.argwhere(self.mask).tolist():
            edge = self.layout.edge(row, column)
            heads = self.layout.readers(edge.receiver)
            for head in [h for h in heads if h in live_senders] or heads:
                yield Link(edge.sender, head, edge.port, float(self.scores[row, column]), edge)

    # One verb per way to choose; each gives a new graph with the same scores.

    def top(self, n: int, *, absolute: bool = True, prune: bool = True) -> Graph:
        """The n edges of this graph with the largest scores; pruned, fewer may be left."""
        return self._with_mask(select.top(self._inside, self.layout, n, absolute=absolute), prune=prune)

    def threshold(self, at: float, *, absolute: bool = True, prune: bool = True) -> Graph:
        """Edges of this graph that score at least so much."""
        return self._with_mask(select.above(self._inside, self.layout, at, absolute=absolute), prune=prune)

    def greedy(self, n: int, *, absolute: bool = True, prune: bool = True) -> Graph:
        """n edges of this graph grown from the logits, always the strongest into what is there."""
        return self._with_mask(select.greedy(self._inside, self.layout, n, absolute=absolute), prune=prune)

    def pruned(self) -> Graph:
        """Without edges from what is not fed, or into what does not lead to the logits."""
        return replace(self, mask=select.prune(self.mask, self.layout))

    def complement(self) -> Graph:
        """The edges of the model that are not in it."""
        return replace(self, mask=self.layout.exists & ~self.mask)

    @property
    def _inside(self) -> Float[ndarray, "sender slot"]:
        return np.where(self.mask, self.scores, np.nan)

    def _with_mask(self, mask: Bool[ndarray, "sender slot"], *, prune: bool) -> Graph:
        return replace(self, mask=select.prune(mask, self.layout) if prune else mask)

    # Sets: the scores of the left one are kept.

    def __and__(self, other: Graph) -> Graph:
        return replace(self, mask=self.mask & self._of_same_model(other).mask)

    def __or__(self, other: Graph) -> Graph:
        return replace(self, mask=self.mask | self._of_same_model(other).mask)

    def __sub__(self, other: Graph) -> Graph:
        return replace(self, mask=self.mask & ~self._of_same_model(other).mask)

    def jaccard(self, other: Graph, *, of: str = "edges") -> float:
        """|A & B| / |A | B| over edges or nodes; 1 for two empty circuits. Nodes leave `embed` and `logits` out."""
        a, b = self._members(of), self._of_same_model(other)._members(of)
        return len(a & b) / len(a | b) if a | b else 1.0

    def reuse(self, other: Graph, *, of: str = "edges") -> float:
        """|A & B| / |A|: the part of this circuit that the other uses too; NaN for an empty one."""
        members = self._members(of)
        return len(members & self._of_same_model(other)._members(of)) / len(members) if members else float("nan")

    def _members(self, of: str) -> set[Any]:
        if of not in ("edges", "nodes"):
            raise SchemaError(f"overlap of {of!r}; choose edges or nodes")
        return set(self.edges) if of == "edges" else set(self.nodes) - {EMBED, LOGITS}

    def _of_same_model(self, other: Graph) -> Graph:
        if other.layout != self.layout:
            raise SchemaError("circuits of different models cannot be compared edge by edge")
        return other

    def table(self) -> pd.DataFrame:
        """One row per edge of the circuit, strongest first: sender, receiver, port, score and the further columns."""
        rows, columns = np.nonzero(self.mask)
        frame = pd.DataFrame(
            [self.layout.edge(r, c) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)], columns=Edge._fields
        )
        frame["score"] = self.scores[rows, columns]
        for name, values in self.columns.items():
            frame[name] = values[rows, columns]
        return frame.sort_values("score", key=lambda s: -s.abs(), kind="stable", ignore_index=True)

    def to_json(self) -> str:
        """The circuit's edges with scores and columns, layout and provenance; scores of other edges are not kept."""
        rows = self.table().replace({np.nan: None}).to_dict("records")
        content = {
            "schema": SCHEMA,
            "layout": self.layout.as_dict(),
            "provenance": dict(self.provenance),
            "edges": rows,
        }
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """From `to_json`.

        Raises:
            SchemaError: not such a text, or of another version.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise SchemaError(f"not a circuit of schema {SCHEMA}")
        layout = Layout.of_dict(content["layout"])
        graph = cls.of(layout, [], provenance=content["provenance"])
        columns = {name: np.full(graph.scores.shape, np.nan) for row in content["edges"][:1] for name in list(row)[4:]}
        for row in content["edges"]:
            sender, receiver, port, *values = row.values()
            place = layout.place((sender, receiver, port))
            graph.mask[place] = True
            for array, value in zip((graph.scores, *columns.values()), values, strict=True):
                array[place] = np.nan if value is None else value
        return replace(graph, columns=columns)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write `to_json`, whole or not at all; returns the path. `force` replaces a file that is not ours."""
        text = self.to_json()
        return atomic_write(Path(path).expanduser(), lambda p: p.write_text(text, encoding="utf-8"), force=force)

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """From a file written by `save`.

        Raises:
            SchemaError: not such a file, or one that cannot be read.
        """
        return cls.from_json(read_text(Path(path), most=MOST_JSON, error=SchemaError))

    def to_networkx(self) -> nx.MultiDiGraph:
        """Nodes with `layer`, edges keyed by port with `score`; a group's edge goes to each of its heads."""
        from circuits.graph.export import networkx

        return networkx(self.nodes, self.links(), self.layout.n_layers, provenance=self.provenance)

    def to_dot(self) -> str:
        """Graphviz text: layers as ranks from bottom to top, edges coloured by sign and as wide as their magnitude."""
        from circuits.graph.export import dot

        return dot(self.nodes, list(self.links()), self.layout.n_layers)

    def draw(self, *, title: str = "") -> go.Figure:
        """Interactive drawing, layered by depth; see `circuits.graph.drawing.draw`."""
        from circuits.graph.drawing import draw

        return draw(
            list(self.links()),
            self.layout.n_layers,
            title=title,
            caption=f"{self.n_edges} of {self.layout.n_edges:,} edges",
        )

    def page(
        self,
        *,
        title: str = "A circuit",
        finding: str = "",
        notes: Sequence[str] = (),
        roles: Roles | None = None,
        sizes: Sequence[Size] = (),
    ) -> CircuitPage:
        """The circuit to be looked at, in a notebook or as a file: drawing, sizes, table; see `CircuitPage`.

        Args:
            title: what it is a circuit of.
            finding: a sentence to stand first; how many edges of how many where there is none.
            notes: further lines.
            roles: component -> role, or a table with the columns component and role, as `Atlas.roles`.
            sizes: circuits of this model that were measured, for the slider.

        Raises:
            SchemaError: roles of another form, or of names that are no components'.
        """
        from circuits.graph.circuit_page import CircuitPage
        from circuits.graph.roles import role_names

        finding = finding or f"{self.n_edges:,} of {self.layout.n_edges:,} edges, {len(self.nodes)} components."
        return CircuitPage(self, title, finding, tuple(notes), role_names(roles), tuple(sizes))

    def __repr__(self) -> str:
        return f"Graph({self.n_edges} of {self.layout.n_edges} edges, {len(self.nodes)} nodes)"

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()
