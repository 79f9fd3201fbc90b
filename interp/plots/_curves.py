"""Figures of how something falls or rises with a dose: shares removed, strengths, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import SchemaError
from interp.plots.heads import template

Numbers = Sequence[float | int] | np.ndarray | pd.Series


def curves(
    x: Numbers,
    lines: Mapping[str, Numbers],
    *,
    x_title: str,
    y_title: str,
    control: str | None = None,
) -> go.Figure:
    """One line per name over the same x; the line named by `control` is dashed, and drawn first.

    Raises:
        SchemaError: no lines, one of another length than x, or a control that is not among them.
    """
    if not lines:
        raise SchemaError("nothing to plot: no lines")
    wrong = {name: len(y) for name, y in lines.items() if len(y) != len(x)}
    if wrong:
        raise SchemaError(f"lines of other lengths than the {len(x)} points: {wrong}")
    if control is not None and control not in lines:
        raise SchemaError(f"no line {control!r} to be the control; there are {', '.join(lines)}")
    figure = go.Figure()
    for name in sorted(lines, key=lambda name: name != control):
        figure.add_scatter(
            x=np.asarray(x),
            y=np.asarray(lines[name]),
            name=name,
            mode="lines+markers",
            line={"dash": "dash" if name == control else "solid", "width": 2},
            hovertemplate=f"%{{x:.3g}}<br>%{{y:.3g}}<extra>{name}</extra>",
        )
    figure.update_layout(
        template=template(), height=320, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title, showgrid=True, gridcolor="rgba(128,138,150,0.25)", rangemode="tozero")
    return figure
