"""Random circuits of a given size: what a circuit has to beat before its faithfulness means anything."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from circuits.graph import select
from circuits.graph.graph import Graph
from interp.components import kind, layer_of
from interp.errors import SchemaError, nearest

HOW = ("connected", "matched", "uniform")
TRIES = 40
"""Bisections of how many edges to grow before pruning, so that as many as wanted are left after it."""


def random_circuits(graph: Graph, *, n: int = 20, seed: int = 0, how: str = "connected") -> tuple[Graph, ...]:
    """Circuits with as many edges as `graph`, without regard to scores.

    connected: grown from the logits along random edges, and pruned, so that every edge lies on a path from `embed` to
    the logits, as the edges of a pruned circuit do; as many edges as can be had without exceeding the circuit's.
    matched: each edge is exchanged for a random one between components of the same layers and kinds, at the same port:
    the circuit's depth profile stays. uniform: any edges; most dangle, so that they are easily beaten.

    Raises:
        SchemaError: an unknown way of drawing, or an empty circuit.
    """
    if how not in HOW:
        raise SchemaError(f"unknown way of drawing circuits {how!r}; {nearest(how, HOW)}")
    if not graph.n_edges:
        raise SchemaError("an empty circuit has no random counterpart")
    draw = {"connected": _connected, "matched": _matched, "uniform": _uniform}[how]
    circuits = []
    for i in range(n):
        mask = draw(graph, np.random.default_rng((seed, i)))
        provenance = {"control": how, "seed": seed, "draw": i, "edges": int(mask.sum()), "of": graph.n_edges}
        no_scores = np.full(graph.scores.shape, np.nan)
        circuits.append(Graph(graph.layout, no_scores, mask, provenance))
    return tuple(circuits)


def _uniform(graph: Graph, rng: np.random.Generator) -> ndarray:
    return select.top(rng.random(graph.scores.shape), graph.layout, graph.n_edges)


def _connected(graph: Graph, rng: np.random.Generator) -> ndarray:
    """Grown to a size that leaves, after pruning, the most edges that do not exceed the circuit's."""
    layout, scores = graph.layout, rng.random(graph.scores.shape)
    low, high = 0, layout.n_edges
    best = np.zeros(scores.shape, dtype=bool)
    for _ in range(TRIES):
        if low > high:
            break
        middle = (low + high) // 2
        mask = select.prune(select.greedy(scores, layout, middle), layout)
        if mask.sum() > graph.n_edges:
            high = middle - 1
        else:
            low = middle + 1
            best = mask if mask.sum() >= best.sum() else best
    return best


def _matched(graph: Graph, rng: np.random.Generator) -> ndarray:
    """Within edges of one sender layer and kind, one receiver layer, kind and port, as many as the circuit has."""
    layout = graph.layout
    senders = np.array([_form(name, layout.n_layers) for name in layout.senders])
    slots = np.array([f"{_form(name, layout.n_layers)} {port}" for name, port in layout.slots])
    rows, columns = np.nonzero(layout.exists)
    stratum = np.unique(np.char.add(np.char.add(senders[rows], ">"), slots[columns]), return_inverse=True)[1]
    inside = graph.mask[rows, columns]
    mask = np.zeros(graph.mask.shape, dtype=bool)
    for which in np.unique(stratum[inside]):
        members = np.flatnonzero(stratum == which)
        sample = rng.choice(members, size=int(inside[members].sum()), replace=False)
        mask[rows[sample], columns[sample]] = True
    return mask


def _form(name: str, n_layers: int) -> str:
    return f"{layer_of(name, n_layers)}{'M' if kind(name) == 'mlp' else 'H'}"
