"""How the rows of an analysis are drawn: by the function that it declares, as a map of heads where it declares none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from interp.environment import load_plugins

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

GROUP = "interp.analyses"
"""Entry points of modules that hold analyses."""
Draw: TypeAlias = "Callable[[pd.DataFrame], go.Figure]"
"""From the rows of one variant of one analysis to a figure that is not shown."""


SHOWN = 10
"""Rows that are drawn as dots."""
INFLATED = 10.0
"""Variance inflation beyond which a regression cannot tell whose a coefficient is."""


def head_map(rows: pd.DataFrame) -> go.Figure:
    """Score of every head, less its null."""
    from interp.plots.heads import head_map as draw

    return draw(rows)


def dots(rows: pd.DataFrame) -> go.Figure:
    """The highest scores with their intervals."""
    from interp.plots.heads import top_heads

    return top_heads(rows)


def readable_dots(rows: pd.DataFrame) -> go.Figure:
    """The highest coefficients of a variance inflation of 10 at most with their intervals.

    Of collinear regressors coefficients are large and of either sign, and their intervals leave no room for the rest.
    All rows are drawn where none is left, or where a table has no column `vif`.
    """
    return dots(readable(rows))


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that `readable_dots` draws."""
    own = rows[rows["vif"] <= INFLATED] if "vif" in rows else rows
    return own if len(own) else rows


def dots_by_size(rows: pd.DataFrame) -> go.Figure:
    """The largest scores of either sign, with their intervals."""
    largest = rows["value"].abs().nlargest(SHOWN).index
    return dots(rows.loc[rows.index.isin(largest)])


def effects(rows: pd.DataFrame) -> go.Figure:
    """Effects of nodes, by layer, head and token."""
    from interp.plots.patching import effect_figure

    return effect_figure(rows)


def first_setting(rows: pd.DataFrame) -> go.Figure:
    """Score of every head, of a table that has it for several poolings and scalings: those of the first row.

    The title says which, and how many others there are.
    """
    columns = ["pooling", "scaling"]
    settings = rows[columns].drop_duplicates()
    first = dict(rows.sort_index().iloc[0][columns])
    chosen = rows[(rows["pooling"] == first["pooling"]) & (rows["scaling"] == first["scaling"])]
    others = f"; {len(settings) - 1} more in the table" if len(settings) > 1 else ""
    figure = head_map(chosen)
    figure.update_layout(title_text=f"pooling {first['pooling']}, scaling {first['scaling']}{others}")
    return figure


_figures: dict[str, tuple[Draw, Mapping[str, Draw]]] = {
    "activation_patching": (effects, {}),
    "node_attribution": (effects, {}),
    "path_patching": (effects, {}),
    "causal_tracing": (effects, {}),
    "role_faithfulness": (dots, {}),
    "sae_codes": (first_setting, {"pair": dots}),
    "features": (dots_by_size, {}),
}


def declare(name: str, draw: Draw, variants: Mapping[str, Draw]) -> None:
    """Draw the rows of the analysis `name` by `draw`, those of some variants in ways of their own."""
    _figures[name] = draw, dict(variants)


def figure_of(name: str, variant: str | None = None) -> Draw:
    """The function that draws an analysis (or one variant); `head_map` for one that is not installed here."""
    load_plugins(GROUP)
    draw, variants = _figures.get(name, (head_map, {}))
    return draw if variant is None else variants.get(variant, draw)


def by_layer(rows: pd.DataFrame) -> go.Figure:
    """Value by layer with its interval, beside what is expected by chance where that is known."""
    own = rows.dropna(subset=["layer"])
    return dots(rows) if own.empty else over(own, "layer", title="layer", null="by chance")


def over(
    rows: pd.DataFrame, x: str, *, title: str, by: str | None = None, name: str = "", null: str = "null"
) -> go.Figure:
    """Value over a column with its interval, a line for each value of another column, and their null in grey.

    Args:
        rows: one for each x, or for each x and value of `by`.
        x: the column across.
        title: of the horizontal axis.
        by: the column that tells lines apart.
        name: of the line where there is one; the variant unless said.
        null: name of the null's line, the mean of theirs where lines have several.
    """
    from interp.plots import curves

    own = rows.dropna(subset=[x, "value"])
    if own.empty:
        return dots(rows)
    places = sorted(own[x].unique())
    groups = (
        {name or str(own["variant"].iloc[0]): own}
        if by is None
        else {str(k): g for k, g in own.groupby(by, sort=False)}
    )
    parts = {key: part.drop_duplicates(x).set_index(x).reindex(places) for key, part in groups.items()}
    lines = {key: part["value"].to_numpy(dtype=float) for key, part in parts.items()}
    intervals = {key: ends(part) for key, part in parts.items()}
    if own["null"].notna().any():
        lines[null] = own.groupby(x)["null"].mean().reindex(places).to_numpy(dtype=float)
    unit = str(own["unit"].iloc[0])
    control = null if null in lines else None
    return curves(places, lines, x_title=title, y_title=unit, control=control, intervals=intervals, unit=unit)


def ends(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals: the table's own, or where it has none 1.96 standard errors to both sides."""
    value, arm = rows["value"].to_numpy(dtype=float), 1.96 * rows["se"].to_numpy(dtype=float)
    low, high = (rows[name].to_numpy(dtype=float) for name in ("ci_low", "ci_high"))
    return np.where(np.isnan(low), value - arm, low), np.where(np.isnan(high), value + arm, high)
