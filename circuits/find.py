"""One call from a model and a task to a circuit that has been judged on prompts it was not found on."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.evaluation._curve import FRACTIONS, Curve, curve
from circuits.evaluation._faithfulness import Verdict, faithfulness
from circuits.evaluation._removal import Removal, removal
from circuits.graph.circuit_page import CircuitPage, Size
from circuits.graph.controls import random_circuits
from circuits.graph.graph import Graph
from circuits.graph.roles import Roles
from circuits.methods import CircuitMethod
from circuits.methods import find as find_method
from circuits.wiring.case import Case
from interp.edits import Edit
from interp.errors import SchemaError, TaskError
from interp.files import write_files
from interp.measurement.ability import Ability, ability
from interp.model import Model
from interp.results.files import write_csv
from interp.results.provenance import recorded
from interp.results.results import Result
from interp.results.stats import Interval
from interp.tasks import PromptTask
from interp.tasks import task as named_task
from interp.tasks.metrics import AnyMetric

TARGET = 0.8
"""Faithfulness that a circuit of unstated size has to reach on the prompts it was found on."""
LARGEST = 0.1
"""Of the model's edges, unless more are asked for."""
LEAST_FOR_P = 99
"""Random circuits below which no p is given: with 20 the least possible would be 0.048."""


@dataclass(frozen=True, eq=False)
class Found:
    """A circuit, how faithful it is on held-out prompts, and what random circuits of its size do there.

    Attributes:
        graph: the circuit. scored: the scores it was chosen from.
        verdict: of the circuit. random: of random circuits of its size. curve: over sizes, where there are scores.
        ability: how well the model does the task on the prompts that the circuit is judged on.
        removal: how well with the circuit's edges alone, and without them.
        provenance: of the call, with the method, the size and where the scores came from: plain values.
    """

    graph: Graph
    scored: Graph
    verdict: Verdict
    random: Verdict
    curve: Curve | None
    ability: Ability
    provenance: Mapping[str, Any]
    removal: Removal | None = None

    @property
    def faithfulness(self) -> float:
        """On held-out prompts."""
        return float(self.verdict.faithfulness[0])

    @property
    def p(self) -> float:
        """Share of random circuits at least as close to the model, the circuit counted among them.

        NaN with fewer than 99 of them, which cannot say more than their mean and spread do, and where faithfulness is
        no number to compare (`Verdict.stands`).
        """
        distance = np.abs(1 - self.random.faithfulness)
        if len(distance) < LEAST_FOR_P or not self.verdict.stands:
            return float("nan")
        return float((1 + (distance <= abs(1 - self.faithfulness)).sum()) / (1 + len(distance)))

    @property
    def held_out(self) -> bool:
        """Whether it was judged on other prompts than those it was found on."""
        data = self.provenance["data"]
        return data["sha256"] != data["judged_on"]["sha256"]

    def with_provenance(self, provenance: Mapping[str, Any]) -> Found:
        """The same with another provenance, the graph's too."""
        return replace(self, graph=replace(self.graph, provenance=provenance), provenance=provenance)

    def table(self) -> pd.DataFrame:
        """The circuit's row of `Verdict.table`, what random circuits of its size reach, and the model's accuracy."""
        row = self.verdict.table()
        others = self.random.faithfulness
        row["random_mean"], row["random_max"] = others.mean(), others.max()
        row["random_sd"] = others.std(ddof=1) if len(others) > 1 else np.nan
        row["n_random"], row["p"] = len(others), self.p
        row["accuracy"], row["chance"] = self.ability.accuracy, self.ability.chance
        return row

    def summary(self) -> str:
        """A few lines for a terminal: the finding, whether the model can do the task, what the circuit keeps of it."""
        row, provenance = self.table().iloc[0], self.provenance
        task, metric = provenance["data"]["task"], row["metric"]
        lines = [
            self.finding(),
            f"{task}: the model is {self.ability.sentence()}; {metric} {row['full']:.3f}, and {row['empty']:.3f} with "
            f"no edge left ({row['ablation']})",
            f"{provenance['method']}: {self.graph.n_edges} of {self.graph.layout.n_edges} edges "
            f"({self.graph.fraction:.1%}), {len(self.graph.nodes)} nodes",
        ]
        faithful = f"faithfulness {row['faithfulness']:.3f} ({_interval(row)})"
        if not self.verdict.stands:
            gap = self.verdict.advantage()
            return "\n".join([*lines, _no_faithfulness(metric, gap, faithful)])
        noun = "prompt" if row["n"] == 1 else "prompts"
        where = f"{row['n']} held-out {noun}" if self.held_out else f"{row['n']} {noun}, those it was found on"
        lines.append(f"{faithful} on {where}: {metric} {row['value']:.3f} with these edges")
        return "\n".join([*lines, self._random_line(row)])

    def finding(self) -> str:
        """What was found, in a sentence: how much of the task the circuit does, and the model's accuracy without it."""
        graph, n = self.graph, self.graph.layout.n_edges
        edges = f"{graph.n_edges:,} of {n:,} edges"
        if not self.verdict.stands:
            sentence = (
                f"How much of the task {edges} do cannot be said: by {self.verdict.metric} the whole model is not "
                "reliably better than no edges at all."
            )
            return f"{self.ability.caution} {sentence}".strip()
        where = "" if self.held_out else " on the prompts they were found on"
        text = f"{edges} do {self.faithfulness:.2f} of the task{where} ({self._random_range()})"
        if self.removal is not None:
            before, after = self.ability.accuracy, self.removal.without.accuracy
            text += f"; without them accuracy {before:.2f} -> {after:.2f} (chance {self.ability.chance:.2g})"
        return f"{self.ability.caution} {text}.".strip()

    def _random_range(self) -> str:
        """What random circuits of the size reach, from the lowest to the highest."""
        values = self.random.faithfulness
        low, high = (f"{round(float(x), 2) + 0.0:.2f}" for x in (values.min(), values.max()))
        reach = low if low == high else f"{low} to {high}"
        return f"{len(values)} random circuits of as many: {reach}"

    def page(self, *, roles: Roles | None = None) -> CircuitPage:
        """The circuit to be looked at: the finding, the drawing with its sizes, every edge in a table.

        Args:
            roles: component -> role, or a table with the columns component and role, as `Atlas.roles`.

        Raises:
            SchemaError: roles of another form, or of names that are no components'.
        """
        task, model = self.provenance["data"]["task"], self.provenance.get("model", {}).get("name", "")
        where = f" in {model}" if model else ""
        own = Size(self.graph, self.faithfulness, *map(float, self.verdict.interval()[0]))
        title = f"Circuit of {str(task).replace('_', ' ')}{where}, found by {self.provenance['method']}"
        finding, *notes = self.summary().split("\n")
        return self.graph.page(title=title, finding=finding, notes=notes, roles=roles, sizes=(own, *self._sizes()))

    def _sizes(self) -> list[Size]:
        """The circuits of the curve, each with its faithfulness; none where faithfulness is no number to read."""
        if self.curve is None or not self.verdict.stands:
            return []
        verdict = self.curve.verdict
        rows = zip(verdict.graphs, verdict.faithfulness, verdict.interval(), strict=True)
        return [Size(graph, float(value), float(low), float(high)) for graph, value, (low, high) in rows]

    def _random_line(self, row: Any) -> str:
        """What random circuits reach, and a p where there are enough of them for one."""
        mean, best = (f"{round(float(row[name]), 3) + 0.0:.3f}" for name in ("random_mean", "random_max"))
        spread = f" +- {row['random_sd']:.3f}" if row["n_random"] > 1 else ""
        p = "" if np.isnan(row["p"]) else f"; p = {row['p']:.3f} (least possible {1 / (1 + row['n_random']):.3f})"
        return f"{row['n_random']} random circuits of the size: {mean}{spread}, best {best}{p}"

    def save(
        self, folder: str | Path, *, roles: Roles | None = None, force: bool = False, quote: bool = False
    ) -> dict[str, Path]:
        """Write edges.csv, graph.json, circuit.dot, circuit.html (`page`, with `roles`) and faithfulness.csv.

        All of them appear or none. `force` replaces files that are not an earlier circuit; `quote` as in `Result.save`.

        Raises:
            InterpError: the folder cannot be written to, a file in it is somebody else's, or roles as in `page`.
        """
        sizes = self.table() if self.curve is None else pd.concat([self.table(), self.curve.table()])
        texts = {
            "graph.json": self.graph.to_json(),
            "circuit.dot": self.graph.to_dot(),
            "circuit.html": self.page(roles=roles).html,
        }
        writers: dict[str, Callable[[Path], object]] = {
            "edges.csv": lambda p: write_csv(self.graph.table(), p, quote=quote),
            "faithfulness.csv": lambda p: write_csv(sizes, p, quote=quote),
        }
        writers |= {name: partial(Path.write_text, data=text, encoding="utf-8") for name, text in texts.items()}
        return write_files(folder, writers, force=force)

    def __repr__(self) -> str:
        return f"<Found {self.graph!r}, faithfulness {self.faithfulness:.3f}>"

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()


@recorded
def circuit(
    model: Model,
    task: str | PromptTask,
    *,
    method: str = "eap-ig",
    edges: int | None = None,
    metric: AnyMetric | None = None,
    held_out: PromptTask | None = None,
    n_prompts: int = 64,
    ablation: str = "resample",
    n_random: int = 20,
    control: str = "connected",
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
    **options: Any,
) -> Found | Result:
    """The circuit of a task: edges scored on some prompts, chosen by size, judged on others beside random circuits.

    Without `edges` the size is the smallest of `curve.FRACTIONS` up to a tenth of the model at which faithfulness on
    the finding prompts is at least 0.8, and a tenth where none is. Edges are grown from the logits along the largest
    |scores| and pruned. A method that chooses its edges itself is judged as it is; of a method that gives a table of
    components, and no circuit, the table is returned.

    Args:
        model: any backend with its weights at hand.
        task: name of a task, or its prompts.
        method: one of `circuits.methods.names()`.
        edges: size of the circuit before pruning.
        metric: what is measured; the task's own otherwise.
        held_out: prompts to judge on; drawn from the task's held-out split where the task is named. Needed otherwise,
            but for a table.
        n_prompts: of each of the two, where the task is named.
        ablation: what a removed edge carries while judging; see `faithfulness`.
        n_random: random circuits of the same size.
        control: how they are drawn; see `random_circuits`.
        batch_size: prompts at a time.
        seed: of prompts and random circuits.
        options: the method's own; see `circuits.methods`.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: an unknown method or option, a size of no edges, or one for a method that chooses its own; a
            circuit without any edge.
        TaskError: a task that is not known, or prompts without others to judge on.
    """
    entry = find_method(method)
    entry.check(options)
    judge_options = {
        "edges": edges,
        "held_out": held_out,
        "ablation": ablation,
        "n_random": n_random,
        "control": control,
    }
    _refuse_options(entry, judge_options)
    if entry.gives == "table":
        search_task = named_task(task, model, n=n_prompts, seed=seed) if isinstance(task, str) else task
        table = entry.run(model, search_task, metric=metric, batch_size=batch_size, seed=seed, **options)
        assert isinstance(table, Result)  # what a method gives is declared
        return replace(table, provenance={**_own(entry, table.provenance), "data": search_task.provenance()})
    search_task, judge_task = _prompts(model, task, held_out, n=n_prompts, seed=seed)
    layout = Case.of(model, search_task, metric=metric).layout
    if edges is not None and not 0 < edges <= layout.n_edges:
        raise SchemaError(f"{edges} edges asked for; expected 1 to {layout.n_edges}")
    if edges is not None and entry.gives == "circuit":
        options = {**options, "edges": edges}
    scores = entry.run(model, search_task, metric=metric, batch_size=batch_size, seed=seed, **options)
    assert isinstance(scores, Graph)
    return _outcome(
        model, search_task, judge_task, scores, judge_options, entry, metric=metric, batch_size=batch_size, seed=seed
    )


def _interval(row: Any) -> str:
    """An interval over prompts, of which there have to be two."""
    return f"{row['ci_low']:.3f} .. {row['ci_high']:.3f}" if row["n"] > 1 else "no interval over one prompt"


def _no_faithfulness(metric: str, gap: Interval, ratio: str) -> str:
    """Why faithfulness is not to be read."""
    return (
        f"no verdict: by {metric} the whole model is not reliably better than nothing (by {float(gap.mean):.3f}, "
        f"95 % interval {float(gap.low):.3f} .. {float(gap.high):.3f}), so that the ratio is noise: {ratio}"
    )


def _refuse_options(method: CircuitMethod, judge_options: Mapping[str, Any]) -> None:
    """Options of how a circuit is chosen and judged that mean nothing for this method."""
    if method.gives == "circuit" and judge_options["edges"] is not None and "edges" not in method.options:
        raise SchemaError(
            f"{method.name!r} chooses its edges itself; leave `edges` out, or take a method that scores them"
        )
    defaults = inspect.signature(circuit).parameters
    for name, value in judge_options.items() if method.gives == "table" else ():
        if value != defaults[name].default:
            raise SchemaError(f"{method.name!r} gives a table of components and no circuit; leave `{name}` out")


def _own(method: CircuitMethod, scores: Mapping[str, Any]) -> dict[str, Any]:
    """What provenance says beside the call: the method, the metric, and the call that the method made of it."""
    plain = json.loads(json.dumps(dict(scores), default=str))
    return {"method": method.name, "metric": plain.get("metric"), "scores": plain}


def _outcome(
    model: Model,
    search_task: PromptTask,
    judge_task: PromptTask,
    scores: Graph,
    judge_options: Mapping[str, Any],
    method: CircuitMethod,
    *,
    metric: AnyMetric | None,
    batch_size: int,
    seed: int,
) -> Found:
    """The circuit that scores lead to (or that was chosen), and what held-out prompts say of it."""
    how = {"metric": metric, "ablation": judge_options["ablation"], "batch_size": batch_size}
    if method.gives == "circuit":
        graph, sizes, size = scores, None, scores.n_edges
    else:
        size = judge_options["edges"] or _size(model, search_task, scores, **how)
        graph = Graph.full(scores.layout, scores.scores, columns=scores.columns).greedy(size)
        sizes = curve(model, judge_task, scores, **how)
    if not graph.n_edges:
        raise SchemaError(f"{method.name!r} found no edge: there is no circuit to judge")
    verdict = faithfulness(model, judge_task, graph, **how)
    random = random_circuits(graph, n=judge_options["n_random"], seed=seed, how=judge_options["control"])
    data = {**search_task.provenance(), "judged_on": judge_task.provenance()}
    own = {**_own(method, scores.provenance), "metric": verdict.metric, "edges": size, "data": data}
    judged_random = faithfulness(model, judge_task, random, **how)
    able, gone = verdict.ability or ability(model, judge_task), removal(model, judge_task, graph, **how)
    return Found(graph, scores, verdict, judged_random, sizes, able, own, gone)


def _prompts(
    model: Model, task: str | PromptTask, held_out: PromptTask | None, *, n: int, seed: int
) -> tuple[PromptTask, PromptTask]:
    if isinstance(task, str):
        search_task = named_task(task, model, n=n, seed=seed)
        return search_task, held_out or named_task(task, model, n=n, seed=seed, split="held-out")
    if held_out is None:
        raise TaskError(f"{task.name}: prompts were given and none to judge on; pass `held_out` as well")
    return task, held_out


def _size(model: Model, task: PromptTask, scores: Graph, **options: Any) -> int:
    """The smallest size that is faithful enough, on the prompts that the scores are of."""
    fractions = tuple(f for f in FRACTIONS if f <= LARGEST)
    size_curve = curve(model, task, scores, fractions=fractions, **options)
    faithful_fractions = [
        f for f, faith in zip(fractions, size_curve.verdict.faithfulness, strict=True) if faith >= TARGET
    ]
    return max(1, round(min(faithful_fractions, default=LARGEST) * scores.layout.n_edges))
