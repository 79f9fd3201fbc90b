"""How the model knows a fact, step by step, read off the table of the analysis that declares this section."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.measurement.registry import analyses
from interp.plots.theme import GREY, MARK, template
from interp.reports.cells import Cell, cell, interval, number, small
from interp.results.results import Result

ROWS = 6  # of a step
NEEDED = {"mechanism", "source", "subject", "relation"}


@dataclass(frozen=True)
class Line:
    """A component in one step: its number, interval, what chance gives, q, and a word on what it is."""

    component: str
    value: Cell
    interval: Cell
    null: Cell
    q: Cell
    kind: str


@dataclass(frozen=True)
class Step:
    """One question about a fact, its answer in a sentence, and the numbers behind it.

    Attributes:
        id: of its place in the page. title: the question. answer: a sentence. unit, control: of the numbers, and what
            the column of chance is. rows: largest first.
    """

    id: str
    title: str
    answer: str
    unit: str
    control: str
    rows: list[Line]


@dataclass(frozen=True)
class Broken:
    """What a set of components does when it is set to its mean: one metric, beside random sets."""

    components: str
    metric: str
    clean: Cell
    edited: Cell
    random: Cell
    matching: str


@dataclass(frozen=True)
class Knowledge:
    """Everything the template needs. `total`, `error`: the logit that the parts sum to, and by how much they miss."""

    task: str
    n: int
    total: str
    error: str
    able: bool
    steps: list[Step]
    broken: list[Broken]
    left_out: list[str]
    figures: dict[str, go.Figure] = field(default_factory=dict)


def knowledge(result: Result) -> Knowledge | None:
    """The steps of a fact; None where the analysis was not run."""
    names = [name for name, spec in analyses().items() if spec.section == "knowledge"]
    rows = result.table[result.table["analysis"].isin(names)]
    own: dict[str, pd.DataFrame] = {str(variant): group for variant, group in rows.groupby("variant")}
    if not set(own) >= NEEDED:
        return None
    data = _data(result, names)
    source = own["source"].set_index("component")["value"]
    steps = [_made_of(own), _looked_up(own), _moved(own), _said(own), _neurons(own), _context(own)]
    effects = result.interventions[result.interventions["analysis"].isin(names)]
    return Knowledge(
        task=str(data.get("task", "")).replace("_", " "),
        n=int(data.get("n_prompts", 0)),
        total=number(float(source["logit"])),
        error=small(float(data.get("sum_error", 0.0))),
        able=bool(data.get("able", True)),
        steps=[step for step in steps if step is not None],
        broken=[_broken(row) for row in effects.to_dict("records")],
        left_out=[f"{name}: {why}" for name, why in (data.get("left_out") or {}).items()],
        figures={"knowledge": _figure(source.drop("logit"))},
    )


def _data(result: Result, names: list[str]) -> dict[str, Any]:
    for call in result.provenance.get("calls") or [result.provenance]:
        if (call.get("call") or {}).get("analysis") in names:
            return dict(call.get("data") or {})
    return {}


def _made_of(own: dict[str, pd.DataFrame]) -> Step:
    rows = own["source"]
    parts = rows[rows["component"] != "logit"]
    best = parts.sort_values("value").iloc[-1]
    answer = f"The largest part is {best['component']}: {number(float(best['value']))} logits."
    return Step("made-of", "What is the answer made of?", answer, "logit", "", [_line(row) for row in _records(rows)])


def _looked_up(own: dict[str, pd.DataFrame]) -> Step | None:
    if "enrichment" not in own:
        return None
    rows = own["enrichment"]
    sure = rows[(rows["q"] < 0.01) & rows["layer"].notna()]
    needed = ", ".join(sure["component"])
    answer = f"The answer needs what {needed} writes" if needed else "The answer needs no single MLP’s write"
    answer += " at the subject’s last token: what it loses with that set to the mean over subjects."
    if "elsewhere" in own:
        other = own["elsewhere"]["value"].abs().max()
        answer += f" The same at another random token costs at most {number(float(other))}."
    lines = [replace(_line(row), kind="needed" if row["q"] < 0.01 else "") for row in _records(rows)]
    return Step("looked-up", "Is it looked up at the subject?", answer, "logit lost", "Other prompts’ answers", lines)


def _moved(own: dict[str, pd.DataFrame]) -> Step:
    rows = own["mechanism"]
    heads = _largest(rows[rows["head"].notna()])
    subject, relation = (own[v].set_index("component")["value"] for v in ("subject", "relation"))
    labelled = heads[_labels(heads)]
    shares = [
        f"{c} ({number(float(subject[c]), 2)} from the subject, {number(float(relation[c]), 2)} from other tokens)"
        for c in labelled["component"]
    ]
    answer = f"Heads labelled: {', '.join(shares)}." if shares else "No head is labelled."
    lines = [_line(row) for row in _records(heads)]
    return Step("moved", "Which heads bring it to the end?", answer, "logit", "Other prompts’ answers", lines)


def _said(own: dict[str, pd.DataFrame]) -> Step:
    rows = own["mechanism"]
    mlps = _largest(rows[rows["head"].isna()])
    labelled = ", ".join(mlps.loc[_labels(mlps), "component"]) or "none"
    answer = f"MLPs labelled at the end: {labelled}."
    if "answer_direction" in own:
        own_area, rest = (float(own[v]["value"].iloc[0]) for v in ("answer_direction", "answer_direction_rest"))
        answer += (
            f" What all labelled components write puts the right attribute above {number(100 * own_area, 1)} % of the "
            f"others; what is left, above {number(100 * rest, 1)} %; half is chance."
        )
    return Step(
        "said", "Which MLPs say it?", answer, "logit", "Other prompts’ answers", [_line(row) for row in _records(mlps)]
    )


def _neurons(own: dict[str, pd.DataFrame]) -> Step | None:
    if "neuron" not in own:
        return None
    rows = own["neuron"].sort_values("value", ascending=False, kind="stable").head(ROWS)
    labelled = ", ".join(own["neuron"].loc[_labels(own["neuron"]), "component"])
    answer = f"Neurons labelled: {labelled}." if labelled else "No single neuron is needed beyond others of its size."
    lines = [_line(row) for row in _records(rows)]
    return Step(
        "neurons",
        "Which neurons does it need?",
        answer,
        str(rows["unit"].iloc[0]).replace("_", " "),
        "Other neurons",
        lines,
    )


def _context(own: dict[str, pd.DataFrame]) -> Step | None:
    if "context" not in own:
        return None
    rows = own["context"]
    labelled = rows[_labels(rows)]
    kinds = [
        f"{role}: {', '.join(labelled.loc[labelled['role'] == role, 'component']) or 'none'}"
        for role in ("context", "memory")
    ]
    answer = f"Where a prompt contradicts the fact, heads write for {'; for '.join(kinds)}."
    lines = [_line(row) for row in _records(_largest(rows))]
    return Step("context", "Memory or context?", answer, "logit", "Other answers of the relation", lines)


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("value", key=lambda v: -v.abs(), kind="stable").head(ROWS)


def _labels(rows: pd.DataFrame) -> pd.Series:
    return rows["label"].fillna(False).astype(bool)


def _records(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    return rows.to_dict("records")


def _line(row: dict[Any, Any]) -> Line:
    role = row.get("role")
    kind = "" if pd.isna(role) else str(role)
    label = row.get("label")
    return Line(
        str(row["component"]),
        cell(float(row["value"])),
        interval(row["ci_low"], row["ci_high"]),
        cell(float(row["null"])),
        cell(float(row["q"])),
        kind if pd.isna(label) or not label else (kind or "labelled"),
    )


def _broken(row: dict[Any, Any]) -> Broken:
    return Broken(
        str(row["set_id"]).rpartition(": ")[2],
        str(row["metric"]),
        cell(row["clean"]),
        cell(row["edited"]),
        cell(float("nan") if pd.isna(row["random_mean"]) else row["random_mean"]),
        f"{row['n_random']}, {row['control']}" if row["n_random"] else "none",
    )


def _figure(parts: pd.Series) -> go.Figure:
    """Parts of the logit, from left to right as they are summed."""
    figure = go.Figure()
    values = parts.astype(float)
    figure.add_bar(
        x=list(values.index),
        y=list(values),
        marker={"color": MARK},
        hovertemplate="%{x}<br>%{y:.4f} logit<extra></extra>",
    )
    figure.update_layout(template=template(), height=280, showlegend=False, bargap=0.4)
    zero = {"zeroline": True, "zerolinecolor": GREY, "zerolinewidth": 1}
    figure.update_yaxes(title_text="logit", showgrid=True, gridcolor="rgba(128,138,150,0.25)", nticks=6, **zero)
    return figure
