"""Figures of head scores: a map of layers by heads, and the best heads with their intervals and their null.

Functions take the rows of one variant of one analysis, as `Result.top` gives them, and return a `go.Figure`; they never
show it. Colours and type come from the template "interp" (`interp.plots.theme`), registered on first use and never made
the default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import SchemaError
from interp.plots.numbers import head_table
from interp.plots.rows import Score, leading, scores
from interp.plots.scales import above_null, axis_range, bar, colour_scale, has_null
from interp.plots.theme import ACCENT, GREY, GRID, MARK, Figure, as_text, null_line, template

INSET = 0.47  # half the side of the outline around a labelled cell
SHALLOW = 8  # layers below which the title of a colour bar takes two lines, so as to end with its map
LEAST = 110  # pixels of a map at least, which such a title needs


def head_map(rows: Any, *, unit: str = "") -> go.Figure:
    """Heat map of `value` less its null, layers down and heads across; cells with a true `label` are outlined.

    `rows` are those of a table, or numbers [layer head] of one's own: a tensor, an array or nested lists, in `unit`.

    The scale is that of the unit (`interp.plots.scales`): probabilities and fractions end at 1, others at 1, 2, 5, 10
    times what counts as little in the unit; with anything below its null it reaches as far on both sides of 0. So a
    head at chance is pale, and so is noise. The hover has value, interval and null.

    Raises:
        SchemaError: no rows, rows that are not heads, more than one value for a head, or an array of another shape.
    """
    rows = _as_rows(rows, unit)
    cells = _cells(scores(rows))
    n_layers, n_heads = (1 + max(place[axis] for place in cells) for axis in (0, 1))
    z, hover = np.full((n_layers, n_heads), math.nan), np.full((n_layers, n_heads), "", dtype=object)
    for (place, score), excess in zip(cells.items(), above_null(rows), strict=True):
        z[place], hover[place] = excess, _hover(score)
    unit = next(iter(cells.values())).unit
    named = bar_title(unit, has_null(rows))
    heat = go.Heatmap(
        z=z,
        text=hover.tolist(),
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar=bar(
            named.replace(" above", "<br>above") if n_layers < SHALLOW else named,
            ypad=0,
            nticks=3 if n_layers < 5 else 6,
        ),
        **colour_scale(z, unit),
    )
    figure = Figure([heat, *_outlines([place for place, score in cells.items() if score.label])])
    side = float(np.clip(440 / n_layers, 9, 40))
    height = max(round(side * n_layers), LEAST) + 76
    figure.update_layout(template=template(), height=height, showlegend=False)
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
    figure = Figure([*_dots(best), *_null(best)])
    figure.update_layout(
        template=template(),
        height=24 * len(best) + 104,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"},
    )
    names = [as_text(score.component) for score in best]
    figure.update_yaxes(tickvals=list(range(len(best))), ticktext=names, range=[len(best) - 0.5, -0.5])
    unit = best[0].unit
    reach = np.array([(s.value, s.low, s.high, s.null) for s in best])
    figure.update_xaxes(
        title_text=as_text(unit), showgrid=True, gridcolor=GRID, nticks=6, range=axis_range(reach, unit)
    )
    return figure


def bar_title(unit: str, against_null: bool) -> str:
    """What a colour stands for."""
    return as_text(f"{unit} above null".strip() if against_null else unit)


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
    figure = make_subplots(rows=2, cols=2, specs=specs, subplot_titles=titles, vertical_spacing=0.22, figure=Figure())
    for column, name, colour in ((score, f"best {score} score", ACCENT), ("accuracy", "copying accuracy", MARK)):
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=table["step"], y=table[column], mode="lines+markers", name=name, line=line, row=1, col=1)
    both = pd.concat([before, after])
    limits = colour_scale(above_null(both).to_numpy(dtype=float), str(both["unit"].iloc[0]))
    for column, rows in ((1, before), (2, after)):
        panel: Any = head_map(rows)  # plotly's attributes are resolved at run time
        for trace in panel.data:
            trace.update(showlegend=False)
            if trace.type == "heatmap":
                trace.update(**limits, showscale=column == 2)
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
    figure.update_layout(template=template(), height=460, legend=legend)
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
        return [go.Scatter(x=x, y=y, mode="lines", line=null_line()["line"], name="null", hoverinfo="skip")]
    marker = {"symbol": "line-ns-open", "size": 14, "line": grey, "color": GREY}
    rows = [i for i, _ in points]
    return [go.Scatter(x=nulls, y=rows, mode="markers", marker=marker, name="null", hoverinfo="skip")]
