"""Figures of activation patching: effects by layer and token, signed, zero in the middle of the scale."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import SchemaError
from interp.plots.heads import as_text, colour_scale, template, tick_step


def patch_map(rows: pd.DataFrame, *, value: str = "normalised", order: list[str] | None = None) -> go.Figure:
    """Heat map of a column (`value` for the metric's units), layers down, token roles or positions across.

    For rows of `activation_patching` of one kind of node, patched at `positions="roles"` or `"all"`; the scale reaches
    as far on both sides of zero. `order` names the roles across, as they follow one another in the prompt; else in the
    order of the table.

    Raises:
        SchemaError: no rows with a layer and a role or position, two for one cell (several heads, nodes, or
            corruptions), no such column, or an `order` that lacks a role.
    """
    if value not in rows:
        raise SchemaError(f"no column {value!r} in these rows")
    across = "role" if "role" in rows and rows["role"].notna().any() else "position"
    full_rows = rows.dropna(subset=["layer", across])
    if full_rows.empty:
        raise SchemaError('nothing to plot: no rows with a layer and a role or position; patch at positions="roles"')
    if full_rows.duplicated(["layer", across]).any():
        raise SchemaError(f"a map needs one value per layer and {across}: choose one kind of node and one corruption")
    table = full_rows.pivot(index="layer", columns=across, values=value).astype(float)
    names = list(dict.fromkeys(full_rows[across])) if across == "role" else sorted(full_rows[across].unique())
    if order is not None:
        absent = [str(name) for name in names if name not in order]
        if absent:
            raise SchemaError(f"order lacks {', '.join(map(repr, absent))}")
        names = [name for name in order if name in names]
    table = table[names]
    z = table.to_numpy()
    scale = colour_scale(z, "", signed=True)
    meta = {"dark": scale.pop("dark")}
    heat = go.Heatmap(
        z=z,
        x=[as_text(str(name)) for name in table.columns],
        y=[int(layer) for layer in table.index],
        hovertemplate=f"layer %{{y}}, {across} %{{x}}<br>{value} %{{z:.3f}}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": value, "side": "right"}, "thickness": 10, "outlinewidth": 0},
        **scale,
    )
    figure = go.Figure(heat)
    side = float(np.clip(440 / len(table), 12, 40))
    figure.update_layout(template=template(), height=round(side * len(table)) + 110, meta=meta)
    figure.update_xaxes(title_text=across, type="category", tickangle=0 if len(names) < 9 else -45)
    figure.update_yaxes(title_text="layer", dtick=tick_step(len(table)), autorange="reversed")
    return figure
