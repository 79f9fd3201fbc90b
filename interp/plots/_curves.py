"""Figures of how something falls or rises with a dose: shares removed, strengths, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import SchemaError
from interp.plots.scales import axis_range
from interp.plots.theme import GRID, Figure, as_text, line_style, null_line, template
from interp.several import several

ABOVE = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
"""A legend over the plot, in as many lines as it needs."""
Numbers = Sequence[float | int] | np.ndarray | pd.Series
FEW = 6
"""Whole numbers that an axis marks one by one."""


def curves(
    x: Numbers,
    lines: Mapping[str, Numbers],
    *,
    x_title: str,
    y_title: str,
    control: str | Sequence[str] | None = None,
    intervals: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    unit: str = "",
) -> go.Figure:
    """One line per name over the same x; what `control` names is grey and dashed and drawn first; nothing else is grey.

    Up to 32 lines are told apart by colour, dashes and marks. The vertical axis starts at zero where nothing is below
    it, and spans a tenth of the scale of `unit` at least.

    Args:
        x: of every line.
        lines: heights by name.
        x_title: of the horizontal axis.
        y_title: of the vertical axis.
        control: the null, or several.
        intervals: low and high ends by name of a line.
        unit: of the heights, one of `interp.plots.scales.UNITS`.

    Raises:
        SchemaError: no lines, one of another length than x, or a control that is not among them.
    """
    if not lines:
        raise SchemaError("nothing to plot: no lines")
    wrong = {name: len(y) for name, y in lines.items() if len(y) != len(x)}
    if wrong:
        raise SchemaError(f"lines of other lengths than the {len(x)} points: {wrong}")
    controls = several(control, "names of controls")
    for name in controls:
        if name not in lines:
            raise SchemaError(f"no line {name!r} to be the control; there are {', '.join(lines)}")
    figure = Figure()
    measured = [name for name in lines if name not in controls]
    looks = {name: null_line(i) for i, name in enumerate(controls)}
    looks |= {name: line_style(i) for i, name in enumerate(measured)}
    for name, look in looks.items():
        ends = (intervals or {}).get(name)
        figure.add_scatter(
            x=np.asarray(x),
            y=np.asarray(lines[name]),
            name=as_text(name),
            mode="lines+markers",
            error_y=None if ends is None else arms(lines[name], *ends),
            hovertemplate=f"%{{x:.3g}}<br>%{{y:.3g}}<extra>{as_text(name)}</extra>",
            **look,
        )
    figure.update_layout(template=template(), height=320, legend=ABOVE)
    figure.update_xaxes(title_text=as_text(x_title), dtick=whole_step(x))
    figure.update_yaxes(title_text=as_text(y_title), showgrid=True, gridcolor=GRID)
    every = np.concatenate(
        [np.asarray(y, dtype=float) for y in (*lines.values(), *sum((intervals or {}).values(), ()))]
    )
    if np.isfinite(every).any():
        figure.update_yaxes(range=axis_range(every, unit))
    return figure


def whole_step(x: Numbers) -> int | None:
    """1 where few whole numbers are to be told apart, layers or rounds, none of which has halves; else None."""
    at = np.asarray(x, dtype=float)
    whole = len(at) > 0 and bool(np.isfinite(at).all()) and bool((at == np.round(at)).all())
    return 1 if whole and at.max() - at.min() <= FEW else None


def arms(y: Numbers, low: Numbers, high: Numbers) -> dict[str, Any]:
    """Error bars from the ends of intervals; none where an end is missing."""
    middle, below, above = (np.asarray(v, dtype=float) for v in (y, low, high))
    ends = {"array": np.nan_to_num(above - middle), "arrayminus": np.nan_to_num(middle - below)}
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 0, **ends}
