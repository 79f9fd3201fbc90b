"""The role map: one cell for each head of a model, layers down and heads across, coloured by its main role."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.components import head_name
from interp.plots.heads import tick_step
from interp.plots.theme import FONTS, Figure, template

FUNCTIONS = (
    "#2f7fd0", "#d97706", "#2e9e6b", "#9a5bc4", "#d1495b", "#1893a3", "#8a8d1f", "#c4569a", "#a3684a", "#5b67c9",
)  # fmt: skip
"""Colours of roles that say what a head does; all readable on white and on near-black."""
PATTERNS = ("#6f8296", "#566473", "#7d8392", "#5f7168", "#7a7182")
"""Colours of roles that say only where a head looks: greys."""
EMPTY = "rgba(120,138,155,0.13)"
SIDE = 34, 15  # pixels of a cell: at most, at least
LETTERED = 22  # pixels from which a cell says its role in letters
NARROW = 320  # pixels that the legend has on a page of 400
ENTRY = 36, 5.6, 19  # pixels of an entry of the legend beside its text, of a letter, of a line
BELOW = 54  # pixels between the map and its legend, for the axis


class HeadRole(NamedTuple):
    """A head, a role of it, whether that is an attention pattern only, and the score behind it."""

    layer: int
    head: int
    role: str
    pattern: bool
    score: float


def role_map(roles: Sequence[HeadRole], *, layers: Sequence[int], n_heads: int) -> go.Figure:
    """Every head as a cell in the colour of its main role; a cell without a role is pale.

    The main role of several is the first that says what the head does, and only where none does the first that says
    where it looks. The others stand in the hover. The legend counts the heads that have a role, as their main one or
    beside another. Cells carry the role's letters where they are large enough.

    Args:
        roles: of heads; those of one head in the order of their importance.
        layers: those with attention, one row for each.
        n_heads: columns.
    """
    counts = _counts(roles)
    order = sorted(counts, key=lambda key: key[1])  # as they come, functions first
    codes = {role: letters for (role, _), letters in zip(order, _letters([r for r, _ in order]), strict=True)}
    colours = _colours(order)
    rows = {layer: i for i, layer in enumerate(layers)}
    z = np.full((len(layers), n_heads), np.nan)
    text = np.full(z.shape, "", dtype=object)
    hover = np.array(
        [[f"{head_name(layer, head)}: no role" for head in range(n_heads)] for layer in layers], dtype=object
    )
    for (layer, head), own in _by_head(roles).items():
        own.sort(key=lambda r: r.pattern)
        place, main = (rows[layer], head), own[0]
        z[place], text[place] = order.index((main.role, main.pattern)), codes[main.role]
        hover[place] = f"{head_name(layer, head)}<br>" + "<br>".join(f"{r.role}: {r.score:.3g}" for r in own)
    figure = Figure([_pale(z, hover), *_heat(z, text, hover, [colours[key] for key in order])])
    for key in order:
        name = f"{codes[key[0]]}  {key[0]} ({counts[key]})"
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=_square(colours[key]))
    _lay_out(figure, layers, n_heads)
    return figure


def _counts(roles: Sequence[HeadRole]) -> dict[tuple[str, bool], int]:
    """Heads that have each role."""
    heads = dict.fromkeys((r.role, r.pattern, r.layer, r.head) for r in roles)
    counts: dict[tuple[str, bool], int] = {}
    for role, pattern, *_ in heads:
        counts[role, pattern] = counts.get((role, pattern), 0) + 1
    return counts


def _by_head(roles: Sequence[HeadRole]) -> dict[tuple[int, int], list[HeadRole]]:
    heads: dict[tuple[int, int], list[HeadRole]] = {}
    for role in roles:
        heads.setdefault((role.layer, role.head), []).append(role)
    return heads


def _colours(order: Sequence[tuple[str, bool]]) -> dict[tuple[str, bool], str]:
    """A colour for each role; with more roles than colours they come again, and letters tell them apart."""
    palettes, used = {False: FUNCTIONS, True: PATTERNS}, {False: 0, True: 0}
    colours = {}
    for key in order:
        palette = palettes[key[1]]
        colours[key] = palette[used[key[1]] % len(palette)]
        used[key[1]] += 1
    return colours


def _letters(names: Sequence[str]) -> list[str]:
    """Two letters for each name, of its words or its beginning, no two alike while the name lasts."""
    taken: set[str] = set()
    codes = []
    for name in names:
        words = name.replace("-", " ").split()
        options = ["".join(w[0] for w in words[:2])] if len(words) > 1 else []
        options += [name[0] + letter for letter in name[1:] if letter.isalpha()]
        code = next((o for o in options if o.lower() not in taken), name[:2])
        taken.add(code.lower())
        codes.append(code.upper())
    return codes


def _pale(z: np.ndarray, hover: np.ndarray) -> go.Heatmap:
    """Cells without a role."""
    rest = np.where(np.isnan(z), 0.0, np.nan)
    return go.Heatmap(
        z=rest,
        text=hover.tolist(),
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        colorscale=[[0, EMPTY], [1, EMPTY]],
        showscale=False,
        xgap=1,
        ygap=1,
    )


def _heat(z: np.ndarray, text: np.ndarray, hover: np.ndarray, colours: Sequence[str]) -> list[go.Heatmap]:
    """Cells with a role: whole numbers on a scale of as many steps."""
    if not colours:
        return []
    steps = [[(i + side) / len(colours), colour] for i, colour in enumerate(colours) for side in (0, 1)]
    lettered = _side(z.shape) >= LETTERED
    letters = (
        {"texttemplate": "%{text}", "textfont": {"size": 11, "color": "#ffffff", "family": FONTS}} if lettered else {}
    )
    return [
        go.Heatmap(
            z=z,
            zmin=-0.5,
            zmax=len(colours) - 0.5,
            text=text.tolist(),
            hovertext=hover.tolist(),
            hovertemplate="%{hovertext}<extra></extra>",
            hoverongaps=False,
            colorscale=steps,
            showscale=False,
            xgap=1,
            ygap=1,
            **letters,
        )
    ]


def _square(colour: str) -> dict[str, object]:
    return {"symbol": "square", "size": 11, "color": colour}


def _side(shape: tuple[int, ...]) -> float:
    """Pixels of a cell."""
    return float(np.clip(560 / max(shape[0], shape[1] / 1.6), SIDE[1], SIDE[0]))


def _lay_out(figure: Figure, layers: Sequence[int], n_heads: int) -> None:
    """The legend lies below, in as many lines as a narrow page needs; it narrows no map and hides none of its roles.

    A page may take back what a wide one leaves empty: `meta` says how far below the map the legend begins.
    """
    traces: Any = figure.data  # plotly makes its attributes at run time
    names = [str(trace.name) for trace in traces if trace.name]
    beside, letter, line = ENTRY
    entry = round(letter * max(map(len, names), default=0))
    cells = round(_side((len(layers), n_heads)) * len(layers))
    below = BELOW + line * math.ceil(len(names) / max(1, NARROW // (entry + beside))) + 12
    place = {"orientation": "h", "yref": "paper", "yanchor": "top", "y": -BELOW / cells, "x": 0, "xanchor": "left"}
    still = {"itemclick": False, "itemdoubleclick": False, "font": {"size": 11}, "maxheight": 1.0}
    figure.update_layout(
        template=template(),
        height=cells + below + 12,
        margin={"t": 12, "b": below, "autoexpand": False, "l": 44, "r": 8},
        showlegend=bool(names),
        legend={**place, **still, "entrywidth": entry},
        meta={"below": BELOW},
    )
    figure.update_xaxes(title_text="head", dtick=tick_step(n_heads), tickangle=0, range=[-0.5, n_heads - 0.5])
    ticks = list(range(0, len(layers), tick_step(len(layers))))
    figure.update_yaxes(
        title_text="layer", tickvals=ticks, ticktext=[str(layers[i]) for i in ticks], range=[len(layers) - 0.5, -0.5]
    )
