"""Figures of attention itself: profiles over offsets or lags, maps of pairs of heads, relevance over tokens.

As in `interp.plots.heads`, figures are returned and never shown. What is drawn from attention mass says so in a note.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from interp.errors import SchemaError
from interp.plots._curves import ABOVE, arms
from interp.plots.heads import shared_names
from interp.plots.scales import axis_range, bar, colour_scale
from interp.plots.theme import GRID, Figure, as_text, line_style, null_line, template

LINES = 8  # heads drawn at once: more cannot be told apart
LABELLED = 12  # points of an embedding that carry their names
NEAR = 0.06  # share of the span of a map below which two heads share a name


def profile_lines(rows: pd.DataFrame, *, k: int = LINES, axis: str = "offset") -> go.Figure:
    """Mass against `position` for the k heads with the highest peaks, bands for intervals, the null dashed.

    Args:
        rows: the variant "profile" of `offset_profile` or `lag_profile`: one row per head and position.
        k: heads drawn.
        axis: title of the horizontal axis: "offset" or "lag".

    Raises:
        SchemaError: no rows with a position and a value.
    """
    full_rows = rows.dropna(subset=["position", "value"])
    if full_rows.empty:
        raise SchemaError("nothing to plot: no rows with a position and a value")
    best = full_rows.groupby("component")["value"].max().nlargest(k).index
    figure = Figure()
    for i, name in enumerate(best):
        own = full_rows[full_rows["component"] == name].sort_values("position")
        x, y = own["position"].to_numpy(dtype=float), own["value"].to_numpy(dtype=float)
        error = arms(y, own["ci_low"], own["ci_high"])
        look: dict[str, Any] = line_style(i)
        figure.add_scatter(x=x, y=y, error_y=error, mode="lines+markers", name=as_text(str(name)), **look)
    null = full_rows[full_rows["component"].isin(best)].groupby("position")["null"].mean()
    figure.add_trace(
        go.Scatter(
            x=null.index.to_numpy(dtype=float),
            y=null.to_numpy(),
            mode="lines",
            line=null_line()["line"],
            name="null",
        )
    )
    unit = str(full_rows["unit"].iloc[0]) if "unit" in full_rows else "probability"
    figure.update_layout(template=template(), height=320)
    figure.update_xaxes(title_text=axis)
    reach = full_rows[full_rows["component"].isin(best)][["value", "ci_high", "null"]].to_numpy(dtype=float)
    figure.update_yaxes(title_text=as_text(unit), range=axis_range(reach, unit), showgrid=True, gridcolor=GRID)
    return figure


def pair_map(
    value: Float[np.ndarray, "head head"],
    components: Sequence[str],
    *,
    unit: str = "nats",
    down: str = "head",
    across: str = "head",
) -> go.Figure:
    """Heat map of a number per pair of heads, in the order given: square, on the scale of the unit.

    Args:
        value: of each pair.
        components: names, of rows and columns alike.
        unit: of the numbers.
        down: what a row is, such as "writer".
        across: what a column is, such as "reader".

    Raises:
        SchemaError: names and axes that do not match.
    """
    if value.shape != (len(components), len(components)):
        raise SchemaError(f"a map of {value.shape} does not fit {len(components)} components")
    names = [as_text(str(c)) for c in components]
    hover = f"{as_text(down)} %{{y}}, {as_text(across)} %{{x}}<br>%{{z:.3g}} {as_text(unit)}<extra></extra>"
    look = {"colorbar": bar(as_text(unit)), "hovertemplate": hover, "hoverongaps": False}
    figure = Figure(go.Heatmap(z=value, x=names, y=names, **look, **colour_scale(np.asarray(value, dtype=float), unit)))
    side = round(float(np.clip(14 * len(names), 280, 900)))
    figure.update_layout(template=template(), height=side + 90, width=side + 160)
    figure.update_xaxes(title_text=as_text(across), type="category", constrain="domain")
    figure.update_yaxes(title_text=as_text(down), type="category", autorange="reversed", scaleanchor="x")
    figure.update_yaxes(constrain="domain", scaleratio=1)
    return figure


def embedding(points: Float[np.ndarray, "head 2"], components: Sequence[str], *, named: int = LABELLED) -> go.Figure:
    """Heads as points: near ones look at the same places. It has no axes: they would mean nothing beyond distance.

    Those furthest from the middle carry their names, `named` at most; points that lie on one another share one.
    Hovering gives each its own.

    Raises:
        SchemaError: names and points that do not match.
    """
    if points.shape != (len(components), 2):
        raise SchemaError(f"points of shape {points.shape} do not fit {len(components)} components in two dimensions")
    names = [str(c) for c in components]
    span = max(float(np.ptp(points, axis=0).max(initial=0.0)), 1e-12)
    far = np.argsort(-np.linalg.norm(points - points.mean(0), axis=1), kind="stable")
    shared = shared_names([names[i] for i in far], points[far] / span, near=NEAR)
    labels = [""] * len(names)
    for i, label in [pair for pair in zip(far, shared, strict=True) if pair[1]][:named]:
        labels[i] = label
    place = {"x": points[:, 0], "y": points[:, 1]}
    text = [as_text(name) for name in names]
    heads = go.Scatter(**place, mode="markers", text=text, hovertemplate="%{text}<extra></extra>", marker={"size": 7})
    figure = Figure([heads, go.Scatter(**place, mode="text", text=labels, hoverinfo="skip")])
    figure.update_traces(textposition="top center", cliponaxis=False)
    figure.update_layout(template=template(), height=420, showlegend=False, margin={"t": 28})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def relevance_bars(table: pd.DataFrame, *, tokens: Sequence[str] | None = None, note: str = "") -> go.Figure:
    """Bars of value per key for one prompt and row, a line for the null; `note` (the caution) stands underneath.

    Args:
        table: rows of one prompt and one query row of `Relevance.table()`, of one or more methods. Methods in different
            units are each divided by the sum of their positive values.
        tokens: text of each key; ids without.
        note: what the figure does not say.

    Raises:
        SchemaError: no rows, or rows of more than one prompt or query row.
    """
    if table.empty or len(table[["prompt", "row"]].drop_duplicates()) != 1:
        raise SchemaError("relevance bars show one prompt and one query row; choose them from the table")
    figure = Figure()
    same_unit = table["unit"].nunique() == 1
    for method, own in table.groupby("method", sort=False):
        scale = 1.0 if same_unit else float(own["value"].clip(lower=0).sum()) or 1.0
        figure.add_trace(go.Bar(x=own["key"], y=own["value"] / scale, name=str(method)))
    first = table[table["method"] == table["method"].iloc[0]]
    if (first["null"] != 0).any():
        line = null_line()["line"]
        figure.add_trace(go.Scatter(x=first["key"], y=first["null"], mode="lines", line=line, name="uniform attention"))
    keys = first["key"].tolist()
    text = [as_text(str(t)) for t in (first["token"] if tokens is None else [tokens[key] for key in keys])]
    lines = textwrap.wrap(as_text(note), 80)
    below = 76 + 14 * len(lines) if note else 40
    figure.update_layout(template=template(), height=250 + below, barmode="group", margin={"b": below})
    figure.update_xaxes(tickvals=keys, ticktext=text, title_text="key")
    figure.update_yaxes(title_text=str(table["unit"].iloc[0]) if same_unit else "share of positive values")
    if note:
        place = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -54, "showarrow": False, "align": "left"}
        figure.add_annotation(text="<br>".join(lines), font={"size": 11}, xanchor="left", yanchor="top", **place)
    return figure


def domain_lines(rows: pd.DataFrame, *, k: int = 3 * LINES) -> go.Figure:
    """Score of the k heads that differ most between domains, one mark per domain, with intervals.

    Args:
        rows: one row per head and `domain`.
        k: heads drawn, those with the largest range first.

    Raises:
        SchemaError: no rows with a domain and a value.
    """
    known = rows.dropna(subset=["domain", "value"])
    if known.empty:
        raise SchemaError("nothing to plot: no rows with a domain and a value")
    by_head = known.groupby("component")["value"]
    names = [str(name) for name in (by_head.max() - by_head.min()).nlargest(k).index]
    figure = Figure()
    for i, (domain, own) in enumerate(known.groupby("domain", sort=False)):
        part = own.set_index("component").reindex(names)
        y = part["value"].to_numpy(dtype=float)
        error = arms(y, part["ci_low"], part["ci_high"])
        look = {"marker": line_style(i)["marker"], "name": as_text(str(domain))}
        figure.add_trace(go.Scatter(x=names, y=y, error_y=error, mode="markers", **look))
    if known["null"].notna().any():
        null = known.groupby("component")["null"].mean().reindex(names)
        figure.add_trace(go.Scatter(x=names, y=null, mode="lines", line=null_line()["line"], name="null"))
    unit = str(known["unit"].iloc[0])
    figure.update_layout(template=template(), height=340, legend=ABOVE)
    figure.update_xaxes(title_text="head", type="category")
    reach = known[["value", "ci_low", "ci_high", "null"]].to_numpy(dtype=float)
    figure.update_yaxes(title_text=as_text(unit), range=axis_range(reach, unit), showgrid=True, gridcolor=GRID)
    return figure
