"""Every method of finding circuits against circuits that are known, because the models were written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.evaluation._faithfulness import faithfulness
from circuits.evaluation.truth import judge_edges, planted
from circuits.graph.graph import Graph
from circuits.methods import METHODS
from circuits.wiring.case import Case
from interp.errors import SchemaError, TaskError, nearest
from interp.loading.load import load
from interp.model import Model
from interp.parallel import each
from interp.results.stats import spearman
from interp.studies.scoreboard import ROUNDING
from interp.tasks import PromptTask, planted_task
from interp.zoo.planted.factory import ALL, ARCHITECTURES, Planted, plant

MECHANISMS = tuple(m.name for m in ALL if m.name not in {"sink", "massive_activation"})
"""All whose task has something to explain: what a sink attends to, `<bos>`, is the same in the corrupted prompt."""
GOALS = {"exact": 1.0, "eap-ig": 0.95, "acdc": 0.95}
"""AUROC that a method reaches on every planted circuit; of the others it is measured."""
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
    """One row per (method, mechanism, architecture, seed): how its scores rank the planted edges.

    Columns: `auroc`, `average_precision` over all edges of the model but those planted for another task (a head that
    writes what another reads may say it as well); `edges` planted; faithfulness of the circuit `planted` and of as many
    edges `found`, grown from the method's scores; `lowest` |score| of a planted edge and `highest` of another, as
    shares of the metric's change; `seconds` of the processor.

    Seeds draw the places of heads and the prompts, and with `noise` (of `zoo.factory.plant`; 0: none) the weights of
    all that is not planted. `jobs` models are judged at a time, in processes.

    Raises:
        SchemaError: an unknown method, mechanism or architecture.
    """
    for what, given, known in (
        ("method", methods or (), METHODS),
        ("architecture", architectures, ARCHITECTURES),
        ("mechanism", mechanisms, {m.name for m in ALL}),
    ):
        for name in given:
            if name not in known:
                raise SchemaError(f"unknown {what} {name!r}; {nearest(name, known)}")
    cases = [(m, a, s) for m in mechanisms for a in architectures for s in range(seeds)]
    chosen = tuple(methods or METHODS)
    judged = each(lambda case: _case(*case, methods=chosen, n=n, noise=noise), cases, jobs=jobs, progress=progress)
    return pd.DataFrame([row for rows in judged for row in rows])


def _case(
    mechanism: str, architecture: Any, seed: int, *, methods: Sequence[str], n: int, noise: float
) -> list[dict[str, Any]]:
    """Rows of all methods on one planted model."""
    planted_one = [m for m in ALL if m.name == mechanism]
    made = plant(planted_one, architecture=architecture, seed=seed, noise=noise)
    place = {"mechanism": mechanism, "architecture": architecture, "seed": seed}
    return [{"method": name} | place | _judged(made, mechanism, name, n=n, seed=seed) for name in methods]


def failed(board: pd.DataFrame) -> bool:
    """Whether a method ranks the planted edges worse than it should (`GOALS`)."""
    return any((board.loc[board["method"] == name, "auroc"] < goal - ROUNDING).any() for name, goal in GOALS.items())


def summary(board: pd.DataFrame) -> pd.DataFrame:
    """Worst and mean over seeds, per method, mechanism and architecture."""
    grouped = board.groupby(["method", "mechanism", "architecture"], sort=False)
    return grouped.agg(
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
    metric: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """How approximate scores of all edges agree with exact patching of each edge by itself.

    One row per method: Spearman and Pearson correlation over edges, Spearman over the `largest` of the exact effects
    (a hundred; of the others the order is noise), the share of its k strongest edges that are among the k strongest
    exactly, and CPU seconds.
    """
    exact = METHODS["exact"].run(model, task, metric, batch_size, seed)
    exists = exact.layout.exists
    true = exact.scores[exists]
    order = np.argsort(-np.abs(true))
    rows = []
    for name in methods or [name for name in METHODS if name != "exact"]:
        started = time.process_time()
        found = np.nan_to_num(METHODS[name].run(model, task, metric, batch_size, seed).scores[exists])
        unsigned = name == "acdc"
        target = np.abs(true) if unsigned else true
        row: dict[str, float | str | int] = {
            "method": name,
            "edges": len(true),
            "spearman": spearman(found, target).rho,
            "pearson": float(np.corrcoef(found, target)[0, 1]),
            "largest": spearman(found[order[:LARGEST]], target[order[:LARGEST]]).rho,
        }
        mine = np.argsort(-np.abs(found), kind="stable")
        row |= {f"top_{n}": len(set(mine[:n].tolist()) & set(order[:n].tolist())) / n for n in k}
        rows.append(row | {"seconds": time.process_time() - started})
    return pd.DataFrame(rows)


def _judged(made: Planted, mechanism: str, method: str, *, n: int, seed: int) -> dict[str, float | int]:
    model = load(made.model, tokenizer=made.tokenizer)
    try:
        task = planted_task(made, mechanism, n=n, seed=seed)
    except TaskError as error:
        raise SchemaError(f"{mechanism} has no task to find a circuit of: {error}") from error
    case = Case.of(model, task)
    truth, whole = planted(made.truth, case.layout, mechanism=mechanism), planted(made.truth, case.layout)
    started = time.process_time()
    scored = METHODS[method].run(model, task, None, n, seed)
    seconds = time.process_time() - started
    exists, size = case.layout.exists, truth.n_edges
    grown = Graph.full(case.layout, scored.scores).greedy(size)
    verdict = faithfulness(model, task, [truth, grown]).faithfulness  # refuses a task that no corruption changes
    scores = np.abs(np.nan_to_num(scored.scores)) / abs(float(case.clean.mean() - case.corrupt.mean()))
    return {
        **judge_edges(scored, truth, beside=whole),
        "edges": size,
        "lowest": float(scores[truth.mask].min()),
        "highest": float(scores[exists & ~whole.mask].max()),
        "planted": float(verdict[0]),
        "found": float(verdict[1]),
        "seconds": seconds,
    }
