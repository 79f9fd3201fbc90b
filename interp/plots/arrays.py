"""Figures of arrays of one's own: scores of heads, patterns of attention, numbers on the tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import SchemaError
from interp.plots.numbers import array_of
from interp.plots.scales import bar, cell_text, colour_scale
from interp.plots.theme import Figure, as_text, template

TICKS = 40
"""Tokens named along an axis, over all panels side by side."""
LARGE, PANELS = 16, 64
"""Patterns drawn four to a line, and patterns drawn at all: eight to a line, to be seen at a glance."""
SIGNS = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥"})


def pattern_map(
    pattern: Any, tokens: Sequence[str] | None = None, *, names: Sequence[str] | None = None, unit: str = ""
) -> go.Figure:
    """Heat maps of numbers by query (down) and key (across): [query key], or [head query key], a panel for each head.

    For patterns, and for what may be negative: pattern times gradient, the difference of two runs. All panels share one
    scale; with a negative number among them it reaches as far on both sides of zero. Keys after the query are left
    blank where all of them are zero.

    Args:
        pattern: tensor, array or nested lists; up to 64 heads, so that all of a layer are seen at a glance.
        tokens: text of each position.
        names: of the heads.
        unit: title of the colour bar.

    Raises:
        SchemaError: another shape, more heads than can be read, or as many tokens or names as do not fit.
    """
    data = array_of(pattern, [("query", "key"), ("head", "query", "key")], "a pattern")
    data = data[None] if data.ndim == 2 else data
    n, _, n_keys = data.shape
    if n > PANELS:
        raise SchemaError(f"{n} patterns at once; choose up to {PANELS} of them")
    labels = _labels(tokens, n_keys, "keys")
    heads = [f"head {i}" for i in range(n)] if names is None else [str(name) for name in names]
    if len(heads) != n:
        raise SchemaError(f"{len(heads)} names for {n} patterns; give the name of each")
    square = data.shape[1] == n_keys
    later = np.triu(np.ones(data.shape[1:], dtype=bool), 1) if square else np.zeros(data.shape[1:], dtype=bool)
    blank = later & bool((data[:, later] == 0).all())
    scale = colour_scale(data, unit)
    columns = min(n, 4 if n <= LARGE else 8)
    n_lines = -(-n // columns)
    gaps = {"vertical_spacing": 0.24 / n_lines, "horizontal_spacing": 0.1 / columns}
    heads = [as_text(head) for head in heads]
    figure = make_subplots(rows=n_lines, cols=columns, subplot_titles=heads, figure=Figure(), **gaps)
    rows = _labels(tokens, data.shape[1], "queries") if square else [str(i) for i in range(data.shape[1])]
    for i, own in enumerate(data):
        heat = go.Heatmap(
            z=np.where(blank, np.nan, own),
            customdata=np.array([[f"{a} looks at {b}" for b in labels] for a in rows], dtype=object),
            hovertemplate="%{customdata}<br>%{z:.3g}<extra></extra>",
            hoverongaps=False,
            showscale=i == 0,
            colorbar=bar(as_text(unit)),
            **scale,
        )
        place = {"row": 1 + i // columns, "col": 1 + i % columns}
        figure.add_trace(heat, **place)
        figure.update_xaxes(**_ticks(labels, columns), tickangle=-45 if n == 1 else -90, **place)
        figure.update_yaxes(**_ticks(rows, columns), autorange="reversed", **place)
        if i % columns:
            figure.update_yaxes(showticklabels=False, **place)
        if i + columns < n:
            figure.update_xaxes(showticklabels=False, **place)
        else:
            figure.update_xaxes(title_text="key", **place)
    height = 100 + (320 if columns < 3 else 230 if columns < 8 else 140) * n_lines
    figure.update_layout(template=template(), height=height, margin={"t": 32})
    return figure


def token_map(
    values: Any,
    tokens: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    unit: str = "",
    per_line: int = 8,
) -> go.Figure:
    """Numbers on the tokens of a text: [pos] shades the running text, [row pos] is a map with tokens across.

    With a negative number among them the scale reaches as far on both sides of zero.

    Args:
        values: tensor, array or nested lists: a neuron's activation, a loss, a layer's effect by position.
        tokens: text of each position.
        names: of the rows, if there are any; their numbers otherwise.
        unit: title of the colour bar.
        per_line: tokens in a line of running text.

    Raises:
        SchemaError: another shape, or as many tokens or names as do not fit.
    """
    data = array_of(values, [("pos",), ("row", "pos")], "values on tokens")
    labels = _labels(tokens, data.shape[-1], "values")
    running = data.ndim == 1
    if running:
        n_lines = -(-len(labels) // per_line)
        cells = np.full(n_lines * per_line, np.nan)
        cells[: len(labels)] = data
        text = np.array([*labels, *[""] * (len(cells) - len(labels))], dtype=object).reshape(n_lines, per_line)
        hover = np.array([f"{i} {t}" for i, t in enumerate(text.ravel())], dtype=object).reshape(text.shape)
        z, y = cells.reshape(n_lines, per_line), None
    else:
        z, text = data, None
        y = [str(i) for i in range(len(z))] if names is None else [as_text(str(name)) for name in names]
        if len(y) != len(z):
            raise SchemaError(f"{len(y)} names for {len(z)} rows; give the name of each")
        hover = np.array([[f"{name}, {i} {t}" for i, t in enumerate(labels)] for name in y], dtype=object)
    scale = colour_scale(z, unit)
    heat = go.Heatmap(
        z=z,
        y=y,
        customdata=hover,
        hovertemplate="%{customdata}<br>%{z:.3g}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar=bar(as_text(unit)),
        **scale,
    )
    figure = Figure(heat)
    if text is not None:
        cell_text(figure, text, z, scale["zmax"])
    figure.update_layout(template=template(), height=110 + 30 * len(z))
    figure.update_yaxes(autorange="reversed", visible=not running, type="category" if y else None)
    if running:
        figure.update_xaxes(visible=False)
    else:
        figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels, tickangle=-45)
    return figure


def _ticks(labels: Sequence[str], panels: int) -> dict[str, Any]:
    """Places and names of ticks that stand apart where so many panels share the width."""
    step = -(-len(labels) * panels // TICKS)
    at = list(range(0, len(labels), step))
    return {"tickvals": at, "ticktext": [labels[i] for i in at], "tickfont": {"size": 11}}


def _labels(tokens: Sequence[str] | None, n: int, what: str) -> list[str]:
    """Text of each position, line ends written out; positions where there is none."""
    if tokens is None:
        return [str(i) for i in range(n)]
    if isinstance(tokens, str) or len(tokens) != n:
        raise SchemaError(f"{len(tokens)} tokens for {n} {what}; give the text of each position, in a list")
    return [as_text(str(token).translate(SIGNS)) for token in tokens]
