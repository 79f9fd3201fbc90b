"""Where the attention of the model rests, read off the tables of the analyses that declare this section."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interp.measurement.registry import analyses
from interp.plots.rows import largest, scores
from interp.reports.cells import Cell, cell, number, percent
from interp.results.results import Result

HEADS = 12
LEVEL = "rate_0.3"  # the paper's epsilon
REASONS = ("value_norm_ratio", "gap", "gap_norm", "output_share")


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
class RestingPlace:
    """A head that rests on one kind of key: on which prompts, how much, against uniform attention, and why."""

    component: str
    place: str
    input: str
    share: Cell
    null: Cell
    norm: Cell
    gap: Cell
    length: Cell
    output: Cell


@dataclass(frozen=True)
class Massive:
    """A massive activation: where it stands, how large it is, who writes it and who takes it away."""

    component: str
    place: str
    ratio: Cell
    activation: Cell
    born: str
    erased: str


@dataclass(frozen=True)
class Effect:
    """What the loss does under one change, beside random ones."""

    what: str
    clean: Cell
    edited: Cell
    random: Cell


@dataclass(frozen=True)
class FirstToken:
    """`rate`: the share of heads and prompts that give the first token more than 0.3 (Gu et al.'s Sink_1)."""

    rate: str
    bare: str
    first: str
    labelled: int
    n_heads: int
    heads: list[SinkHead]


@dataclass(frozen=True)
class Sinks:
    """Parts that were measured: the first token, all kinds of keys, massive activations; what goes without them."""

    first: FirstToken | None
    places: list[RestingPlace] | None
    massive: list[Massive] | None
    effects: list[Effect]


def sinks(result: Result) -> Sinks | None:
    """Where the model's attention rests; None where no analysis of the section was run."""
    specs = {name: spec for name, spec in analyses().items() if spec.section == "sinks"}
    tables = {name: result.table[result.table["analysis"] == name] for name in specs}
    first, places, massive = None, None, None
    for name, rows in tables.items():
        if len(rows) and "place" not in specs[name].columns:
            first = _first(rows)
        elif len(rows) and "dimension" in specs[name].columns:
            massive = _massive(rows, specs[name].headline)
        elif len(rows):
            places = _places(rows, specs[name].headline)
    if first is None and places is None and massive is None:
        return None
    names = result.interventions["analysis"].isin(list(specs)) if len(result.interventions) else []
    return Sinks(first, places, massive, [_effect(row) for row in result.interventions[names].to_dict("records")])


def _first(rows: pd.DataFrame) -> FirstToken | None:
    """The first token alone, with and without BOS."""
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
    return FirstToken(
        rate=percent(float(own[LEVEL]["value"].mean())),
        first=cell(float(own["first_token"]["value"].mean())).text,
        bare=cell(float(own["first_token_without_bos"]["value"].mean())).text,
        labelled=sum(bool(score.label) for score in first_scores),
        n_heads=len(first_scores),
        heads=heads,
    )


def _places(rows: pd.DataFrame, headline: str) -> list[RestingPlace]:
    """Labelled heads by kind of key and of prompts, the largest share first."""
    keys = ["component", "place", "input"]
    own = {variant: group.set_index(keys)["value"] for variant, group in rows.groupby("variant")}
    labelled = rows[(rows["variant"] == headline) & rows["label"].fillna(False).astype(bool)]
    found = []
    for row in labelled.sort_values("value", ascending=False).head(HEADS).to_dict("records"):
        component, place, kind = (str(row[name]) for name in keys)
        empty = pd.Series(dtype=float)
        norm, gap, length, output = (cell(own.get(n, empty).get((component, place, kind), math.nan)) for n in REASONS)
        share, null = cell(row["value"]), cell(row["null"])
        found.append(RestingPlace(component, place, kind, share, null, norm, gap, length, output))
    return found


def _massive(rows: pd.DataFrame, headline: str) -> list[Massive]:
    """Each massive dimension at its largest, with the components that write it."""
    keys = ["dimension", "place"]
    labelled = rows[(rows["variant"] == headline) & rows["label"].fillna(False).astype(bool)]
    largest_rows = labelled.sort_values("value", ascending=False).drop_duplicates(keys).head(HEADS)
    size = rows[rows["variant"] == "activation"].set_index(["component", "place"])["value"]
    roles = rows[rows["role"].notna()].set_index([*keys, "role"])["component"]
    return [
        Massive(
            row["component"],
            row["place"],
            cell(row["value"]),
            cell(float(size[row["component"], row["place"]])),
            *(str(roles.get((row["dimension"], row["place"], role), "–")) for role in ("born", "erased")),
        )
        for row in largest_rows.to_dict("records")
    ]


def _effect(row: dict[Any, Any]) -> Effect:
    spread = "" if math.isnan(row["random_sd"]) else f" ± {number(row['random_sd'])}"
    random = cell(row["random_mean"], text=number(row["random_mean"]) + spread)
    return Effect(str(row["set_id"]), cell(row["clean"]), cell(row["edited"]), random)


def _of(rows: pd.DataFrame, component: str, column: str = "value") -> float:
    value = rows[column].get(component)
    return math.nan if value is None or pd.isna(value) else float(value)
