"""Figures of what components wrote, and of what is read off the stream at each layer and position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from interp.errors import SchemaError
from interp.plots.heads import tick_step
from interp.plots.scales import bar, cell_text, colour_scale
from interp.plots.theme import Figure, as_text, template

START, END, OTHER = "start", "end", "other"
"""Row of what enters layer 0, row of what stands behind the last, column of what is no head, attention or MLP."""
COLUMNS = {"attn": "attention", "mlp": "MLP", "neuron": "MLP", "block": "layer"}
"""Kind of a term -> its column; heads have one each."""
LETTERS = 110
"""Letters of such tokens side by side; the hover has all of them."""
WORDS = 24
"""Positions whose likeliest tokens are written out: more cannot be read."""


def component_map(rows: pd.DataFrame, *, unit: str = "logit") -> go.Figure:
    """Heat map of what each component wrote: layers down, heads across, beside them attention, MLP and the rest.

    Embeddings stand in a row before the layers, biases of the end behind them. What has one place is summed: heads over
    their sources, MLPs over their neurons.

    Args:
        rows: one for each component, with columns `kind`, `layer`, `head` and `value`, as `attribute` makes them.
        unit: of the values.

    Raises:
        SchemaError: no rows.
    """
    if rows.empty:
        raise SchemaError("nothing to plot: no rows")
    at = [_place(row) for row in rows.to_dict("records")]
    layers = sorted({row for row, _ in at if isinstance(row, int)})
    heads = sorted({column for _, column in at if isinstance(column, int)})
    down = [name for name in (START, *layers, END) if name in {row for row, _ in at}]
    across = [*heads, *(c for c in dict.fromkeys((*COLUMNS.values(), OTHER)) if c in {column for _, column in at})]
    z = np.full((len(down), len(across)), np.nan)
    for (row, column), value in zip(at, rows["value"].to_numpy(dtype=float), strict=True):
        place = down.index(row), across.index(column)
        z[place] = value + np.nan_to_num(z[place])
    x, y = [str(c) for c in across], [str(r) for r in down]
    hover = f"%{{y}}, %{{x}}<br>%{{z:.3g}} {as_text(unit)}<extra></extra>"
    look: dict[str, Any] = {"xgap": 1, "ygap": 1, "hovertemplate": hover, "hoverongaps": False}
    figure = Figure(go.Heatmap(z=z, x=x, y=y, colorbar=bar(as_text(unit)), **look, **colour_scale(z, unit)))
    side = float(np.clip(440 / len(down), 9, 40))
    figure.update_layout(template=template(), height=round(side * len(down)) + 90)
    step = tick_step(len(heads) or 1)
    ticks = [name for i, name in enumerate(x) if i >= len(heads) or not i % step]
    figure.update_xaxes(title_text="head" if heads else "", type="category", tickvals=ticks)
    figure.update_yaxes(title_text="layer", type="category", autorange="reversed", dtick=tick_step(len(down)))
    return figure


def layer_map(
    values: Float[np.ndarray, "layer pos"],
    layers: Sequence[int],
    tokens: Sequence[str],
    *,
    unit: str,
    words: Sequence[Sequence[str]] | None = None,
) -> go.Figure:
    """Heat map of a number for each layer and position of a prompt, tokens across; `words` stand in the cells.

    Args:
        values: to be drawn.
        layers: of the rows.
        tokens: of the columns.
        unit: of the values.
        words: [layer pos], such as the likeliest tokens; left out beyond 24 positions.

    Raises:
        SchemaError: layers or tokens that do not fit.
    """
    if values.shape != (len(layers), len(tokens)):
        raise SchemaError(f"values of shape {values.shape} for {len(layers)} layers and {len(tokens)} tokens")
    given = words or [[""] * len(tokens)] * len(layers)
    text = np.array([[as_text(word) for word in row] for row in given], dtype=object)
    scale = colour_scale(values, unit)
    hover = f"layer %{{y}}, %{{customdata}}<br>%{{z:.3g}} {as_text(unit)}<extra></extra>"
    names = [as_text(token) for token in tokens]
    cells = [[f"{name} → {word}" if word else name for name, word in zip(names, row, strict=True)] for row in text]
    told = np.array(cells, dtype=object)
    look: dict[str, Any] = {"xgap": 1, "ygap": 1, "hovertemplate": hover, "customdata": told}
    figure = Figure(go.Heatmap(z=values, y=[str(i) for i in layers], colorbar=bar(as_text(unit)), **look, **scale))
    if words is not None and len(tokens) <= WORDS:
        letters = max(3, LETTERS // len(tokens))
        short = [[as_text(w if len(w) <= letters else w[: letters - 1] + "…") for w in row] for row in given]
        cell_text(figure, np.array(short, dtype=object), values, scale["zmax"], y=[str(i) for i in layers], size=11)
    figure.update_layout(template=template(), height=110 + 30 * len(layers), showlegend=False)
    figure.update_xaxes(title_text="token", tickvals=list(range(len(tokens))), ticktext=names, tickangle=-45)
    figure.update_yaxes(title_text="layer", type="category", autorange="reversed", dtick=tick_step(len(layers)))
    return figure


def _place(row: dict[Any, Any]) -> tuple[int | str, int | str]:
    """Row and column of a component."""
    layer, head = (None if pd.isna(row[name]) else int(row[name]) for name in ("layer", "head"))
    if layer is None:
        return (START if row["kind"] in ("embed", "pos") else END), OTHER
    return layer, COLUMNS.get(str(row["kind"]), OTHER) if head is None else head
