"""Figures of what heads do: what their removal changes, two scores against each other, recall by depth and length.

As in `interp.plots.heads`, figures are returned and never shown.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from interp.errors import SchemaError, nearest
from interp.plots.heads import shared_names
from interp.plots.scales import NOISE, UNITS, bar, cell_text, colour_scale
from interp.plots.theme import ACCENT, GREY, GRID, MARK, Figure, as_text, null_line, template

NAMED = 8  # points that carry their name: more cover each other
OUT, NEAR = 1 / 3, 0.07  # shares of an axis: from where on a point is named, and how close points share one name


def removal(interventions: pd.DataFrame, metric: str, *, k: int = 12) -> go.Figure:
    """One line per set of heads: `metric` without them, random sets with their spread, and the clean value dashed.

    Args:
        interventions: `Result.interventions` of one analysis.
        metric: one of its metrics.
        k: sets drawn, in the order of the table.

    Raises:
        SchemaError: no such metric.
    """
    metrics = interventions["metric"].unique()
    if metric not in metrics:
        raise SchemaError(f"no metric {metric!r} among these interventions; {nearest(metric, metrics)}")
    rows = interventions[interventions["metric"] == metric].head(k)
    at = np.arange(len(rows))
    figure = Figure()
    controls = (rows["n_random"] > 0).to_numpy(dtype=bool)
    mean, spread = (rows[c].to_numpy(dtype=float)[controls] for c in ("random_mean", "random_sd"))
    error = {"type": "data", "array": np.nan_to_num(spread), "thickness": 1.6, "width": 0, "color": GREY}
    marker = {"size": 9, "color": "rgba(0,0,0,0)", "line": {"color": GREY, "width": 2}}
    place = {"mode": "markers", "orientation": "h"}
    figure.add_scatter(x=mean, y=at[controls], error_x=error, marker=marker, name="random heads removed", **place)
    marker = {"size": 10, "color": ACCENT}
    figure.add_scatter(x=rows["edited"].to_numpy(dtype=float), y=at, marker=marker, name="these removed", **place)
    clean = float(rows["clean"].iloc[0])
    line = {"color": MARK, "dash": "dash", "width": 1.5}
    figure.add_scatter(x=[clean] * 2, y=[-0.5, len(rows) - 0.5], mode="lines", line=line, name="none removed")
    corner = {"xref": "container", "yref": "container", "x": 0.01, "y": 0.99, "yanchor": "top", "xanchor": "left"}
    legend = {"orientation": "h", **corner}  # of the figure: names of sets leave the axes too narrow for one line
    figure.update_layout(template=template(), height=26 * len(rows) + 106, legend=legend, margin={"t": 40})
    names = [as_text(f"{s} ({c})" if c != "none" else s) for s, c in _sets(rows)]
    figure.update_yaxes(tickvals=at, ticktext=names, range=[len(rows) - 0.5, -0.5])
    figure.update_xaxes(title_text=metric.replace("_", " "), showgrid=True, gridcolor=GRID)
    return figure


def against(x: pd.DataFrame, y: pd.DataFrame, *, named: int = NAMED) -> go.Figure:
    """Heads as points, `value` of one variant across and of another up; those furthest out carry their names.

    Axes hold zero, and reach a tenth of their unit's scale at least, so that noise never fills them. The nulls are grey
    dashed lines: of several heads' nulls the mean.

    Args:
        x: rows of one variant, one per head.
        y: rows of another, of the same heads.
        named: heads that are named: those with the largest coordinates, each as a share of its axis, a third of it
            at least. Heads that lie on one another share a name.

    Raises:
        SchemaError: no head in both, or a head twice.
    """
    pair = [rows.set_index("component") for rows in (x, y)]
    if any(rows.index.has_duplicates for rows in pair):
        raise SchemaError("one value per head and axis: choose one variant of one analysis for each")
    both = pd.concat([rows["value"] for rows in pair], axis=1, join="inner").dropna()
    if both.empty:
        raise SchemaError("nothing to plot: no head has both values")
    points = both.to_numpy(dtype=float)
    reach = [
        max(np.abs(v).max(), NOISE * UNITS.get(u, 0.0), 1e-12) for v, u in zip(points.T, map(_unit, pair), strict=True)
    ]
    inward = points[:, 0] / reach[0]  # names near an edge grow away from it
    names = _names([str(c) for c in both.index], points / reach, named)
    figure = Figure(
        go.Scatter(
            x=points[:, 0],
            y=points[:, 1],
            mode="markers+text",
            text=names,
            textposition=["top left" if x > 0.6 else "top right" if x < -0.6 else "top center" for x in inward],
            marker={"size": 8, "color": ACCENT, "opacity": 0.75},
            customdata=list(both.index),
            hovertemplate="%{customdata}: %{x:.3g}, %{y:.3g}<extra></extra>",
            cliponaxis=False,
        )
    )
    figure.update_layout(template=template(), height=360, showlegend=False, margin={"t": 24, "r": 24})
    for i, update in enumerate((figure.update_xaxes, figure.update_yaxes)):
        low = min(points[:, i].min(), 0.0)
        span = [low - 0.05 * (reach[i] - low), max(points[:, i].max(), 0.0 if low < 0 else reach[i]) + 0.05 * reach[i]]
        update(title_text=_axis(pair[i]), range=span, zeroline=True, zerolinecolor=GRID)
        _null_of(figure, pair[i], i)
    return figure


def depth_grid(rows: pd.DataFrame) -> go.Figure:
    """Heat map of `value` with `length` across and `depth` down, numbers in the cells: a variant of `needle_grid`.

    Raises:
        SchemaError: no rows with a length and a depth, or two for one cell.
    """
    full_rows = rows.dropna(subset=["length", "depth", "value"])
    if full_rows.empty:
        raise SchemaError("nothing to plot: no rows with a length and a depth")
    if full_rows.duplicated(["length", "depth"]).any():
        raise SchemaError("a grid needs one value per depth and length: choose one variant")
    table = full_rows.pivot(index="depth", columns="length", values="value").astype(float)
    unit = _unit(full_rows)
    z = table.to_numpy()
    x, y = [f"{n:,}" for n in table.columns], [f"{d:.2f}" for d in table.index]
    scale = colour_scale(z, unit)
    figure = Figure(go.Heatmap(z=z, x=x, y=y, xgap=1, ygap=1, colorbar=bar(as_text(unit)), **scale))
    cell_text(
        figure, np.array([["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in z]), z, scale["zmax"], x=x, y=y
    )
    figure.update_layout(template=template(), height=34 * len(table) + 90)
    figure.update_xaxes(title_text="tokens", type="category")
    figure.update_yaxes(title_text="depth", type="category", autorange="reversed", ticksuffix=" ")
    return figure


def _null_of(figure: Figure, rows: pd.DataFrame, axis: int) -> None:
    """The mean null of the rows, across the other axis."""
    if "null" not in rows or not rows["null"].notna().any():
        return
    at, ends = [float(rows["null"].astype(float).mean())] * 2, [0, 1]
    (x, y) = (at, ends) if axis == 0 else (ends, at)
    refs = {"xref": "x", "yref": "y domain"} if axis == 0 else {"xref": "x domain", "yref": "y"}
    corners = {"x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1]}
    figure.add_shape(type="line", **corners, **refs, line=null_line()["line"], layer="below")


def _sets(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["set_id"].astype(str), rows["control"].fillna("none").astype(str), strict=True))


def _names(heads: list[str], share: Float[np.ndarray, "head 2"], n_names: int) -> list[str]:
    """Text of each point: a name for those far out, nothing for the others."""
    size = np.abs(share).max(1)
    far = [i for i in np.argsort(-size, kind="stable")[:n_names] if size[i] > OUT]
    names_by_index = dict(zip(far, shared_names([heads[i] for i in far], share[far], near=NEAR), strict=True))
    return [names_by_index.get(i, "") for i in range(len(heads))]


def _unit(rows: pd.DataFrame) -> str:
    return str(rows["unit"].iloc[0]) if "unit" in rows else ""


def _axis(rows: pd.DataFrame) -> str:
    """Analysis, variant and unit of an axis, as far as they are known."""
    parts = [str(rows[c].iloc[0]) for c in ("analysis", "variant") if c in rows and pd.notna(rows[c].iloc[0])]
    unit = f" ({_unit(rows)})" if _unit(rows) else ""
    return as_text(": ".join(parts).replace("_", " ") + unit)
