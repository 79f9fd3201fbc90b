"""Titles: which model, what was measured, on how much, and against what; set over a figure in one way."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.plots.theme import Figure, as_text, template

NO_BREAK = "\u00a0"  # a space within a part
WIDE = 60  # characters of a line: as many as a page of 400 pixels holds
LINE, LEGEND = 18, 22  # pixels of a line of a title, and of a legend
LEGEND_WIDE = 60  # characters of a line of a legend


def titled(figure: go.Figure, parts: Sequence[str]) -> Figure:
    """The figure with the parts of a title over it, joined by dots and broken into lines; the plot keeps its height.

    What the figure had as its title comes last.
    """
    figure = figure if isinstance(figure, Figure) else Figure(figure)
    layout: Any = figure.layout  # plotly makes its attributes at run time
    own = layout.title.text
    whole = " · ".join(part.replace(" ", NO_BREAK) for part in parts if part)
    lines = textwrap.wrap(whole, WIDE, break_long_words=True)
    text = "<br>".join([*map(as_text, lines), *([own] if own else [])])
    n_lines = text.count("<br>") + 1
    above = LINE * n_lines + 10
    margin = layout.margin.t if layout.margin.t is not None else 8
    figure.update_layout(
        template=template(),
        title={
            "text": text,
            "font": {"size": 13},
            "x": 0.01,
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 8 + LINE * (n_lines - 1) / 2},  # plotly lifts several lines to their middle
        },
        meta={**(layout.meta or {}), "untitled": {"height": layout.height or 360, "top": margin}},
        margin={"t": margin + above + LEGEND * _legend_lines(figure)},
        height=(layout.height or 360) + above,
    )
    return figure


def untitled(figure: Figure) -> Figure:
    """A figure of `titled` as it was before, for a page that says in words of its own what it shows."""
    layout: Any = figure.layout
    before = dict(layout.meta or {}).get("untitled")
    if before:
        figure.update_layout(title=None, height=before["height"], margin={"t": before["top"]})
    return figure


def heading(rows: pd.DataFrame, provenance: Mapping[str, Any], *, of: str = "") -> list[str]:
    """Parts of a title of some rows: model, analysis (variant), n, null.

    Args:
        rows: of one variant of one analysis.
        provenance: of the table.
        of: what the rows are, for those that do not say so themselves.
    """
    return [model_name(provenance), of or _measured(rows), sample(rows, provenance), null_text(rows)]


def provenance_of(provenance: Mapping[str, Any], analysis: str) -> Mapping[str, Any]:
    """What is known of one analysis, where several were joined (`Result.concat`)."""
    calls = [c for c in provenance.get("calls", ()) if (c.get("call") or {}).get("analysis") == analysis]
    return {**provenance, **calls[0]} if calls else provenance


def model_name(provenance: Mapping[str, Any]) -> str:
    """Name of the model; of a folder its last part."""
    name = str((provenance.get("model") or {}).get("name") or "")
    return PurePath(name).name if name.startswith((".", "/", "~")) else name


def sample(rows: pd.DataFrame, provenance: Mapping[str, Any]) -> str:
    """How much the values are of: "256 prompts" where the data are that many, "n = 24 to 48" where it is not said."""
    data = provenance.get("data") or {}
    n = rows["n"].dropna() if "n" in rows else pd.Series(dtype=float)
    prompts = data.get("n_prompts", data.get("n") if "length" in data else None)
    if n.empty:
        return f"{prompts:,} prompts" if isinstance(prompts, int) else ""
    low, high = int(n.min()), int(n.max())
    if low == high:
        return f"{low:,} prompts" if low == prompts else f"n = {low:,}"
    return f"n = {low:,} to {high:,}"


def null_text(rows: pd.DataFrame) -> str:
    """What the values are held against: "null 0.02", the span of several nulls, or that there is none."""
    nulls = rows["null"].astype(float).dropna() if "null" in rows else pd.Series(dtype=float)
    if nulls.empty:
        return "no null"
    low, high = float(nulls.min()), float(nulls.max())
    return f"null {low:.3g}" if math.isclose(low, high, abs_tol=1e-12) else f"null {low:.3g} to {high:.3g}"


def _measured(rows: pd.DataFrame) -> str:
    analysis, variant = (
        str(rows[name].iloc[0]) if name in rows and pd.notna(rows[name].iloc[0]) else ""
        for name in ("analysis", "variant")
    )
    name = analysis.replace("_", " ")
    return f"{name} ({variant.replace('_', ' ')})" if variant else name


def _legend_lines(figure: go.Figure) -> int:
    """Lines of a legend that lies over the plot."""
    layout: Any = figure.layout
    traces: Any = figure.data
    legend = layout.legend
    over = legend.orientation == "h" and (legend.y or 0) >= 1 and legend.yref != "container"
    if not over or layout.showlegend is False:
        return 0
    names = [trace.name for trace in traces if trace.name and trace.showlegend is not False]
    return -(-sum(len(name) + 8 for name in names) // LEGEND_WIDE) if len(names) > 1 else 0
