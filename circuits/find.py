"""One call from a model and a task to a circuit that has been judged on prompts it was not found on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.evaluation._curve import FRACTIONS, Curve, curve
from circuits.evaluation._faithfulness import Verdict, faithfulness
from circuits.graph.controls import random_circuits
from circuits.graph.graph import Graph
from circuits.graph.page import page
from circuits.methods import METHODS
from circuits.wiring.case import Case
from interp.errors import SchemaError, TaskError, nearest
from interp.model import Model
from interp.tasks import PromptTask
from interp.tasks import task as named_task

TARGET = 0.8
"""Faithfulness that a circuit of unstated size has to reach on the prompts it was found on."""
LARGEST = 0.1
"""Of the model's edges, unless more are asked for."""


@dataclass(frozen=True, eq=False)
class Found:
    """A circuit, how faithful it is on held-out prompts, and what random circuits of its size do there.

    Attributes:
        graph: the circuit. scored: the scores it was chosen from.
        verdict: of the circuit. random: of random circuits of its size. curve: over sizes, where there are scores.
        provenance: method, model, task, sizes: plain values.
    """

    graph: Graph
    scored: Graph
    verdict: Verdict
    random: Verdict
    curve: Curve | None
    provenance: Mapping[str, Any]

    @property
    def faithfulness(self) -> float:
        """On held-out prompts."""
        return float(self.verdict.faithfulness[0])

    @property
    def p(self) -> float:
        """Share of random circuits at least as close to the model, the circuit counted among them."""
        distance = np.abs(1 - self.random.faithfulness)
        return float((1 + (distance <= abs(1 - self.faithfulness)).sum()) / (1 + len(distance)))

    def table(self) -> pd.DataFrame:
        """The circuit's row of `Verdict.table`, and what random circuits of its size reach."""
        row = self.verdict.table()
        others = self.random.faithfulness
        row["random_mean"], row["random_max"] = others.mean(), others.max()
        row["n_random"], row["p"] = len(others), self.p
        return row

    def summary(self) -> str:
        """A few lines for a terminal."""
        row = self.table().iloc[0]
        told = self.provenance
        return "\n".join(
            [
                f"{told['method']} on {told['task']['task']}: {self.graph.n_edges} of {self.graph.layout.n_edges} "
                f"edges ({self.graph.fraction:.1%}), {len(self.graph.nodes)} nodes",
                f"faithfulness {row['faithfulness']:.3f} ({row['ci_low']:.3f} .. {row['ci_high']:.3f}) on {row['n']} "
                f"held-out prompts: {row['metric']} {row['value']:.3f} with these edges, {row['full']:.3f} with all, "
                f"{row['empty']:.3f} with none ({row['ablation']})",
                f"{row['n_random']} random circuits of the size: mean {row['random_mean']:.3f}, best "
                f"{row['random_max']:.3f}; p = {row['p']:.3f}",
            ]
        )

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write edges.csv, graph.json, circuit.dot, circuit.html (plotly inside, no network) and faithfulness.csv.

        Raises:
            SchemaError: the folder cannot be made.
        """
        target = Path(folder).expanduser()
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SchemaError(f"cannot write to {str(target)!r}: {error.strerror}") from error
        paths = {n: target / n for n in ("edges.csv", "faithfulness.csv", "graph.json", "circuit.dot", "circuit.html")}
        self.graph.table().to_csv(paths["edges.csv"], index=False)
        sizes = self.table() if self.curve is None else pd.concat([self.table(), self.curve.table()])
        sizes.to_csv(paths["faithfulness.csv"], index=False)
        self.graph.save(paths["graph.json"])
        paths["circuit.dot"].write_text(self.graph.to_dot(), encoding="utf-8")
        paths["circuit.html"].write_text(page(self.graph, self.summary()), encoding="utf-8")
        return paths

    def __repr__(self) -> str:
        return f"<Found {self.graph!r}, faithfulness {self.faithfulness:.3f}>"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.summary())}</pre>" + self.graph._repr_html_()


def circuit(
    model: Model,
    task: str | PromptTask,
    *,
    method: str = "eap-ig",
    edges: int | None = None,
    metric: str | None = None,
    held_out: PromptTask | None = None,
    n_prompts: int = 64,
    ablation: str = "resample",
    n_random: int = 20,
    control: str = "connected",
    batch_size: int = 16,
    seed: int = 0,
) -> Found:
    """The circuit of a task: edges scored on some prompts, chosen by size, judged on others beside random circuits.

    Without `edges` the size is the smallest of `curve.FRACTIONS` up to a tenth of the model at which faithfulness on
    the finding prompts is at least 0.8, and a tenth where none is. Edges are grown from the logits along the largest
    |scores| and pruned.

    Args:
        model: any backend with its weights at hand.
        task: name of a task, or its prompts.
        method: one of `METHODS`.
        edges: size of the circuit before pruning.
        metric: what is measured; the task's own otherwise.
        held_out: prompts to judge on; drawn from the task's held-out split where the task is named. Needed otherwise.
        n_prompts: of each of the two, where the task is named.
        ablation: what a removed edge carries while judging; see `faithfulness`.
        n_random: random circuits of the same size.
        control: how they are drawn; see `random_circuits`.
        batch_size: prompts at a time.
        seed: of prompts and random circuits.

    Raises:
        SchemaError: an unknown method, or a size of no edges.
        TaskError: a task that is not known, or prompts without others to judge on.
    """
    if method not in METHODS:
        raise SchemaError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    chosen = METHODS[method]
    finding, judging = _prompts(model, task, held_out, n=n_prompts, seed=seed)
    layout = Case.of(model, finding, metric=metric).layout
    if edges is not None and not 0 < edges <= layout.n_edges:
        raise SchemaError(f"{edges} edges asked for; expected 1 to {layout.n_edges}")
    if edges is not None and chosen.chooses:
        raise SchemaError(f"{method!r} chooses its edges itself; leave `edges` out, or take a method that scores them")
    scored = chosen.run(model, finding, metric, batch_size, seed)
    judged = {"metric": metric, "ablation": ablation, "batch_size": batch_size}
    if chosen.chooses:
        graph, sizes, size = scored, None, scored.n_edges
    else:
        size = edges or _size(model, finding, scored, **judged)
        graph = Graph.full(layout, scored.scores, columns=scored.columns).greedy(size)
        sizes = curve(model, judging, scored, **judged)
    told = {
        "method": method,
        "edges": size,
        "model": model.info.name,
        "task": finding.provenance(),
        "judged_on": judging.provenance(),
        "asked": {"edges": edges, "metric": metric, "ablation": ablation, "control": control, "seed": seed},
        "scores": json.loads(json.dumps(dict(scored.provenance), default=str)),
    }
    graph = replace(graph, provenance=told)
    verdict = faithfulness(model, judging, graph, **judged)
    random = random_circuits(graph, n=n_random, seed=seed, how=control)
    return Found(graph, scored, verdict, faithfulness(model, judging, random, **judged), sizes, told)


def _prompts(
    model: Model, task: str | PromptTask, held_out: PromptTask | None, *, n: int, seed: int
) -> tuple[PromptTask, PromptTask]:
    if isinstance(task, str):
        finding = named_task(task, model, n=n, seed=seed)
        return finding, held_out or named_task(task, model, n=n, seed=seed, split="held-out")
    if held_out is None:
        raise TaskError(f"{task.name}: prompts were given and none to judge on; pass `held_out` as well")
    return task, held_out


def _size(model: Model, task: PromptTask, scored: Graph, **judged: Any) -> int:
    """The smallest size that is faithful enough, on the prompts that the scores are of."""
    fractions = tuple(f for f in FRACTIONS if f <= LARGEST)
    found = curve(model, task, scored, fractions=fractions, **judged)
    enough = [f for f, faith in zip(fractions, found.verdict.faithfulness, strict=True) if faith >= TARGET]
    return max(1, round(min(enough, default=LARGEST) * scored.layout.n_edges))
