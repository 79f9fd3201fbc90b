"""The head atlas as the page shows it: the roles of the heads, and how far the detectors agree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.components import is_head
from interp.errors import SchemaError
from interp.measurement.registry import analyses
from interp.reports.cells import Cell, cell
from interp.reports.charts import DARK
from interp.reports.sections import title_of
from interp.results.results import Result
from interp.studies.atlas import Atlas, atlas

MAPPED = 60  # heads in the map
PAIRS = 15  # of detectors
BEST = 5  # heads of each detector that are compared


@dataclass(frozen=True)
class Role:
    """A head and a role it was labelled with, by an analysis that has a section of its own."""

    component: str
    role: str
    stage: str
    analysis: str
    score: Cell
    q: Cell


@dataclass(frozen=True)
class Pair:
    """Two detectors over the same heads."""

    a: str
    b: str
    overlap: Cell
    chance: Cell
    spearman: Cell


@dataclass(frozen=True)
class Roles:
    """Everything the template needs of the atlas."""

    summary: str
    n_heads: int
    n_analyses: int
    rows: list[Role]
    pairs: list[Pair]
    n_pairs: int
    mapped: int
    mapped_analyses: int
    figures: dict[str, go.Figure]


def roles(result: Result) -> Roles | None:
    """The atlas of these results; None where no analysis scores heads, or one alone does."""
    try:
        found = atlas(_readable(result))
    except SchemaError:
        return None
    if len(found.analyses) < 2:
        return None
    own = found.roles()
    rows = [
        Role(
            row["component"],
            row["role"],
            row["stage"],
            title_of(row["analysis"]),
            cell(row["score"]),
            cell(row["q"]),
        )
        for row in own.to_dict("records")
    ]
    every = found.agreement(k=BEST)
    every["beyond"] = every["overlap"] - every["chance"]
    best = every.sort_values(["beyond", "spearman"], ascending=False, kind="stable").head(PAIRS)
    pairs = [
        Pair(
            title_of(row["a"]),
            title_of(row["b"]),
            cell(float(row["overlap"]), 0),
            cell(row["chance"], 1),
            cell(row["spearman"], 2),
        )
        for row in best.to_dict("records")
    ]
    shown = _shown(found)
    return Roles(
        summary=found.summary()[0],
        n_heads=len(found.table),
        n_analyses=len(found.analyses),
        rows=rows,
        pairs=pairs,
        n_pairs=len(every),
        mapped=len(shown.table),
        mapped_analyses=len(shown.analyses),
        figures={"atlas": _map(shown)} if shown.analyses else {},
    )


def _readable(result: Result) -> Result:
    """Rows of analyses that are installed here, with heads named as heads are: a stored table may have others."""
    table, known = result.table, analyses()
    heads = pd.Series([isinstance(name, str) and is_head(name) for name in table["component"]], index=table.index)
    kept = table["analysis"].isin(list(known)) & (heads | table["head"].isna())
    return Result(cast(pd.DataFrame, table[kept]), result.provenance, result.interventions)


def _shown(found: Atlas) -> Atlas:
    """A map one can read: heads that have a role or come near to one, by analyses that labelled any head.

    Where nothing was labelled the largest score is noise, and a column would show it as if it were much.
    """
    own = found.roles()
    names = tuple(name for name in found.analyses if name in set(own["analysis"]))
    values = found.table[list(names)].abs()
    share = (values / values.max().replace(0, np.nan)).max(axis=1).fillna(0.0)
    order = (share + found.table["component"].isin(own["component"]) * 2).sort_values(ascending=False, kind="stable")
    return replace(found, analyses=names, table=found.table.loc[sorted(order.index[:MAPPED])].reset_index(drop=True))


def _map(found: Atlas) -> go.Figure:
    figure = found.plot()
    names = list(found.analyses)
    figure.update_layout(meta={"dark": DARK}, showlegend=False, height=20 * len(found.table) + 150)
    bar = {"thickness": 10, "outlinewidth": 0, "ypad": 0, "title": {"side": "right"}}
    figure.update_traces(xgap=1, ygap=1, colorbar=bar, selector={"type": "heatmap"})
    figure.update_traces(marker={"size": 8, "line": {"width": 2}}, selector={"type": "scatter"})
    figure.update_xaxes(tickangle=-90, tickvals=names, ticktext=[name.replace("_", " ") for name in names])
    figure.update_yaxes(dtick=1)
    return figure
