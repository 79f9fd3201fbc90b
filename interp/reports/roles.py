"""The head atlas as the page shows it: the roles of the heads, and how far the detectors agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pandas as pd
import plotly.graph_objects as go

from interp.components import is_head
from interp.errors import SchemaError
from interp.measurement.declaration import PATTERN
from interp.measurement.registry import analyses
from interp.plots.titles import untitled
from interp.reports.cells import Cell, cell
from interp.reports.sections import title_of
from interp.results.results import Result
from interp.studies.atlas import atlas

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
    figures: dict[str, go.Figure]

    @property
    def table(self) -> pd.DataFrame:
        """Component, role and stage of each row, for a circuit's page."""
        rows = [(row.component, row.role, row.stage) for row in self.rows]
        return pd.DataFrame(rows, columns=["component", "role", "stage"])


def roles(result: Result) -> Roles | None:
    """The atlas of these results; None where no analysis scores heads, or one alone does."""
    try:
        head_atlas = atlas(_readable(result))
    except SchemaError:
        return None
    if len(head_atlas.analyses) < 2:
        return None
    own = head_atlas.roles()
    rows = [
        Role(
            row["component"],
            row["role"],
            row["stage"],
            title_of(row["analysis"]),
            cell(row["score"]),
            cell(row["q"]),
        )
        for row in own.sort_values("stage", key=lambda stage: stage == PATTERN, kind="stable").to_dict("records")
    ]
    every = head_atlas.agreement(k=BEST)
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
    return Roles(
        summary=head_atlas.summary()[0],
        n_heads=len(head_atlas.table),
        n_analyses=len(head_atlas.analyses),
        rows=rows,
        pairs=pairs,
        n_pairs=len(every),
        figures={"roles": untitled(head_atlas.plot())} if rows else {},
    )


def _readable(result: Result) -> Result:
    """Rows of analyses that are installed here, with heads named as heads are: a stored table may have others."""
    table, specs = result.table, analyses()
    heads = pd.Series([isinstance(name, str) and is_head(name) for name in table["component"]], index=table.index)
    rows = table["analysis"].isin(list(specs)) & (heads | table["head"].isna())
    return Result(cast(pd.DataFrame, table[rows]), result.provenance, result.interventions)
