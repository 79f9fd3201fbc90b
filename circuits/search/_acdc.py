"""Automatic circuit discovery: remove edges one by one, from the logits down, as long as the output hardly changes.

Conmy et al. 2023 (arXiv 2304.14997). Slots are visited in reverse order of the stream. At each, the edges into it are
tried in turn: what it would carry is replaced by the corrupted run's activation, and it stays removed where the loss
rises by less than the threshold. Slots of components that lead nowhere any more are not tried; their edges go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from circuits.evaluation._faithfulness import portions
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from circuits.methods import circuit_method
from circuits.search.incremental_run import Splice
from circuits.wiring.case import Case
from interp.edits import Edit
from interp.errors import SchemaError, nearest
from interp.model import Model
from interp.results.provenance import recorded
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

THRESHOLDS = (0.00001, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Of the registered sweep, in nats of KL. A head that only makes an improbable token less probable hardly changes KL:
the lowest are for its edges, and still far above what rounding does."""
Ordering = str | Float[ndarray, "sender some"]
ORDERINGS = ("reverse", "forward", "random")
NARROW = 8
"""Rows of which END alone is computed, in the place of one."""
LOW_IS_GOOD = ("kl", "loss_nats", "rank")
"""Metrics that are a loss; of the others the loss is the negative."""


@recorded
def acdc(
    model: Model,
    task: PromptTask,
    *,
    threshold: float,
    metric: AnyMetric = "kl",
    absolute: bool = False,
    ordering: Ordering = "reverse",
    ablation: str = "resample",
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    edits: Sequence[Edit] = (),
) -> Graph:
    """Edges whose removal raises the loss by at least `threshold`, given what was removed before them.

    The loss is the mean over prompts of KL(model || circuit) at END in nats, or of minus the metric named. `scores`
    holds what each edge did when it was tried: F(without) - F(with), in the metric's units, NaN for edges into slots
    that led nowhere. Every edge is tried once, so the result depends on the order: of two that stand in for one
    another the one visited first is removed, and heads that work against the answer are lost whenever the loss falls
    without them (`absolute` keeps them).

    Exact: the same edges as one forward pass per edge. Nothing below a slot has changed when it is visited, so only
    what depends on the slot is computed, many edges at once: row i of a batch has the first i + 1 candidates removed,
    the longest prefix that passes is taken, and the search goes on behind the first that fails.

    Args:
        model: any backend with its weights at hand.
        task: prompts, all of them used in every decision.
        threshold: tau, in units of the metric.
        metric: "kl", another name in `interp.tasks.metrics`, or a function (logits, task) -> [batch], high being good.
        absolute: judge |change| instead of the rise.
        ordering: of the edges into a slot: senders latest first ("reverse"), earliest first ("forward"), "random" (by
            `seed`, as are then the slots of one layer's attention), or scores [sender slot], the weakest first.
        ablation: what removed edges carry: see `circuits.evaluation._faithfulness`.
        batch_size: rows (edge and prompt) of a pass, eight times as many where END alone is computed; changes nothing
            but time and memory.
        seed: of the random ordering.
        progress: told the slot that is being visited.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: a threshold that is no number, an unknown ordering, or scores of another form.
        TaskError: no such metric or ablation.
    """
    case, splice = _start_state(model, task, metric, ablation)
    return _search(
        case,
        splice,
        _order(case.layout, ordering, seed),
        _Rule(threshold, 1.0 if case.metric in LOW_IS_GOOD else -1.0, absolute),
        rows=max(1, batch_size // len(task)),
        progress=progress,
    )


@dataclass(frozen=True, eq=False)
class Sweep:
    """Circuits at several thresholds, lowest first."""

    thresholds: tuple[float, ...]
    graphs: tuple[Graph, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """Every edge with the largest threshold at which it survives, 0 where it survives none: what is ranked."""
        levels = np.stack([g.mask * t for g, t in zip(self.graphs, self.thresholds, strict=True)]).max(0)
        return Graph.full(self.graphs[0].layout, levels, provenance=self.provenance)

    def table(self) -> pd.DataFrame:
        """One row per threshold: edges left, the metric without the others, edges tried, cost in forward passes."""
        columns = ("metric", "metric_full", "metric_removed", "tried", "forwards")
        return pd.DataFrame(
            [
                {"threshold": t, "edges": g.n_edges, "fraction": g.fraction, **{c: g.provenance[c] for c in columns}}
                for t, g in zip(self.thresholds, self.graphs, strict=True)
            ]
        )


@recorded
def acdc_sweep(
    model: Model,
    task: PromptTask,
    *,
    thresholds: Sequence[float] = tuple(10.0 ** (k / 2) for k in range(-10, 2)),
    metric: AnyMetric = "kl",
    edits: Sequence[Edit] = (),
    **options: Any,
) -> Sweep:
    """`acdc` at each threshold, with the same options: one search each, which costs less the higher it is."""
    if not thresholds:
        raise SchemaError("no thresholds; at least one is needed")
    sorted_thresholds = tuple(sorted(thresholds))
    graphs = tuple(acdc(model, task, threshold=t, metric=metric, **options) for t in sorted_thresholds)
    own = {"method": "acdc", "thresholds": list(sorted_thresholds), "metric_full": graphs[0].provenance["metric_full"]}
    return Sweep(sorted_thresholds, graphs, own)


@dataclass(frozen=True)
class _Rule:
    """When an edge goes."""

    threshold: float
    sign: float
    absolute: bool

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise SchemaError(f"threshold {self.threshold}; expected a number of at least 0")

    def goes(self, change: ndarray) -> ndarray:
        """Of changes of the metric."""
        return (np.abs(change) if self.absolute else self.sign * change) < self.threshold


def _start_state(model: Model, task: PromptTask, metric: AnyMetric, ablation: str) -> tuple[Case, Splice]:
    case = Case.of(model, task, metric=metric)
    whole, other = next(portions(case, ablation, batch_size=len(case)))
    return whole, Splice(whole, other)


def _search(
    case: Case,
    splice: Splice,
    order: Iterator[tuple[int, list[int]]],
    rule: _Rule,
    *,
    rows: int,
    progress: Callable[[str], None] | None,
) -> Graph:
    layout, full = case.layout, splice.value
    scores = np.full(layout.exists.shape, np.nan)
    n_tried = 0
    for slot, senders in order:
        if progress is not None:
            progress(" ".join(layout.slots[slot]))
        splice.refresh()
        if not splice.leads(slot):
            splice.commit(slot, senders, splice.without(slot, senders, at_once=True) if splice.needed[slot] else None)
            continue
        n_tried += len(senders)
        _try_senders(splice, slot, senders, rule, rows, scores[:, slot])
    size = layout.n_layers * case.task.clean.ids.numel()
    provenance = {
        "method": "acdc",
        "metric": case.metric,
        "threshold": rule.threshold,
        "metric_full": full,
        "metric_removed": splice.value,
        "tried": n_tried,
        "forwards": splice.parts.cost / size,
    }
    return replace(Graph.full(layout, scores, provenance=provenance), mask=splice.keep.copy())


def _try_senders(
    splice: Splice, slot: int, senders: Sequence[int], rule: _Rule, rows: int, scores: Float[ndarray, " sender"]
) -> None:
    """Try the edges into a slot in order; as many at once as have lately passed in a row."""
    rows = rows * NARROW if splice.narrow[slot] else rows
    at, size = 0, rows
    while at < len(senders):
        candidates = list(senders[at : at + size])
        trial = splice.without(slot, candidates)
        values = trial.value.numpy()
        changes = np.diff(values, prepend=splice.value)
        removable = rule.goes(changes)
        n_removed = len(candidates) if removable.all() else int(np.argmin(removable))
        scores[candidates[: n_removed + 1]] = changes[: n_removed + 1]
        if n_removed:
            splice.commit(slot, candidates[:n_removed], trial, n_removed - 1)
        at += n_removed + (n_removed < len(candidates))
        size = min(rows, 2 * n_removed + 1)


def _order(layout: Layout, ordering: Ordering, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Slots in the order they are visited, each with the senders that feed it."""
    if isinstance(ordering, str) and ordering not in ORDERINGS:
        raise SchemaError(f"unknown ordering {ordering!r}; {nearest(ordering, ORDERINGS)}, or scores [sender slot]")
    if not isinstance(ordering, str) and ordering.shape != layout.exists.shape:
        raise SchemaError(f"scores of shape {ordering.shape} to order by; expected {layout.exists.shape}")
    rng = np.random.default_rng(seed)
    slots = list(range(len(layout.slots)))[::-1]
    if isinstance(ordering, str) and ordering == "random":
        depth = [int(layout.exists[:, s].sum()) for s in slots]  # slots of one layer's attention see the same senders
        slots = [slots[i] for i in sorted(range(len(slots)), key=lambda i: (-depth[i], rng.random()))]
    for slot in slots:
        senders = np.flatnonzero(layout.exists[:, slot])
        if not isinstance(ordering, str):
            senders = senders[np.argsort(np.abs(ordering[senders, slot]), kind="stable")]
        elif ordering == "reverse":
            senders = senders[::-1]
        elif ordering == "random":
            senders = rng.permutation(senders)
        yield slot, senders.tolist()


@circuit_method(
    name="acdc",
    title="Automatic circuit discovery",
    gives="scores",
    costs=f"a share of a forward pass for every edge and each of {len(THRESHOLDS)} thresholds",
    means="Up to this threshold the edge survives when edges are removed one after another.",
    misleads="The order decides: of stand-ins one goes; what works against the answer is lost.",
    reference="Conmy et al. 2023, arXiv 2304.14997",
    order=50,
    signed=False,
    goal=0.95,
    quick={"thresholds": (0.01, 0.1)},
)
def _sweep(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 32,
    seed: int = 0,
    thresholds: Sequence[float] = THRESHOLDS,
    ablation: str = "resample",
) -> Graph:
    """The largest threshold at which each edge survives, of KL unless a metric is named."""
    rows = max(32, batch_size)
    sweep = acdc_sweep(
        model, task, thresholds=thresholds, metric=metric or "kl", ablation=ablation, batch_size=rows, seed=seed
    )
    return sweep.graph
