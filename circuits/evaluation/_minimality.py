"""What a circuit would lose without each of its parts, and what the model would lose without the circuit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from circuits.evaluation._faithfulness import evaluate
from circuits.graph.graph import Graph
from circuits.wiring.case import Case
from interp.components import EMBED, LOGITS
from interp.edits import Edit
from interp.errors import SchemaError, nearest
from interp.model import Model
from interp.results import stats
from interp.results.provenance import recorded
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

PARTS = {"nodes": "component", "edges": "edge"}
"""What may be left out, and the column that names it."""
SMALLEST = 0.01
"""Share of the model's metric that leaving a part out should change, as in the IOI paper."""


def without(graph: Graph, part: str) -> Graph:
    """The circuit without a component: every edge from it, and into it where no other head of its group stays.

    Raises:
        SchemaError: a component that is not in the circuit.
    """
    layout = graph.layout
    if part not in graph.nodes or part in (EMBED, LOGITS):
        raise SchemaError(f"{part!r} is none of the circuit's components: {', '.join(graph.nodes[1:-1]) or 'none'}")
    mask = graph.mask.copy()
    mask[layout.sender_index[part]] = False
    live_senders = np.any(mask, axis=1)
    part_slots = layout.owners[:, layout.sender_index[part]]
    dead_slots = part_slots & ~np.any(layout.owners & live_senders[None, :], axis=1)
    mask[:, np.flatnonzero(dead_slots)] = False
    return Graph(layout, graph.scores, mask, graph.provenance, graph.columns)


@recorded
def minimality(
    model: Model,
    task: PromptTask,
    graph: Graph,
    *,
    of: str = "nodes",
    metric: AnyMetric | None = None,
    ablation: str = "resample",
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> pd.DataFrame:
    """Change of the circuit's metric when a part is left out, m(C) - m(C without v), and its share of m(M) - m(0).

    One row per `component` (or `edge`) of the circuit, in the order of its share, with its interval over prompts;
    `needed` where the share is at least 1 % in size. A part that others stand in for is not needed by this test, though
    leaving both out would show it: the IOI paper therefore asks for some set K with m(C - K) and m(C - K - v) apart.

    Raises:
        SchemaError: an empty circuit, or one of another model.
    """
    if not graph.n_edges:
        raise SchemaError("an empty circuit has no parts")
    if of not in PARTS:
        raise SchemaError(f"unknown parts {of!r}; {nearest(of, PARTS)}")
    case = Case.of(model, task, metric=metric)
    if of == "nodes":
        names = [name for name in graph.nodes if name not in (EMBED, LOGITS)]
        parts = [without(graph, name) for name in names]
    else:
        names = [str(edge) for edge in graph.edges]
        parts = [graph - Graph.of(graph.layout, [edge]) for edge in graph.edges]
    values = evaluate(case, [graph, *parts], ablation=ablation, batch_size=batch_size)
    span = float(case.clean.double().mean()) - float(values[-1].mean())
    changes = values[0] - values[1:-1]
    interval = stats.bootstrap_mean(changes.T, seed=seed)
    table = pd.DataFrame(
        {
            PARTS[of]: names,
            "change": interval.mean,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "share": interval.mean / span,
            "needed": np.abs(interval.mean / span) >= SMALLEST,
            "n": interval.n,
        }
    )
    return table.sort_values("share", key=lambda s: -s.abs(), kind="stable", ignore_index=True)


@recorded
def completeness(
    model: Model,
    task: PromptTask,
    graph: Graph,
    *,
    n_sets: int = 10,
    metric: AnyMetric | None = None,
    ablation: str = "resample",
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> pd.DataFrame:
    """|m(C - K) - m(M - K)| over sets K of the circuit's components: a complete circuit falls as the model falls.

    K is each component alone, half of them at random (`n_sets` draws), and all of them (what is left of the model is
    the circuit's complement). One row per K: both metrics, their difference, and its share of m(M) - m(0). Wang et al.
    2022, arXiv 2211.00593, section 4.1.

    Raises:
        SchemaError: an empty circuit, or one of another model.
    """
    if not graph.n_edges:
        raise SchemaError("an empty circuit has no parts")
    case = Case.of(model, task, metric=metric)
    names = [name for name in graph.nodes if name not in (EMBED, LOGITS)]
    rng = np.random.default_rng(seed)
    halves = [sorted(rng.choice(names, size=max(1, len(names) // 2), replace=False).tolist()) for _ in range(n_sets)]
    sets = (
        [(name, [name]) for name in names] + [(f"half {i}", half) for i, half in enumerate(halves)] + [("all", names)]
    )
    whole = Graph.full(graph.layout)
    circuits = [_without_senders(graph, k) for _, k in sets] + [_without_senders(whole, k) for _, k in sets]
    values = evaluate(case, circuits, ablation=ablation, batch_size=batch_size)
    circuit, model_ = values[: len(sets)].mean(1), values[len(sets) : -1].mean(1)
    span = float(case.clean.double().mean()) - float(values[-1].mean())
    return pd.DataFrame(
        {
            "without": [name for name, _ in sets],
            "components": [len(k) for _, k in sets],
            "circuit": circuit,
            "model": model_,
            "gap": np.abs(circuit - model_),
            "share": np.abs(circuit - model_) / abs(span),
        }
    )


def _without_senders(graph: Graph, names: list[str]) -> Graph:
    """Without all edges that these components send: what is removed carries the ablation's activation."""
    mask = graph.mask.copy()
    mask[[graph.layout.sender_index[name] for name in names]] = False
    return Graph(graph.layout, graph.scores, mask)
