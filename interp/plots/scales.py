"""Colour scales of heat maps: value less null, in one fixed way for each unit.

Zero is all but transparent and strength is opacity: blue above, orange-red below, on a white page and on a dark one
alike. Both ends have 3.3 to 1 at least on #ffffff, #111111 and #1e1e1e.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.plots.theme import FONTS, GREY, INK, Figure

POSITIVE, NEGATIVE = "31,111,208", "203,74,28"
NEUTRAL = "rgba(128,138,150,0.09)"
OPACITY = (0.42, 0.68, 1.0)
"""At a quarter, half and all of the scale."""
UNITS = {
    **dict.fromkeys(("probability", "fraction", "share", "accuracy", "share of uniform", "fraction of variance"), 1.0),
    **dict.fromkeys(("correlation", "rank correlation", "cosine", "score"), 1.0),
    **dict.fromkeys(("logit", "logits", "logit_diff", "prob_diff", "nats", "bits", "norm"), 1.0),
    **dict.fromkeys(("ratio", "standard deviations"), 2.0),
    "degrees": 90.0,
    "activation": 1.0,
    "tokens": 10.0,
    "keys": 10.0,
    "rank": 10.0,
}
"""Unit -> the least that the end of its scale stands for, so that what is small is pale.

Probabilities, fractions, correlations and cosines end there. Of the others whatever is larger reaches the next of
1, 2, 5, 10, 20, 50, ... times it, never a column's own maximum. A unit that is not in the table has no least: its scale
ends at the next of these steps.
"""
STEPS = (1.0, 2.0, 5.0, 10.0)
NOISE = 0.1
"""Share of the end that an axis of dots or lines spans at least."""
BRIGHT = 0.65
"""Share of the scale from where a cell is strong enough for white letters, on a white page and on a dark one."""


def scale_end(values: Float[np.ndarray, "*any"], unit: str) -> float:
    """Where the scale of these values ends: the unit's own end, or the next step that holds all of them."""
    reach = float(np.nanmax(np.abs(values), initial=0.0))
    least = UNITS.get(unit, 0.0)
    if reach <= least * (1 + 1e-9):
        return least or 1.0
    base = least or 10.0 ** math.floor(math.log10(reach))
    rung = 10.0 ** math.floor(math.log10(reach / base) + 1e-12)
    return base * next(rung * step for step in STEPS if rung * step * base >= reach * (1 - 1e-9))


def colour_scale(values: Float[np.ndarray, "*any"], unit: str, *, signed: bool = False) -> dict[str, Any]:
    """Limits and colours of a heat map. Signed, or with a value clearly below zero: as far on both sides of 0.

    The upper half of the signed scale is the unsigned one: a colour means the same in both. What is below zero by less
    than a twentieth of the scale is as pale as zero, and makes no scale signed.
    """
    end = scale_end(values, unit)
    if signed or bool((values < -end * NOISE / 2).any()):
        return {"zmin": -end, "zmax": end, "colorscale": signed_stops()}
    return {"zmin": 0.0, "zmax": end, "colorscale": stops()}


def stops() -> list[list[Any]]:
    """From nothing to the positive end, as plotly takes it."""
    return [[0.0, NEUTRAL], *([at, f"rgba({POSITIVE},{a})"] for at, a in zip((0.25, 0.5, 1.0), OPACITY, strict=True))]


def signed_stops() -> list[list[Any]]:
    """From the negative end over nothing to the positive one."""
    below = [[0.5 - at / 2, colour.replace(POSITIVE, NEGATIVE)] for at, colour in stops()[:0:-1]]
    return [*below, *([0.5 + at / 2, colour] for at, colour in stops())]


def above_null(rows: pd.DataFrame) -> pd.Series:
    """Value less null; the value itself where no null is known."""
    value = rows["value"].astype(float)
    return value - rows["null"].astype(float).fillna(0.0) if "null" in rows else value


def has_null(rows: pd.DataFrame) -> bool:
    """Whether what is drawn of these rows differs from their values."""
    return "null" in rows and bool((rows["null"].astype(float).fillna(0.0) != 0).any())


def bar(unit: str, **more: Any) -> dict[str, Any]:
    """A colour bar with its title."""
    return {"title": {"text": unit, "side": "right"}, "thickness": 10, "outlinewidth": 0, "tickformat": ".3~g", **more}


def axis_range(values: Float[np.ndarray, "*any"], unit: str, *, pad: float = 0.04) -> list[float]:
    """Ends of an axis of values: from zero where none is negative, and a tenth of the unit's scale at least."""
    low, high = min(float(np.nanmin(values)), 0.0), float(np.nanmax(values))
    gap = max(NOISE * UNITS.get(unit, 0.0) - (high - low), 0.0)
    low, high = (low - gap / 2, high + gap / 2) if low < 0 else (0.0, high + gap)
    span = (high - low) or 1.0
    return [low - pad * span / 2, high + pad * span]


def cell_text(
    figure: Figure, text: np.ndarray, z: np.ndarray, end: float, *, x: Any = None, y: Any = None, size: int = 12
) -> None:
    """Words in the cells of a heat map: in the page's own colour, white where a cell is strong.

    A heat map has one colour for all its text, and takes it for granted that the page is white.
    """
    rows, columns = text.shape
    across, down = (list(range(n)) if names is None else list(names) for n, names in ((columns, x), (rows, y)))
    strong = np.abs(np.nan_to_num(z)).ravel() >= BRIGHT * end
    figure.add_scatter(
        x=across * rows,
        y=[name for name in down for _ in range(columns)],
        text=text.ravel().tolist(),
        mode="text",
        textfont={
            "size": size,
            "color": ["#ffffff" if s else GREY for s in strong],
            "family": [FONTS if s else f"{INK}, {FONTS}" for s in strong],
        },
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
    )
