"""Figures of head scores: a map of layers by heads, and the best heads with their intervals and their null.

Functions take the rows of one variant of one analysis, as `Result.top` gives them, and return a `go.Figure`; they never
show it. Colours and type come from the template "interp", registered on first use and never made the default. A
figure that lands on a dark page finds its colour scale for that in `layout.meta["dark"]`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from interp.errors import SchemaError
from interp.plots.numbers import head_table
from interp.plots.rows import Score, leading, scores

BOUNDED = ("probability", "fraction")
FLOOR = 0.5  # a bounded scale reaches at least this far, so that noise never fills it
ACCENT, MARK, GREY = "#3b82c4", "#d97706", "#78828d"  # each at least 3 to 1 against white and against near-black
MAGNITUDE = ("#eef2f6", "#c3d7ea", "#7fabd3", "#3a79b4", "#0f3f74")
MAGNITUDE_DARK = ("#222931", "#27435f", "#356a9b", "#5d9bd6", "#bfe0ff")
SIGNED_DARK = ("#ffa98c", "#b5533c", "#222931", "#3873a8", "#a3d3ff")
INSET = 0.47  # half the side of the outline around a labelled cell


def template() -> str:
    """Name of the toolkit's plotly template, registered if it was not."""
    if "interp" not in pio.templates:
        axis = {
            "showgrid": False,
            "zeroline": False,
            "showline": False,
            "ticks": "",
            "title": {"standoff": 8},
            "automargin": True,
        }
        pio.templates["interp"] = go.layout.Template(
            layout={
                "font": {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": GREY},
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "colorway": [ACCENT, MARK, "#4d9078", "#a06cb0", GREY],
                "hoverlabel": {
                    "bgcolor": "#1d242c",
                    "bordercolor": "#1d242c",
                    "font": {"color": "#f2f4f7", "size": 12},
                    "align": "left",
                },
                "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": ACCENT},
                "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
                "xaxis": axis,
                "yaxis": axis,
            }
        )
    return "interp"


def head_map(rows: Any, *, unit: str = "") -> go.Figure:
    """Heat map of `value`, layers down and heads across; cells with a true `label` are outlined.

    `rows` are those of a table, or numbers [layer head] of one's own: a tensor, an array or nested lists, in `unit`.

    Probabilities and fractions are drawn on 0..1 (0..0.5 when none reaches that), other magnitudes on 0..max, and
    anything with a negative value on a red-blue scale that reaches as far on both sides of 0. The colour bar's title
    is the unit.

    Raises:
        SchemaError: no rows, rows that are not heads, more than one value for a head, or an array of another shape.
    """
    cells = _cells(scores(_as_rows(rows, unit)))
    n_layers, n_heads = (1 + max(place[axis] for place in cells) for axis in (0, 1))
    values, hover = np.full((n_layers, n_heads), math.nan), np.full((n_layers, n_heads), "", dtype=object)
    for place, score in cells.items():
        values[place], hover[place] = score.value, _hover(score)
    unit = next(iter(cells.values())).unit
    scale = colour_scale(values, unit)
    meta = {"dark": scale.pop("dark")}
    bar = {"title": {"text": as_text(unit), "side": "right"}, "thickness": 10, "outlinewidth": 0, "ypad": 0}
    heat = go.Heatmap(
        z=values,
        text=hover.tolist(),
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar={**bar, "nticks": 3 if n_layers < 5 else 6},
        **scale,
    )
    figure = go.Figure([heat, *_outlines([place for place, score in cells.items() if score.label])])
    side = float(np.clip(440 / n_layers, 9, 40))
    figure.update_layout(template=template(), height=round(side * n_layers) + 76, showlegend=False, meta=meta)
    figure.update_xaxes(title_text="head", dtick=tick_step(n_heads), tickangle=0, range=[-0.5, n_heads - 0.5])
    figure.update_yaxes(title_text="layer", dtick=tick_step(n_layers), range=[n_layers - 0.5, -0.5])
    return figure


def top_heads(rows: Any, k: int = 10, *, unit: str = "") -> go.Figure:
    """Dots of the k largest values, best on top, with their intervals; the null is a dashed line.

    Filled dots carry a true `label`; these come before others, so that none below 0 is left out.
    Where the null differs between heads it is a tick beside each dot. `rows` may be numbers [layer head], as in
    `head_map`.

    Raises:
        SchemaError: no rows with a value.
    """
    best = leading(scores(_as_rows(rows, unit)), k)
    if not best:
        raise SchemaError("nothing to plot: no rows with a value")
    figure = go.Figure([*_dots(best), *_null(best)])
    figure.update_layout(
        template=template(),
        height=24 * len(best) + 96,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"},
    )
    names = [as_text(score.component) for score in best]
    figure.update_yaxes(tickvals=list(range(len(best))), ticktext=names, range=[len(best) - 0.5, -0.5])
    unit = best[0].unit
    figure.update_xaxes(title_text=as_text(unit), showgrid=True, gridcolor="rgba(128,138,150,0.25)", nticks=6)
    reach = np.array([(s.value, s.low, s.high, s.null) for s in best])
    top = float(np.nanmax(reach))
    if np.nanmin(reach) >= 0 and top > 0:  # counted from zero, or a small difference looks like a large one
        top = max(0.1, top) if unit in BOUNDED else top
        figure.update_xaxes(range=[-0.02 * top, 1.04 * top])
    return figure


def before_and_after(
    table: pd.DataFrame, before: pd.DataFrame, after: pd.DataFrame, *, steps: tuple[int, int], score: str
) -> go.Figure:
    """Columns `score` and `accuracy` against `step`, and below them the head maps of the two steps, on one scale.

    Raises:
        SchemaError: no rows, or rows that `head_map` refuses.
    """
    if table.empty:
        raise SchemaError("nothing to plot: no rows")
    titles = ["", *(f"step {step:,}" for step in steps)]
    specs = [[{"colspan": 2}, None], [{}, {}]]
    figure = make_subplots(rows=2, cols=2, specs=specs, subplot_titles=titles, vertical_spacing=0.22)
    for column, name, colour in ((score, f"best {score} score", ACCENT), ("accuracy", "copying accuracy", MARK)):
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=table["step"], y=table[column], mode="lines+markers", name=name, line=line, row=1, col=1)
    dark = None
    for column, rows in ((1, before), (2, after)):
        panel: Any = head_map(rows)  # plotly's attributes are resolved at run time
        dark = panel.layout.meta["dark"]
        for trace in panel.data:
            trace.update(showlegend=False)
            if trace.type == "heatmap":
                trace.update(zmin=0.0, zmax=1.0, showscale=column == 2)
                trace.colorbar.update(len=0.4, y=0.0, yanchor="bottom")
            figure.add_trace(trace, row=2, col=column)
        figure.update_xaxes(title_text="head", dtick=1, range=list(panel.layout.xaxis.range), row=2, col=column)
        figure.update_yaxes(dtick=1, range=list(panel.layout.yaxis.range), row=2, col=column)
    shade = {"x0": steps[0], "x1": steps[1], "y0": 0, "y1": 1, "yref": "y domain", "xref": "x", "layer": "below"}
    figure.add_shape(type="rect", fillcolor=GREY, opacity=0.15, line_width=0, **shade)
    figure.update_xaxes(title_text="step", row=1, col=1)
    figure.update_yaxes(range=[-0.02, 1.02], title_text="probability, fraction", row=1, col=1)
    figure.update_yaxes(title_text="layer", row=2, col=1)
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
    figure.update_layout(template=template(), height=460, legend=legend, meta={"dark": dark})
    return figure


def shared_names(names: Sequence[str], points: np.ndarray, *, near: float) -> list[str]:
    """Text of each point: its name and, first come, those of the points closer than `near`, which go without.

    Distance is the larger of the two coordinates'; of more than three names the first two are given and how many more.
    """
    text, members = [""] * len(names), set[int]()
    for i in range(len(names)):
        if i not in members:
            own = [j for j in range(i, len(names)) if j not in members and np.abs(points[i] - points[j]).max() < near]
            own_names = [names[j] for j in (own if len(own) <= 3 else own[:2])]
            text[i] = as_text(" ".join([*own_names, *([f"+{len(own) - 2}"] if len(own) > 3 else [])]))
            members.update(own)
    return text


def _as_rows(rows: Any, unit: str) -> pd.DataFrame:
    """Rows as they are, or made of numbers [layer head]."""
    return rows if isinstance(rows, pd.DataFrame) else head_table(rows, unit=unit)


def _cells(row_scores: Iterable[Score]) -> dict[tuple[int, int], Score]:
    cells: dict[tuple[int, int], Score] = {}
    for score in row_scores:
        if score.layer is None or score.head is None:
            raise SchemaError("a head map needs rows with a layer and a head")
        place = (score.layer, score.head)
        if place in cells:
            raise SchemaError("a head map needs one value per head: choose one variant of one analysis")
        cells[place] = score
    if not cells:
        raise SchemaError("nothing to plot: no rows")
    return cells


def as_text(value: str) -> str:
    """Text as plotly shall draw it: it would read tags and entities in names that come from a checkpoint."""
    return html.escape(value, quote=False)


def _hover(score: Score) -> str:
    """The component, then whichever of value, interval, null, q and label it has."""
    lines = [
        f"<b>{as_text(score.component)}</b>",
        "no value" if math.isnan(score.value) else f"{score.value:.3g} {as_text(score.unit)}",
        "" if math.isnan(score.low) else f"95 % interval {score.low:.3g} to {score.high:.3g}",
        "" if math.isnan(score.null) else f"null {score.null:.3g}",
        "" if math.isnan(score.q) else f"q {score.q:.2g}",
        "labelled" if score.label else "",
    ]
    return "<br>".join(filter(None, lines))


def colour_scale(values: np.ndarray, unit: str, *, signed: bool = False) -> dict[str, Any]:
    """Limits and colours of a heat map, and those for a dark page (`dark`, to be taken out).

    Signed, or with a negative value among them: as far on both sides of 0. Bounded units reach a fixed end.
    """
    finite = values[~np.isnan(values)]
    reach = float(np.abs(finite).max(initial=0.0))
    if unit in BOUNDED and reach <= 1:
        reach = 1.0 if reach > FLOOR else FLOOR
    reach = reach or 1.0
    if signed or (finite < 0).any():
        return {"zmin": -reach, "zmax": reach, "colorscale": "RdBu", "dark": stops(SIGNED_DARK)}
    return {"zmin": 0.0, "zmax": reach, "colorscale": stops(MAGNITUDE), "dark": stops(MAGNITUDE_DARK)}


def stops(colours: tuple[str, ...]) -> list[list[Any]]:
    """Colours at even distances, as plotly takes them."""
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


def tick_step(n: int) -> int:
    """Distance between ticks that leaves at most 12 of them: as many as stand side by side on a phone."""
    return next(step for step in (1, 2, 4, 8, 16, 32, 64) if n <= 12 * step or step == 64)


def _outlines(places: Sequence[tuple[int, int]]) -> list[go.Scatter]:
    """Squares around cells, all of them one broken line: they scale with the cells and cost one trace."""
    if not places:
        return []
    x = np.array([-1, 1, 1, -1, -1, np.nan]) * INSET
    y = np.array([-1, -1, 1, 1, -1, np.nan]) * INSET
    centres = np.array(places, dtype=float)
    return [
        go.Scatter(
            x=(centres[:, 1:] + x).ravel(),
            y=(centres[:, :1] + y).ravel(),
            mode="lines",
            line={"color": MARK, "width": 2},
            hoverinfo="skip",
            name="labelled",
        )
    ]


def _dots(best: Sequence[Score]) -> list[go.Scatter]:
    any_label = any(score.label for score in best)
    traces = []
    for label, name, fill in ((True, "labelled", ACCENT), (False, "not labelled", "rgba(0,0,0,0)")):
        points = [(i, score) for i, score in enumerate(best) if bool(score.label) is label]
        if not points:
            continue
        value, low, high = np.array([(s.value, s.low, s.high) for _, s in points]).T
        arms = {"array": np.nan_to_num(high - value), "arrayminus": np.nan_to_num(value - low)}
        traces.append(
            go.Scatter(
                x=value,
                y=[i for i, _ in points],
                mode="markers",
                marker={"size": 9, "color": fill, "line": {"color": ACCENT, "width": 2}},
                error_x={"type": "data", "symmetric": False, "thickness": 1.6, "width": 0, "color": ACCENT, **arms},
                text=[_hover(s) for _, s in points],
                hovertemplate="%{text}<extra></extra>",
                name=name if any_label else "score",
            )
        )
    return traces


def _null(best: Sequence[Score]) -> list[go.Scatter]:
    points = [(i, score.null) for i, score in enumerate(best) if not math.isnan(score.null)]
    if not points:
        return []
    grey = {"color": GREY, "width": 1.5}
    nulls = [null for _, null in points]
    if np.ptp(nulls) < 1e-12:
        x, y = [nulls[0]] * 2, [-0.5, len(best) - 0.5]
        return [go.Scatter(x=x, y=y, mode="lines", line={**grey, "dash": "dash"}, name="null", hoverinfo="skip")]
    marker = {"symbol": "line-ns-open", "size": 14, "line": grey, "color": GREY}
    rows = [i for i, _ in points]
    return [go.Scatter(x=nulls, y=rows, mode="markers", marker=marker, name="null", hoverinfo="skip")]
