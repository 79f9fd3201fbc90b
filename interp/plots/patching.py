"""Figures of activation patching and node attribution: effects by layer, head and token, zero in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import SchemaError
from interp.plots.heads import head_map, tick_step
from interp.plots.rows import missing
from interp.plots.scales import bar, colour_scale
from interp.plots.theme import ACCENT, Figure, as_text, template

SHARE = "share of the metric's change"
"""What `normalised` is."""
KINDS = {
    "resid_pre": "stream entering the layer",
    "resid_mid": "stream between attention and MLP",
    "resid_post": "stream leaving the layer",
    "attn_out": "attention",
    "mlp_out": "MLP",
    "z": "heads",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "pattern": "patterns",
}
"""How panels of several kinds of node are headed."""


def patch_map(
    rows: pd.DataFrame,
    *,
    value: str = "normalised",
    order: list[str] | None = None,
    tokens: Sequence[str] | None = None,
) -> go.Figure:
    """Heat map of a column (`value` for the metric's units), layers down, token roles or positions across.

    For rows of `activation_patching` of one kind of node, patched at `positions="roles"` or `"all"`; of several heads
    of a layer each is a line of its own. The scale reaches as far on both sides of zero. `order` names the roles
    across, as they follow one another in the prompt; else in the order of the table. Positions are labelled with
    `tokens`, one text for each, or with the column `token`.

    Raises:
        SchemaError: no rows with a layer and a role or position, two for one cell (several kinds of node, or
            corruptions), no such column, an `order` that lacks a role, or another number of tokens than of positions.
    """
    if value not in rows:
        raise SchemaError(f"no column {value!r} in these rows")
    across = "role" if "role" in rows and rows["role"].notna().any() else "position"
    full_rows = rows.dropna(subset=["layer", across])
    if full_rows.empty:
        raise SchemaError('nothing to plot: no rows with a layer and a role or position; patch at positions="roles"')
    down = "layer"
    if full_rows.duplicated(["layer", across]).any() and "component" in rows:
        down = "component"
    if full_rows.duplicated([down, across]).any():
        raise SchemaError(f"a map needs one value per layer and {across}: choose one kind of node and one corruption")
    table = full_rows.pivot(index=down, columns=across, values=value).astype(float)
    table = table.loc[list(dict.fromkeys(full_rows[down]))] if down == "component" else table
    names = list(dict.fromkeys(full_rows[across])) if across == "role" else sorted(full_rows[across].unique())
    if order is not None:
        absent = [str(name) for name in names if name not in order]
        if absent:
            raise SchemaError(f"order lacks {', '.join(map(repr, absent))}")
        names = [name for name in order if name in names]
    table = table[names]
    z = table.to_numpy()
    unit = SHARE if value == "normalised" else str(full_rows["unit"].iloc[0]) if "unit" in full_rows else value
    scale = colour_scale(z, "share" if unit == SHARE else unit, signed=True)
    x, labels = [as_text(str(name)) for name in table.columns], _labels(full_rows, across, names, tokens)
    heat = go.Heatmap(
        z=z,
        x=x,
        y=[as_text(str(name)) for name in table.index] if down == "component" else [int(i) for i in table.index],
        customdata=np.broadcast_to(np.array(labels, dtype=object), z.shape),
        hovertemplate=f"{down} %{{y}}, {across} %{{x}} %{{customdata}}<br>{value} %{{z:.3f}}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar=bar(as_text(unit)),
        **scale,
    )
    figure = Figure(heat)
    side = float(np.clip(440 / len(table), 12, 40))
    figure.update_layout(template=template(), height=round(side * len(table)) + 110)
    figure.update_xaxes(
        title_text=f"token at {across}" if any(labels) else across,
        type="category",
        tickangle=0 if len(names) < 9 else -45,
    )
    if any(labels):
        ticks = [label or name for label, name in zip(labels, x, strict=True)]
        figure.update_xaxes(tickvals=x, ticktext=ticks)
    figure.update_yaxes(title_text=down, autorange="reversed")
    if down == "layer":
        figure.update_yaxes(dtick=tick_step(len(table)))
    return figure


def effect_figure(rows: pd.DataFrame) -> go.Figure:
    """What suits effects of nodes: a panel for each kind of node among the rows.

    Patched or scored at roles or positions, a map of layers (or heads) by tokens; over whole prompts, a map of heads,
    or bars by layer for what a layer has one of. Drawn is the share of the metric's change (`normalised`) where the
    rows have it and `value` where not.

    Raises:
        SchemaError: no rows.
    """
    if rows.empty:
        raise SchemaError("nothing to plot: no rows")
    rows = rows.sort_index()
    shares = "normalised" in rows and bool(rows["normalised"].notna().any())
    value = "normalised" if shares else "value"
    kinds = _kinds(rows)
    # plotly's attributes are resolved at run time
    panels: dict[str, Any] = {kind: _panel(rows[kinds == kind], value) for kind in dict.fromkeys(kinds)}
    if len(panels) == 1:
        return next(iter(panels.values()))
    heights = [panel.layout.height for panel in panels.values()]
    titles = [KINDS.get(kind, kind) for kind in panels]
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=titles,
        row_heights=heights,
        vertical_spacing=0.3 / len(panels),
        figure=Figure(),
    )
    total = sum(heights)
    for number, panel in enumerate(panels.values(), start=1):
        below = sum(heights[number:]) / total
        for trace in panel.data:
            if trace.type == "heatmap":
                trace.colorbar.update(len=0.8 * heights[number - 1] / total, y=below, yanchor="bottom")
            figure.add_trace(trace, row=number, col=1)
        for name in ("xaxis", "yaxis"):
            axis = panel.layout[name].to_plotly_json()
            getattr(figure, f"update_{name[0]}axes")(row=number, col=1, **axis)
    figure.update_layout(template=template(), height=total + 40 * len(panels), showlegend=False, margin={"t": 32})
    return figure


def _kinds(rows: pd.DataFrame) -> pd.Series:
    """Kind of node of each row: of its site, or whether it is a head's."""
    if "site" in rows and rows["site"].notna().any():
        return rows["site"].astype(str).str.replace(r"^(?:.*\.)?([a-z_]+)(?:@-?\d+)?$", r"\1", regex=True)
    return rows["head"].notna().map({True: "z", False: "whole layers"})


def _panel(rows: pd.DataFrame, value: str) -> go.Figure:
    if rows["position"].notna().any() or ("role" in rows and rows["role"].notna().any()):
        return patch_map(rows, value=value)
    heads = rows["head"].notna() & rows["layer"].notna()
    if bool(heads.all()) and not rows.duplicated(["layer", "head"]).any():
        drawn = rows.assign(value=rows[value])
        if value == "normalised":
            drawn = drawn.assign(
                unit="share", null=np.nan, ci_low=rows["normalised_low"], ci_high=rows["normalised_high"]
            )
        return head_map(drawn)
    return _bars(rows, value)


def _bars(rows: pd.DataFrame, value: str) -> go.Figure:
    """A bar for each component in the order of the rows, with its interval."""
    low, high = ("normalised_low", "normalised_high") if value == "normalised" else ("ci_low", "ci_high")
    y = rows[value].to_numpy(dtype=float)
    arms = [np.nan_to_num(np.abs(rows[end].to_numpy(dtype=float) - y)) for end in (high, low)]
    error = {"type": "data", "symmetric": False, "array": arms[0], "arrayminus": arms[1], "thickness": 1.4, "width": 0}
    names = [as_text(str(name)) for name in rows["component"]]
    figure = Figure(go.Bar(x=names, y=y, error_y=error, marker={"color": ACCENT}))
    figure.update_layout(template=template(), height=280, showlegend=False)
    figure.update_xaxes(type="category", title_text="component")
    unit = SHARE if value == "normalised" else str(rows["unit"].iloc[0])
    figure.update_yaxes(title_text=as_text(unit), zeroline=True)
    return figure


def _labels(rows: pd.DataFrame, across: str, names: Sequence[object], tokens: Sequence[str] | None) -> list[str]:
    """Text of the token under each column; empty where it is not known."""
    if tokens is not None:
        if len(tokens) != len(names):
            raise SchemaError(f"{len(tokens)} tokens for {len(names)} columns; give the text of each")
        return [as_text(str(token)) for token in tokens]
    if "token" not in rows or across == "role":
        return [""] * len(names)
    first = rows.drop_duplicates(across)
    by_name = dict(zip(first[across], first["token"], strict=True))
    return ["" if missing(by_name[name]) else as_text(str(by_name[name])) for name in names]
