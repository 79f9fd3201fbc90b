"""What the page says of each analysis: rows chosen, numbers written out, the sentence over it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pandas as pd
import plotly.graph_objects as go

from interp.components import is_head
from interp.errors import SchemaError, nearest
from interp.measurement.ability import Ability
from interp.measurement.classes import labelled_rows
from interp.measurement.registry import analyses, find
from interp.plots.heads import top_heads
from interp.plots.rows import Score, largest, leading, scores
from interp.plots.titles import provenance_of
from interp.reports.cells import DASH, Cell, cell, interval, number
from interp.results.figures import INFLATED, Draw, dots, figure_of, head_map, readable, readable_dots
from interp.results.results import Result
from interp.several import several
from interp.studies.findings import count_text

TOP = 10
NAMED = 16  # labelled heads listed by name

Row = dict[str, str | Cell]


@dataclass(frozen=True)
class Section:
    """One analysis. `rows`, `others` and `effects` are tables ready to print; `mapped` if its figure is a head map.

    `ability`: each task that its prompts ask, and how well the model does it.
    """

    name: str
    title: str
    quantity: str
    unit: str
    means: str
    misleads: str
    reference: str
    counted: str
    found: str
    scored: int
    best: Row
    rows: list[Row]
    others: list[Row]
    measures: list[str]
    effects: list[Row]
    ability: list[tuple[str, Ability]] = field(default_factory=list)
    caption: str = ""
    mapped: bool = False
    highest: str = "The highest scores"
    figures: dict[str, go.Figure] = field(default_factory=dict)

    @property
    def noun(self) -> str:
        """What a row of the tables is: a head, or a component of another kind."""
        return "head" if all(is_head(str(row["component"])) for row in self.rows) else "component"

    @property
    def tall(self) -> bool:
        """Whether the map is the taller of the two figures, so that text fits beside it rather than under it."""
        layouts: list[Any] = [self.figures[kind].layout for kind in ("map", "top") if kind in self.figures]
        heights = [layout.height for layout in layouts]
        return len(heights) == 2 and heights[0] > heights[1]


def sections(result: Result, names: Sequence[str] | None = None) -> list[Section]:
    """A section per analysis of the result (or per one named), in the order of its table.

    Raises:
        SchemaError: a name that is not in the result, or a result without rows.
    """
    names = several(names, "names of analyses")
    present = [str(n) for n in dict.fromkeys(result.table["analysis"])]
    if not present:
        raise SchemaError("nothing to report: the result has no rows")
    for name in names:
        if name not in present:
            raise SchemaError(f"no analysis {name!r} in these results; {nearest(name, present)}")
    return [_section(result, name) for name in present if not names or name in names]


def headline(result: Result, name: str) -> pd.DataFrame:
    """Rows of the variant that sums an analysis up: the registered one, or else the first in the table."""
    keys = [(str(n), str(v)) for n, v in zip(result.table["analysis"], result.table["variant"], strict=True)]
    present = [variant for own, variant in keys if own == name]
    default = find(name).headline if name in analyses() else ""
    variant = default if default in present else present[0]
    return cast(pd.DataFrame, result.table[[key == (name, variant) for key in keys]])


def title_of(name: str) -> str:
    """Title of an analysis; its bare name where it comes from a plug-in that is not installed here."""
    return find(name).title if name in analyses() else name


def _section(result: Result, name: str) -> Section:
    rows = headline(result, name)
    row_scores = scores(rows)
    spec = find(name) if name in analyses() else None
    title = title_of(name)
    draw = figure_of(name)
    clear = draw is readable_dots
    shown = readable(rows) if clear else rows
    top = leading(scores(shown), TOP)
    found = row_scores if spec is None else scores(labelled_rows(spec, result.table))
    labelled = [s for s in largest(found, len(found)) if s.label]
    others, measures = _others(result, row_scores, top)
    return Section(
        name=name,
        title=title,
        quantity=spec.quantity if spec else "",
        unit=row_scores[0].unit,
        means=spec.means if spec else "",
        misleads=spec.misleads if spec else "",
        reference=spec.reference if spec else "",
        counted="" if all(s.label is None for s in row_scores) else count_text([s.component for s in labelled], title),
        found=_names(labelled),
        scored=len(row_scores),
        best=_row(max(labelled, key=lambda s: abs(s.value)) if labelled else (top or row_scores)[0]),
        rows=[_row(score) for score in top],
        others=others,
        measures=measures,
        effects=_effects(result.interventions, name),
        ability=_ability(result.provenance, name),
        caption=caption(draw),
        mapped=draw is head_map,
        highest="The highest scores" + f" of a variance inflation of {INFLATED:g} at most" * clear,
        figures=_figures(shown, scores(shown), dots if clear else draw),
    )


def caption(draw: Draw) -> str:
    """What a figure shows: the first line of its function's docstring."""
    return (inspect.getdoc(draw) or "").split("\n", 1)[0]


def _figures(rows: pd.DataFrame, row_scores: Sequence[Score], draw: Draw) -> dict[str, go.Figure]:
    """What the analysis draws, dots where there are values at all. A map of heads needs one row for each."""
    places = {(s.layer, s.head) for s in row_scores}
    heads = len(places) == len(row_scores) and not any(None in place for place in places)
    figures = {"map": draw(rows)} if draw is not dots and (heads or draw is not head_map) else {}
    if any(not math.isnan(s.value) for s in row_scores):
        figures["top"] = top_heads(rows, TOP)
    return figures


def _row(score: Score) -> Row:
    return {
        "component": score.component,
        "value": cell(score.value),
        "interval": interval(score.low, score.high),
        "null": cell(score.null),
        "q": cell(score.q),
        "label": {None: DASH, True: "yes", False: "no"}[score.label],
    }


def _ability(provenance: Mapping[str, Any], name: str) -> list[tuple[str, Ability]]:
    """Each task that the prompts of an analysis ask, with how well the model does it."""
    own = provenance_of(provenance, name).get("ability") or {}
    return [(str(task), Ability.from_dict(values)) for task, values in own.items()]


def _names(labelled: Sequence[Score]) -> str:
    more = len(labelled) - NAMED
    names = [s.component.replace(" -> ", "\u00a0\u2192\u00a0") for s in labelled[:NAMED]]  # never broken at the arrow
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _others(result: Result, row_scores: Sequence[Score], top: Sequence[Score]) -> tuple[list[Row], list[str]]:
    """The further variants of the top rows, one line each, and the names of those variants."""
    rest = [
        s for s in scores(result.table) if s.analysis == row_scores[0].analysis and s.variant != row_scores[0].variant
    ]
    measures = list(dict.fromkeys(s.variant for s in rest))
    value = {(s.component, s.variant): s.value for s in reversed(rest)}
    lines: list[Row] = [
        {"component": s.component, **{m: cell(value.get((s.component, m), math.nan)) for m in measures}} for s in top
    ]
    return lines, measures


def _effects(interventions: pd.DataFrame, name: str) -> list[Row]:
    return [_effect(row) for row in interventions.to_dict("records") if row["analysis"] == name]


def _effect(row: Mapping[Any, Any]) -> Row:
    how, _, heads = str(row["set_id"]).rpartition(": ")
    spread = "" if math.isnan(row["random_sd"]) else f" \u00b1 {number(row['random_sd'])}"
    return {
        "heads": heads,
        "how": how or DASH,
        "k": cell(float(row["k"]), 0),
        "metric": str(row["metric"]).replace("_", " "),
        "clean": cell(row["clean"]),
        "edited": cell(row["edited"]),
        "random": cell(row["random_mean"], text=number(row["random_mean"]) + spread),
        "matching": f"{row['n_random']}, {row['control']}" if row["n_random"] else DASH,
    }
