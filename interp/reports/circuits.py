"""The circuit of a task as the page shows it: drawing, verdict on held-out prompts, random circuits, edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import SchemaError
from interp.model import Model
from interp.reports.cells import DASH, Cell, cell, interval, number, percent
from interp.reports.facts import check_identity
from interp.tasks import PromptTask
from interp.tasks import task as named_task

if TYPE_CHECKING:
    from circuits.find import Found
    from circuits.graph.circuit_page import CircuitPage
    from interp.results.results import Result

    Pair = tuple[PromptTask, PromptTask] | Found | Result
    """Prompts to find a circuit on and to judge it on, or what was made of them already."""

PROMPTS = 64  # to find a circuit on, and as many others to judge it


@dataclass(frozen=True)
class Size:
    """How faithful the circuit of one size is."""

    edges: Cell
    fraction: Cell
    faithfulness: Cell
    interval: Cell


@dataclass(frozen=True)
class TaskCircuit:
    """Everything the template needs of one circuit; numbers are written out."""

    task: str
    method: str
    edges: int
    all_edges: int
    percent: str
    nodes: list[str]
    faithfulness: str
    interval: str
    n: int
    metric: str
    ablation: str
    value: str
    full: str
    empty: str
    n_random: int
    random_mean: str
    random_sd: str
    random_max: str
    p: str
    least_p: str
    ability: str
    caution: str
    stands: bool
    advantage: str
    held_out: bool
    corruption: str
    judged_on: dict[str, Any]
    sizes: list[Size]
    finding: str
    view: CircuitPage


def prompts(model: Model, names: Sequence[Any], *, seed: int, method: str = "eap-ig") -> list[Pair]:
    """Of each task the prompts to find its circuit on and those to judge it on; what was found already stays.

    Raises:
        SchemaError: neither a name nor a circuit of this model, or an unknown method.
        InterpError: a task that is not known, that this model cannot be asked, or whose edges cannot be told apart.
    """
    from circuits.find import Found
    from circuits.methods import find as find_method
    from circuits.wiring.case import Case
    from interp.results.results import Result

    find_method(method)
    pairs: list[Pair] = []
    for name in names:
        if isinstance(name, Found | Result):
            check_identity(model, name.provenance["model"], "this circuit is")
            pairs.append(name)
            continue
        train, held_out = _two(model, name, seed=seed)
        Case.of(model, train)
        pairs.append((train, held_out))
    return pairs


def _two(model: Model, name: Any, *, seed: int) -> tuple[PromptTask, PromptTask]:
    """Prompts to search on and to judge on: of a named task, a pair of tasks, or one task twice."""
    if isinstance(name, str):
        train, held_out = (named_task(name, model, n=PROMPTS, seed=seed, split=s) for s in ("train", "held-out"))
        return train, held_out
    given = name if isinstance(name, tuple) else (name, name)
    if len(given) != 2 or not all(isinstance(task, PromptTask) for task in given):
        raise SchemaError(f"{name!r}: expected a task, its name, or what `circuits.circuit` found")
    return given


def find(
    model: Model,
    pairs: Sequence[Pair],
    *,
    seed: int,
    method: str = "eap-ig",
    told: Callable[[str], Any] | None = None,
) -> list[Found | Result]:
    """What a method makes of each task; `told` is called with its name before the work begins."""
    from circuits.find import circuit
    from circuits.methods import find as find_method

    uses_held_out, outcomes = find_method(method).gives != "table", []
    for pair in pairs:
        if not isinstance(pair, tuple):
            outcomes.append(pair)
            continue
        train, held_out = pair
        if told is not None:
            told(train.name)
        outcomes.append(circuit(model, train, method=method, held_out=held_out if uses_held_out else None, seed=seed))
    return outcomes


def task_circuit(result: Found, *, roles: pd.DataFrame | None = None) -> TaskCircuit:
    """A found circuit in the form of the page; `roles` of heads as `Found.page` takes them."""
    row, own = result.table().iloc[0], result.provenance
    graph = result.graph
    return TaskCircuit(
        task=str(own["data"]["task"]).replace("_", " "),
        method=str(own["method"]),
        edges=graph.n_edges,
        all_edges=graph.layout.n_edges,
        percent=percent(graph.fraction),
        nodes=list(graph.nodes),
        faithfulness=number(row["faithfulness"]),
        interval=f"{number(row['ci_low'])} to {number(row['ci_high'])}",
        n=int(row["n"]),
        metric=str(row["metric"]).replace("_", " "),
        ablation=str(row["ablation"]),
        value=number(row["value"]),
        full=number(row["full"]),
        empty=number(row["empty"]),
        n_random=int(row["n_random"]),
        random_mean=number(row["random_mean"]),
        random_sd=number(row["random_sd"]),
        random_max=number(row["random_max"]),
        p="" if np.isnan(row["p"]) else number(row["p"]),
        least_p=number(1 / (1 + row["n_random"])),
        ability=result.ability.sentence(),
        caution=result.ability.caution,
        stands=result.verdict.stands,
        advantage=_advantage(result),
        held_out=result.held_out,
        corruption=str(own["data"].get("corruption", DASH)).replace("_", " "),
        judged_on=dict(own["data"]["judged_on"]),
        sizes=_sizes(result),
        finding=result.finding(),
        view=result.page(roles=roles),
    )


def run_line(result: Found | Result) -> dict[str, str]:
    """The line of the provenance table."""
    provenance = result.provenance
    task, held_out = provenance["data"], provenance["data"].get("judged_on")
    return {
        "analysis": "circuit",
        "data": str(task["task"]),
        "prompts": str(task["n_prompts"]) + (f" + {held_out['n_prompts']} held out" if held_out else ""),
        "bos": str(task.get("bos", DASH)),
        "method": str(provenance["method"]),
        "seed": str(provenance["seed"]),
        "hash": f"{task['sha256']}, {held_out['sha256']}" if held_out else str(task["sha256"]),
        "when": str(provenance["created_utc"]).replace("T", " ").rstrip("Z"),
        "seconds": f"{provenance['seconds']:.2f}",
        "id": str(provenance["run_id"]),
    }


def _advantage(result: Found) -> str:
    """By how much the whole model beats nothing, with its interval."""
    gap = result.verdict.advantage()
    mean, low, high = (number(float(x)) for x in (gap.mean, gap.low, gap.high))
    return f"{mean} ({low} to {high})"


def _sizes(result: Found) -> list[Size]:
    """Circuits of other sizes, each size once."""
    if result.curve is None:
        return []
    rows = result.curve.table().drop_duplicates("edges").sort_values("edges").to_dict("records")
    return [
        Size(
            cell(float(row["edges"]), 0),
            cell(row["fraction"], text=percent(row["fraction"])),
            cell(row["faithfulness"]),
            interval(row["ci_low"], row["ci_high"]),
        )
        for row in rows
    ]
