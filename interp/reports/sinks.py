"""Attention sinks of the model as a whole, read off the table of the analysis that declares this section."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from interp.measurement.registry import analyses
from interp.plots.rows import largest, scores
from interp.reports.cells import Cell, cell, percent
from interp.results.results import Result

HEADS = 12
LEVEL = "rate_0.3"  # the paper's epsilon


@dataclass(frozen=True)
class SinkHead:
    """A head with the first token's share, with and without BOS, and where else it parks."""

    component: str
    first: Cell
    bare: Cell
    norm: Cell
    elsewhere: Cell
    position: Cell
    label: str


@dataclass(frozen=True)
class Sinks:
    """`rate`: the share of heads and prompts that give the first token more than 0.3 (Gu et al.'s Sink_1)."""

    rate: str
    bare: str
    first: str
    labelled: int
    n_heads: int
    heads: list[SinkHead]


def sinks(result: Result) -> Sinks | None:
    """The model's sinks; None where the analysis was not run."""
    names = [name for name, spec in analyses().items() if spec.section == "sinks"]
    rows = result.table[result.table["analysis"].isin(names)]
    own = {variant: group.set_index("component") for variant, group in rows.groupby("variant")}
    if not {"first_token", "first_token_without_bos", LEVEL, "value_norm_ratio", "strongest_elsewhere"} <= set(own):
        return None
    first_scores = scores(rows[rows["variant"] == "first_token"])
    heads = [
        SinkHead(
            score.component,
            cell(score.value),
            cell(_of(own["first_token_without_bos"], score.component)),
            cell(_of(own["value_norm_ratio"], score.component)),
            cell(_of(own["strongest_elsewhere"], score.component)),
            cell(_of(own["strongest_elsewhere"], score.component, "position"), 0),
            "yes" if score.label else "no",
        )
        for score in largest(first_scores, HEADS)
    ]
    return Sinks(
        rate=percent(float(own[LEVEL]["value"].mean())),
        first=cell(float(own["first_token"]["value"].mean())).text,
        bare=cell(float(own["first_token_without_bos"]["value"].mean())).text,
        labelled=sum(bool(score.label) for score in first_scores),
        n_heads=len(first_scores),
        heads=heads,
    )


def _of(rows: pd.DataFrame, component: str, column: str = "value") -> float:
    value = rows[column].get(component)
    return math.nan if value is None or pd.isna(value) else float(value)
