"""The interactive picture of a circuit: depth upwards, `embed` below and `logits` on top, one curve per edge.

A head's queries enter at the left of its box, keys in the middle, values at the right. Colour is the signed score,
centred at zero; width its magnitude. Hovering over the middle of a curve or over a box tells the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from numpy import ndarray

from interp.components import Component, Link, kind, layer_of
from interp.plots.heads import GREY, template

MOST = 400
"""Links drawn at most, the strongest; the title says so."""
SWEEPS = 8
BINS = 11
"""Colours and widths: one trace for each that occurs, so that thousands of edges stay fast."""
ENTRY = {"q": -0.28, "k": 0.0, "v": 0.28, "in": 0.0}
"""Where a port stands under its box, in units of x."""
COLOURS = (
    "#8c1c13",
    "#b2432f",
    "#d0715a",
    "#dfa08e",
    "#c9b8b3",
    "#a3adb5",
    "#a9b6c4",
    "#8fb0d0",
    "#5c93c4",
    "#3173ab",
    "#1a4c80",
)
"""From -1 to 1: the middle is grey, not white, so that a weak edge is still seen on white and on near-black."""
FACES = {"embed": "#e6eaee", "head": "#dce9f5", "mlp": "#fbe9cf", "logits": "#e6eaee"}
BORDERS = {"embed": "#78828d", "head": "#3b82c4", "mlp": "#d97706", "logits": "#78828d"}
INK = "#1d242c"
WIDTH, ROW = 1180, 72
HALF_WIDTH, HALF_HEIGHT = 0.39, 0.17
"""Half a box, in units of x and of y: neighbours stand 1 apart, rows too."""
NARROWEST = 5.0
"""Half the units of x shown at least, so that boxes of a small circuit do not grow."""

Point = tuple[float, float]


def draw(links: Iterable[Link], n_layers: int, *, title: str = "", caption: str = "") -> go.Figure:
    """Figure of a circuit's links; at most `MOST`, the strongest. Without links a figure that says so.

    Without a title the caption stands there, and how many of the links are drawn where that is not all of them.
    """
    links = sorted(links, key=lambda link: -magnitude(link.score))
    visible_links = links[:MOST]
    if not visible_links:
        return _empty(title or "a circuit without edges")
    places = places_of(visible_links, n_layers)
    rows = 1 + max(y for _, y in places.values())
    largest = max((magnitude(link.score) for link in visible_links), default=0.0) or 1.0
    figure = go.Figure(
        [
            *_curves(visible_links, places, largest),
            *_boxes(places),
            _ports(visible_links, places),
            _names(visible_links, places),
        ]
    )
    figure.add_trace(_middles(visible_links, places, largest))
    note = (
        "" if len(links) == len(visible_links) else f", the strongest {len(visible_links)} of {len(links)} links drawn"
    )
    head = title or f"{caption}{note}"
    reach = [
        *(x for x, _ in places.values()),
        *(float(x) for link in visible_links for x in _curve(link, places)[:, 0]),
    ]
    middle, wide = (max(reach) + min(reach)) / 2, max(NARROWEST, (max(reach) - min(reach)) / 2 + 0.5)
    figure.update_layout(
        template=template(),
        title={"text": head, "x": 0.01, "font": {"size": 14}},
        width=WIDTH,
        height=round(ROW * (rows + 0.6)) + 60,
        showlegend=False,
        margin={"l": 8, "r": 8, "t": 44, "b": 8},
        hovermode="closest",
        dragmode="pan",
    )
    figure.update_xaxes(visible=False, range=[middle - wide, middle + wide])
    figure.update_yaxes(visible=False, range=[-0.7, rows - 0.3])
    return figure


def magnitude(score: float) -> float:
    """Size of a score; 0 where there is none."""
    return 0.0 if math.isnan(score) else abs(score)


def places_of(links: Sequence[Link], n_layers: int) -> dict[str, Point]:
    """(x, y) of each component: y counts the rows that are used; x is ordered to keep curves short and uncrossed."""
    names = dict.fromkeys(name for link in links for name in (link.sender, link.receiver))
    depth = {name: (layer_of(name, n_layers), kind(name) == "mlp") for name in names}
    rows: dict[Any, list[str]] = {}
    for name in sorted(names, key=lambda n: (depth[n], _number(n))):
        rows.setdefault(depth[name], []).append(name)
    ordered = [rows[key] for key in sorted(rows)]
    neighbours: dict[str, list[str]] = {name: [] for name in names}
    for link in links:
        neighbours[link.sender].append(link.receiver)
        neighbours[link.receiver].append(link.sender)
    x = {name: _spread(row)[name] for row in ordered for name in row}
    for sweep in range(SWEEPS):  # barycentres, up and down in turn
        for row in ordered if sweep % 2 else ordered[::-1]:
            targets = {name: float(np.mean([x[other] for other in neighbours[name]])) for name in row}
            row.sort(key=lambda name: (targets[name], _number(name)))  # noqa: B023  (used at once)
            x |= _spaced_row(row, targets)
    y = {name: float(i) for i, row in enumerate(ordered) for name in row}
    return {name: (x[name], y[name]) for name in names}


def _spread(row: Sequence[str]) -> dict[str, float]:
    """Side by side, one width apart, around 0."""
    return {name: i - (len(row) - 1) / 2 for i, name in enumerate(row)}


def _spaced_row(row: Sequence[str], targets: Mapping[str, float]) -> dict[str, float]:
    """As near to where each wants to be as one width between neighbours allows, the row's mean kept."""
    x = [targets[name] for name in row]
    for i in range(1, len(x)):
        x[i] = max(x[i], x[i - 1] + 1.0)
    shift = float(np.mean([targets[name] for name in row])) - float(np.mean(x))
    return {name: value + shift for name, value in zip(row, x, strict=True)}


def _number(name: str) -> int:
    return Component.parse(name).index or 0


def _curve(link: Link, places: Mapping[str, Point], *, points: int = 18) -> Float[ndarray, "point 2"]:
    """From the top of the sender's box to the receiver's port, leaving and arriving upright."""
    (x0, y0), (x1, y1) = places[link.sender], places[link.receiver]
    start, end = np.array([x0, y0 + HALF_HEIGHT]), np.array([x1 + ENTRY[link.port], y1 - HALF_HEIGHT])
    reach = np.array([0.0, 0.45 * (end[1] - start[1])])
    t = np.linspace(0, 1, points)[:, None]
    bend = np.array([_bend(x0, x1, y1 - y0), 0.0])  # past the boxes of rows in between
    a, b = start + reach + bend, end - reach + bend
    return (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t**2 * b + t**3 * end


def _bend(x0: float, x1: float, rows: float) -> float:
    """Long links between boxes above one another go around what stands between them."""
    if rows <= 1 or abs(x1 - x0) > 0.5:
        return 0.0
    return (0.45 + 0.09 * rows) * (1 if x0 >= 0 else -1)


def _bin(score: float, largest: float) -> int:
    if math.isnan(score):
        return BINS // 2
    return round((score / largest + 1) / 2 * (BINS - 1))


def _curves(links: Sequence[Link], places: Mapping[str, Point], largest: float) -> list[go.Scatter]:
    """One broken line per colour, weak ones first."""
    lines_by_bin: dict[int, list[ndarray]] = {}
    gap = np.full((1, 2), np.nan)
    for link in links:
        lines_by_bin.setdefault(_bin(link.score, largest), []).extend([_curve(link, places), gap])
    traces = []
    for number in sorted(lines_by_bin, key=lambda i: abs(i - BINS // 2)):
        line = np.concatenate(lines_by_bin[number])
        size = abs(number - BINS // 2) / (BINS // 2)
        style = {"color": COLOURS[number], "width": 1.0 + 3.5 * size}
        traces.append(go.Scatter(x=line[:, 0], y=line[:, 1], mode="lines", line=style, hoverinfo="skip", opacity=0.9))
    return traces


def _middles(links: Sequence[Link], places: Mapping[str, Point], largest: float) -> go.Scatter:
    """What is hovered over, and what the colour bar belongs to."""
    middle = np.array([_handle(_curve(link, places)) for link in links])
    text = [
        f"<b>{link.sender} → {link.receiver}</b>{'' if link.port == 'in' else f' {link.port}'}<br>"
        + ("no score" if math.isnan(link.score) else f"score {link.score:.4g}")
        + ("" if link.edge.receiver == link.receiver else f"<br>shared by {link.edge.receiver}")
        for link in links
    ]
    has_scores = any(not math.isnan(link.score) for link in links)
    scale = [[i / (BINS - 1), colour] for i, colour in enumerate(COLOURS)]
    marker: dict[str, Any] = {
        "size": 6,
        "color": [0.0 if math.isnan(link.score) else link.score for link in links],
        "colorscale": scale,
        "cmin": -largest,
        "cmax": largest,
        "showscale": has_scores,
        "colorbar": {"title": {"text": "score", "side": "right"}, "thickness": 10, "outlinewidth": 0, "len": 0.6},
    }
    return go.Scatter(
        x=middle[:, 0], y=middle[:, 1], mode="markers", marker=marker, text=text, hovertemplate="%{text}<extra></extra>"
    )


def _handle(curve: Float[ndarray, "point 2"]) -> Float[ndarray, " 2"]:
    """The point nearest the middle that lies between two rows, where no box covers it."""
    free = np.abs(curve[:, 1] % 1 - 0.5) < 0.5 - HALF_HEIGHT - 0.08
    distance = np.abs(np.arange(len(curve)) - len(curve) / 2) + np.where(free, 0, len(curve))
    return curve[int(distance.argmin())]


def _boxes(places: Mapping[str, Point]) -> list[go.Scatter]:
    """Filled rectangles, those of a kind as one broken line."""
    traces = []
    for what, face in FACES.items():
        at = np.array([where for name, where in places.items() if kind(name) == what])
        if not len(at):
            continue
        x = at[:, :1] + np.array([-1, 1, 1, -1, -1, np.nan]) * HALF_WIDTH
        y = at[:, 1:] + np.array([-1, -1, 1, 1, -1, np.nan]) * HALF_HEIGHT
        style = {"fill": "toself", "fillcolor": face, "line": {"color": BORDERS[what], "width": 1.5}}
        traces.append(go.Scatter(x=x.ravel(), y=y.ravel(), mode="lines", hoverinfo="skip", **style))
    return traces


def _names(links: Sequence[Link], places: Mapping[str, Point]) -> go.Scatter:
    """Names in the boxes; hovering tells how much enters and leaves."""
    return go.Scatter(
        x=[x for x, _ in places.values()],
        y=[y for _, y in places.values()],
        mode="text",
        text=list(places),
        textfont={"size": 11, "color": INK},
        hovertext=[_hover_text(name, links) for name in places],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _ports(links: Sequence[Link], places: Mapping[str, Point]) -> go.Scatter:
    """The letters q, k and v inside a head's lower edge, where something enters."""
    used_ports = dict.fromkeys((link.receiver, link.port) for link in links if link.port != "in")
    return go.Scatter(
        x=[places[name][0] + ENTRY[port] for name, port in used_ports],
        y=[places[name][1] - HALF_HEIGHT + 0.07 for name, _ in used_ports],
        mode="text",
        text=[port for _, port in used_ports],
        textfont={"size": 9, "color": "#4a545e"},
        hoverinfo="skip",
    )


def _hover_text(name: str, links: Sequence[Link]) -> str:
    links_in = [link for link in links if link.receiver == name]
    links_out = [link for link in links if link.sender == name]
    total = {way: sum(magnitude(link.score) for link in side) for way, side in (("in", links_in), ("out", links_out))}
    return (
        f"<b>{name}</b><br>{len(links_in)} edges in, {len(links_out)} out"
        f"<br>|score| in {total['in']:.3g}, out {total['out']:.3g}"
    )


def _empty(text: str) -> go.Figure:
    figure = go.Figure()
    figure.add_annotation(text=text, showarrow=False, font={"size": 14, "color": GREY})
    figure.update_layout(template=template(), width=WIDTH, height=160)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
