"""Every method of finding circuits against circuits that are known, because the models were written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.evaluation._faithfulness import faithfulness
from circuits.evaluation.truth import judge_edges, judge_nodes, planted
from circuits.graph.graph import Graph
from circuits.methods import CircuitMethod, circuit_methods, find
from circuits.wiring.case import Case
from interp.components import EMBED, LOGITS
from interp.errors import SchemaError, TaskError, UnknownEntry, nearest
from interp.loading.load import load
from interp.model import Model
from interp.parallel import each
from interp.results.results import Result
from interp.results.stats import spearman
from interp.studies.scoreboard import ROUNDING
from interp.tasks import PromptTask, planted_task
from interp.tasks.metrics import AnyMetric
from interp.zoo.planted.factory import ALL, ARCHITECTURES, Planted, plant

MECHANISMS = tuple(m.name for m in ALL if m.name not in {"sink", "massive_activation"})
"""All whose task has something to explain: what a sink attends to, `<bos>`, is the same in the corrupted prompt."""
LARGEST = 100
"""Edges whose order is worth comparing."""


def scoreboard(
    *,
    methods: Sequence[str] | None = None,
    mechanisms: Sequence[str] = MECHANISMS,
    architectures: Sequence[str] = ARCHITECTURES,
    seeds: int = 10,
    n: int = 16,
    noise: float = 0.0,
    jobs: int = 1,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> pd.DataFrame:
    """One row per (method, mechanism, architecture, seed): how its scores rank the planted edges, or components.

    Columns: `auroc`, `average_precision` over all edges of the model but those planted for another task (a head that
    writes what another reads may say it as well); `edges` planted; faithfulness of the circuit `planted` and of as many
    edges `found`, grown from the method's scores; `lowest` |score| of a planted edge and `highest` of another, as
    shares of the metric's change; `seconds` of the processor. Of a method that gives a table the heads and MLPs are
    ranked, each by its largest row, and no circuit is `found`. Methods are those that say that they are judged as a
    matter of routine (`circuits.methods.CircuitMethod`), or the ones named.

    Seeds draw the places of heads and the prompts, and with `noise` (of `zoo.factory.plant`; 0: none) the weights of
    all that is not planted. `jobs` models are judged at a time, in processes.

    Raises:
        SchemaError: an unknown method, mechanism or architecture.
    """
    method_names = _methods(methods)
    for what, names, valid_names in (
        ("architecture", architectures, ARCHITECTURES),
        ("mechanism", mechanisms, {m.name for m in ALL}),
    ):
        for name in names:
            if name not in valid_names:
                raise UnknownEntry(f"unknown {what} {name!r}; {nearest(name, valid_names)}")
    cases = [(m, a, s) for m in mechanisms for a in architectures for s in range(seeds)]
    case_rows = each(
        lambda case: _case(*case, methods=method_names, n=n, noise=noise), cases, jobs=jobs, progress=progress
    )
    return pd.DataFrame([row for rows in case_rows for row in rows])


def _case(
    mechanism: str, architecture: Any, seed: int, *, methods: Sequence[str], n: int, noise: float
) -> list[dict[str, Any]]:
    """Rows of all methods on one planted model."""
    planted_one = [m for m in ALL if m.name == mechanism]
    planted_model = plant(planted_one, architecture=architecture, seed=seed, noise=noise)
    place = {"mechanism": mechanism, "architecture": architecture, "seed": seed}
    return [{"method": name} | place | _method_row(planted_model, mechanism, name, n=n, seed=seed) for name in methods]


def failed(board: pd.DataFrame) -> bool:
    """Whether a method ranks what was planted worse than it says that it does (its `goal`)."""
    goals = {name: find(name).goal for name in board["method"].unique()}
    return any(
        (board.loc[board["method"] == name, "auroc"] < goal - ROUNDING).any()
        for name, goal in goals.items()
        if goal is not None
    )


def summary(board: pd.DataFrame) -> pd.DataFrame:
    """Worst and mean over seeds, per method, mechanism and architecture."""
    groups = board.groupby(["method", "mechanism", "architecture"], sort=False)
    return groups.agg(
        models=("seed", "size"),
        edges=("edges", "max"),
        auroc_mean=("auroc", "mean"),
        auroc_worst=("auroc", "min"),
        average_precision=("average_precision", "min"),
        lowest=("lowest", "min"),
        highest=("highest", "max"),
        planted=("planted", "min"),
        found=("found", "min"),
        seconds=("seconds", "mean"),
    ).reset_index()


def agreement(
    model: Model,
    task: PromptTask,
    *,
    methods: Sequence[str] | None = None,
    k: Sequence[int] = (10, 50, 100),
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """How approximate scores of all edges agree with exact patching of each edge by itself.

    One row per method: Spearman and Pearson correlation over edges, Spearman over the `largest` of the exact effects
    (a hundred; of the others the order is noise), the share of its k strongest edges that are among the k strongest
    exactly, and CPU seconds.
    """
    options = {"metric": metric, "batch_size": batch_size, "seed": seed}
    exact = _graph(find("exact"), model, task, **options)
    exists = exact.layout.exists
    true = exact.scores[exists]
    order = np.argsort(-np.abs(true))
    rows = []
    for name in methods or _comparable_methods():
        start = time.process_time()
        estimate = np.nan_to_num(_graph(find(name), model, task, **options).scores[exists])
        target = true if find(name).signed else np.abs(true)
        row: dict[str, float | str | int] = {
            "method": name,
            "edges": len(true),
            "spearman": spearman(estimate, target).rho,
            "pearson": float(np.corrcoef(estimate, target)[0, 1]),
            "largest": spearman(estimate[order[:LARGEST]], target[order[:LARGEST]]).rho,
        }
        own_order = np.argsort(-np.abs(estimate), kind="stable")
        row |= {f"top_{n}": len(set(own_order[:n].tolist()) & set(order[:n].tolist())) / n for n in k}
        rows.append(row | {"seconds": time.process_time() - start})
    return pd.DataFrame(rows)


def _methods(names: Sequence[str] | None) -> tuple[str, ...]:
    """Those named, each of which must be judged, or all that are judged as a matter of routine.

    Raises:
        SchemaError: an unknown method, or one whose scores claim nothing that was planted.
    """
    if names is None:
        return tuple(m.name for m in circuit_methods().values() if m.judged and m.routine)
    silent = [name for name in names if find(name).judged is None]
    if silent:
        raise SchemaError(f"{silent[0]!r} ranks neither edges nor components: it is not judged on planted circuits")
    return tuple(names)


def _comparable_methods() -> list[str]:
    """Methods whose scores of all edges estimate the exact effects, or their size."""
    methods = circuit_methods().values()
    return [m.name for m in methods if m.gives == "scores" and m.name != "exact" and m.routine]


def _graph(method: CircuitMethod, model: Model, task: PromptTask, **options: Any) -> Graph:
    outcome = method.run(model, task, **options)
    if not isinstance(outcome, Graph):
        raise SchemaError(f"{method.name!r} scores no edges")
    return outcome


def _method_row(planted_model: Planted, mechanism: str, name: str, *, n: int, seed: int) -> dict[str, float | int]:
    model, method = load(planted_model.model, tokenizer=planted_model.tokenizer), find(name)
    try:
        task = planted_task(planted_model, mechanism, n=n, seed=seed)
    except TaskError as error:
        raise SchemaError(f"{mechanism} has no task to find a circuit of: {error}") from error
    case = Case.of(model, task)
    truth = planted(planted_model.truth, case.layout, mechanism=mechanism)
    whole = planted(planted_model.truth, case.layout)
    start = time.process_time()
    outcome = method.run(model, task, metric=None, batch_size=n, seed=seed)
    seconds = time.process_time() - start
    if isinstance(outcome, Graph):
        ranking = _edges(case, outcome, truth, whole)
    else:
        ranking = _nodes(case, outcome, truth, whole, variant=method.judged_variant)
    return {**ranking, "edges": truth.n_edges, "seconds": seconds}


def _edges(case: Case, graph: Graph, truth: Graph, whole: Graph) -> dict[str, float]:
    """How edges are ranked, and what circuits of as many edges keep."""
    grown = Graph.full(case.layout, graph.scores).greedy(truth.n_edges)
    ratios = faithfulness(case.model, case.task, [truth, grown]).faithfulness  # refuses a task no corruption changes
    scores = np.abs(np.nan_to_num(graph.scores)) / _span(case)
    return {
        **judge_edges(graph, truth, beside=whole),
        "lowest": float(scores[truth.mask].min()),
        "highest": float(scores[case.layout.exists & ~whole.mask].max()),
        "planted": float(ratios[0]),
        "found": float(ratios[1]),
    }


def _nodes(case: Case, table: Result, truth: Graph, whole: Graph, *, variant: str | None) -> dict[str, float]:
    """How heads and MLPs are ranked, each by its largest row; those of another task's circuit are left out."""
    ratios = faithfulness(case.model, case.task, truth).faithfulness
    rows = table.table if variant is None else table.table[table.table["variant"] == variant]
    largest = rows["value"].abs().groupby(rows["component"]).max()
    inside, planted_nodes = set(truth.nodes) - {EMBED, LOGITS}, set(whole.nodes)
    among = [name for name in case.layout.senders if name != EMBED and (name in inside or name not in planted_nodes)]
    scores = {str(name): float(value) for name, value in largest.items() if name in among}
    shares = {name: scores.get(name, 0.0) / _span(case) for name in among}
    return {
        **judge_nodes(scores, inside, among=among),
        "lowest": min((share for name, share in shares.items() if name in inside), default=np.nan),
        "highest": max((share for name, share in shares.items() if name not in inside), default=np.nan),
        "planted": float(ratios[0]),
        "found": np.nan,
    }


def _span(case: Case) -> float:
    """Change of the metric from one run to the other."""
    return abs(float(case.clean.mean() - case.corrupt.mean()))
