"""Figures of attention itself: profiles over offsets or lags, maps of pairs of heads, relevance over tokens.

As in `interp.plots.heads`, figures are returned and never shown. What is drawn from attention mass says so in a note.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from interp.errors import SchemaError
from interp.plots.heads import GREY, MAGNITUDE, MARK, shared_names, stops, template

LINES = 8  # heads drawn at once: more cannot be told apart
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
    figure = go.Figure()
    for name in best:
        own = full_rows[full_rows["component"] == name].sort_values("position")
        x, y = own["position"].to_numpy(dtype=float), own["value"].to_numpy(dtype=float)
        arms = {
            "array": own["ci_high"].to_numpy(dtype=float) - y,
            "arrayminus": y - own["ci_low"].to_numpy(dtype=float),
        }
        error = {"type": "data", "symmetric": False, "thickness": 1, "width": 0} | arms
        figure.add_trace(go.Scatter(x=x, y=y, error_y=error, mode="lines+markers", name=str(name)))
    null = full_rows[full_rows["component"].isin(best)].groupby("position")["null"].mean()
    figure.add_trace(
        go.Scatter(
            x=null.index.to_numpy(dtype=float),
            y=null.to_numpy(),
            mode="lines",
            line={"color": GREY, "dash": "dash"},
            name="null",
        )
    )
    figure.update_layout(template=template(), height=320)
    figure.update_xaxes(title_text=axis)
    figure.update_yaxes(title_text="probability", rangemode="tozero")
    return figure


def pair_map(value: Float[np.ndarray, "head head"], components: Sequence[str], *, unit: str = "nats") -> go.Figure:
    """Heat map of a number per pair of heads, in the order given.

    Raises:
        SchemaError: names and axes that do not match.
    """
    if value.shape != (len(components), len(components)):
        raise SchemaError(f"a map of {value.shape} does not fit {len(components)} components")
    names = [str(c) for c in components]
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 10, "outlinewidth": 0}
    figure = go.Figure(go.Heatmap(z=value, x=names, y=names, colorscale=stops(MAGNITUDE), zmin=0, colorbar=bar))
    side = float(np.clip(14 * len(names), 240, 900))
    figure.update_layout(template=template(), height=round(side))
    figure.update_yaxes(autorange="reversed")
    return figure


def embedding(points: Float[np.ndarray, "head 2"], components: Sequence[str]) -> go.Figure:
    """Heads as points with their names: near ones look at the same places. Axes mean nothing beyond distance.

    Points that lie on one another share a name; hovering gives each its own.

    Raises:
        SchemaError: names and points that do not match.
    """
    if points.shape != (len(components), 2):
        raise SchemaError(f"points of shape {points.shape} do not fit {len(components)} components in two dimensions")
    names = [str(c) for c in components]
    span = max(float(np.ptp(points, axis=0).max(initial=0.0)), 1e-12)
    labels = shared_names(names, points / span, near=NEAR)
    place = {"x": points[:, 0], "y": points[:, 1]}
    heads = go.Scatter(**place, mode="markers", text=names, hovertemplate="%{text}<extra></extra>", marker={"size": 7})
    figure = go.Figure([heads, go.Scatter(**place, mode="text", text=labels, hoverinfo="skip")])
    figure.update_traces(textposition="top center", cliponaxis=False)
    figure.update_layout(template=template(), height=420, showlegend=False)
    figure.update_yaxes(scaleanchor="x")
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
    figure = go.Figure()
    same_unit = table["unit"].nunique() == 1
    for method, own in table.groupby("method", sort=False):
        scale = 1.0 if same_unit else float(own["value"].clip(lower=0).sum()) or 1.0
        figure.add_trace(go.Bar(x=own["key"], y=own["value"] / scale, name=str(method)))
    first = table[table["method"] == table["method"].iloc[0]]
    if (first["null"] != 0).any():
        line = {"color": MARK, "dash": "dash"}
        figure.add_trace(go.Scatter(x=first["key"], y=first["null"], mode="lines", line=line, name="uniform attention"))
    keys = first["key"].tolist()
    text = [str(t) for t in (first["token"] if tokens is None else [tokens[key] for key in keys])]
    lines = textwrap.wrap(html.escape(note, quote=False), 92)
    below = 76 + 14 * len(lines) if note else 40
    figure.update_layout(template=template(), height=250 + below, barmode="group", margin={"b": below})
    figure.update_xaxes(tickvals=keys, ticktext=text)
    figure.update_yaxes(title_text=str(table["unit"].iloc[0]) if same_unit else "share of positive values")
    if note:
        place = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -54, "showarrow": False, "align": "left"}
        figure.add_annotation(text="<br>".join(lines), font={"size": 10}, xanchor="left", yanchor="top", **place)
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
    figure = go.Figure()
    for domain, own in known.groupby("domain", sort=False):
        part = own.set_index("component").reindex(names)
        y = part["value"].to_numpy(dtype=float)
        arms = {"array": part["ci_high"].to_numpy(dtype=float) - y, "arrayminus": y - part["ci_low"].to_numpy(float)}
        error = {"type": "data", "symmetric": False, "thickness": 1, "width": 0} | arms
        figure.add_trace(go.Scatter(x=names, y=y, error_y=error, mode="markers", name=html.escape(str(domain))))
    figure.update_layout(template=template(), height=320)
    figure.update_yaxes(title_text=str(known["unit"].iloc[0]))
    return figure
