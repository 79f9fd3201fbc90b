"""A circuit to be looked at: drawing, sizes and table in one page of HTML that needs no network and no other file.

The drawing is made in the page by circuit.js from a few numbers for each edge; without scripts the sentence and the
table are read. Every edge stands once: one into a key-value head ends there, and thin lines lead on to its heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from circuits.graph.drawing import places_of
from circuits.graph.layout import Layout
from circuits.graph.signs import Signs, signs
from interp.components import Edge, Link, kind, layer_of
from interp.files import atomic_write, writable_file
from interp.parallel import cached_property
from interp.plots.frame import framed

if TYPE_CHECKING:
    import jinja2

MOST = 1000
"""Edges of the circuit in the page at most, the strongest."""
BEYOND = 400
"""Edges up to which larger circuits that were measured are in the page too."""
FIRST = 100
"""Edges shown when the page opens, at most."""
HEIGHT = 900
"""Pixels of the frame in a notebook."""


@runtime_checkable
class Circuit(Protocol):
    """What a page is made of; `circuits.graph.graph.Graph` is one, and says the forms of its arrays."""

    @property
    def layout(self) -> Layout: ...  # noqa: D102
    @property
    def scores(self) -> ndarray: ...  # noqa: D102
    @property
    def mask(self) -> ndarray: ...  # noqa: D102
    @property
    def provenance(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def columns(self) -> Mapping[str, ndarray]: ...  # noqa: D102
    @property
    def n_edges(self) -> int: ...  # noqa: D102


class Size(NamedTuple):
    """A circuit of some size whose faithfulness was measured, with its interval."""

    graph: Circuit
    faithfulness: float
    low: float
    high: float


class Row(NamedTuple):
    """An edge as the table says it."""

    sender: str
    receiver: str
    port: str
    score: str
    interval: str
    effect: str


@dataclass(frozen=True, eq=False)
class CircuitPage:
    """A circuit as a page: `_repr_html_` in a notebook, `save` for a file, `html` and `fragment` as text.

    Attributes:
        graph: the circuit.
        title: what it is a circuit of.
        finding: the sentence above the drawing.
        notes: further lines below the sentence.
        roles: roles of components, the main one first.
        sizes: circuits whose faithfulness was measured, the page's own among them.
    """

    graph: Circuit
    title: str
    finding: str
    notes: tuple[str, ...] = ()
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: tuple[Size, ...] = ()

    @cached_property
    def signs(self) -> Signs:
        """What the sign of a score means here."""
        return signs(self.graph.provenance)

    @cached_property
    def steps(self) -> tuple[Size, ...]:
        """The measured sizes that the slider can show: each has all edges of the one before, ascending."""
        kept: list[Size] = []
        known = [size for size in self.sizes if math.isfinite(size.faithfulness)]
        for size in sorted(known, key=lambda size: size.graph.n_edges):
            small_enough = size.graph.n_edges <= max(BEYOND, self.graph.n_edges) and size.graph.n_edges <= MOST
            nested = not kept or (size.graph.mask >= kept[-1].graph.mask).all()
            larger = size.graph.n_edges > (kept[-1].graph.n_edges if kept else 0)
            if small_enough and nested and larger and self._fits(size.graph):
                kept.append(size)
        return tuple(kept)

    def _fits(self, graph: Circuit) -> bool:
        """Whether a circuit is part of the page's own, or holds it."""
        return bool((graph.mask <= self.graph.mask).all() or (graph.mask >= self.graph.mask).all())

    @cached_property
    def order(self) -> Int[ndarray, "edge 2"]:
        """(row, column) of the page's edges in the order in which they come in: by measured size, then by |score|."""
        strength = np.nan_to_num(np.abs(self.graph.scores))
        tiers = sorted([size.graph.mask for size in self.steps] + [self.graph.mask], key=lambda mask: mask.sum())
        inside = np.zeros(self.graph.mask.shape, dtype=bool)
        parts = []
        for mask in tiers:
            new = np.argwhere(mask & ~inside)
            parts.append(new[np.argsort(-strength[tuple(new.T)], kind="stable")])
            inside |= mask
        every = np.concatenate(parts)
        return every[:MOST] if self.graph.n_edges > MOST else every

    @property
    def shown(self) -> int:
        """Edges of the circuit that the page holds."""
        return min(self.graph.n_edges, MOST)

    @property
    def first(self) -> int:
        """Edges shown when the page opens: the circuit, or its strongest where it is large."""
        return min(self.shown, FIRST)

    @cached_property
    def edges(self) -> list[Edge]:
        """Names of the page's edges, in their order."""
        return [self.graph.layout.edge(row, column) for row, column in self.order.tolist()]

    @cached_property
    def nodes(self) -> dict[str, float]:
        """Components that the edges join -> where each wants to stand from left to right, so that few lines cross."""
        ends = dict.fromkeys(name for edge in self.edges for name in edge[:2])
        pairs = [Link(edge.sender, edge.receiver, edge.port, 0.0, edge) for edge in self.edges]
        shared = [Link(kv, head, "k", 0.0, Edge(kv, head, "k")) for kv, head in self.shared(ends)]
        places = places_of([*pairs, *shared], self.graph.layout.n_layers) if pairs else {}
        order = sorted(ends, key=lambda name: (layer_of(name, self.graph.layout.n_layers), places[name][0]))
        return {name: round(places[name][0], 2) for name in order}

    def shared(self, names: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(key-value head, query head) of what is shared among these components."""
        groups = [name for name in names if kind(name) == "kv_head"]
        return [(kv, head) for kv in groups for head in self.graph.layout.readers(kv) if head in names]

    @cached_property
    def rows(self) -> list[Row]:
        """The table as it is without scripts: the circuit's edges, strongest first."""
        inside = [i for i, place in enumerate(self.order.tolist()) if self.graph.mask[tuple(place)]]
        rows = [self._row(self.edges[i], *self._numbers(i)) for i in inside]
        sizes = [-abs(self._numbers(i)[0] or 0.0) for i in inside]
        return [rows[i] for i in np.argsort(sizes, kind="stable")]

    def _numbers(self, i: int) -> tuple[float | None, float | None, float | None]:
        """Score of an edge and its interval."""
        place = tuple(self.order[i])
        columns = [self.graph.scores, *(self.graph.columns.get(name) for name in ("ci_low", "ci_high"))]
        values = [math.nan if column is None else float(column[place]) for column in columns]
        score, low, high = (float(f"{value:.4g}") if math.isfinite(value) else None for value in values)
        return score, low, high

    def _row(self, edge: Edge, score: float | None, low: float | None, high: float | None) -> Row:
        interval = "" if low is None or high is None else f"{low:.3g} .. {high:.3g}"
        written = "" if score is None else f"{score:.4g}"
        return Row(
            edge.sender,
            edge.receiver,
            "" if edge.port == "in" else edge.port,
            written,
            interval,
            self.signs.of(score or 0.0),
        )

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the script needs, in plain values: components once, edges as numbers of theirs, in order of entry."""
        number = {name: i for i, name in enumerate(self.nodes)}
        return {
            "nodes": [
                [name, kind(name), layer_of(name, self.graph.layout.n_layers), x, list(self.roles.get(name, ()))]
                for name, x in self.nodes.items()
            ],
            "edges": [
                [number[edge.sender], number[edge.receiver], edge.port, *self._numbers(i)]
                for i, edge in enumerate(self.edges)
            ],
            "shared": [[number[kv], number[head]] for kv, head in self.shared(number)],
            "sizes": [[size.graph.n_edges, *(_plain(float(x)) for x in size[1:])] for size in self.steps],
            "own": self.graph.n_edges,
            "first": self.first,
            "words": [self.signs.negative, self.signs.positive],
            "layers": self.graph.layout.n_layers,
        }

    @property
    def rest(self) -> str:
        """What of the circuit the page does not hold; "" where it holds all."""
        more = self.graph.n_edges - self.shown
        return (
            f"The strongest {MOST:,} edges are here; {more:,} weaker ones are in graph.json and edges.csv."
            if more
            else ""
        )

    @property
    def fragment(self) -> str:
        """The drawing with its table, for a page that holds `style` and `script` once."""
        return _environment().get_template("circuit.html").render(page=self, level=4)

    @property
    def html(self) -> str:
        """The whole page."""
        return _environment().get_template("circuit_page.html").render(page=self, level=2)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write one HTML file that needs no network and no other file, and return its path.

        `force` replaces a file that is not an earlier page.

        Raises:
            InterpError: the path cannot be written.
        """
        target = writable_file(path, force=force)
        return atomic_write(target, partial(Path.write_text, data=self.html, encoding="utf-8"), force=force)

    def _repr_html_(self) -> str:
        return framed(self.html, title=self.title, height=HEIGHT)

    def __repr__(self) -> str:
        return f"<CircuitPage of {self.graph!r}, {len(self.steps)} measured sizes>"


def _plain(value: float) -> float | None:
    """To four places; None for what is no number, which JSON does not have."""
    return round(value, 4) if math.isfinite(value) else None


@lru_cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str) -> str:
    """Text of circuit.css or circuit.js, for a page that embeds fragments."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
