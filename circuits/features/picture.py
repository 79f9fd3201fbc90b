"""The interactive picture of an attribution graph: tokens along x, layers upwards, embeddings below, logits on top."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from circuits.graph.drawing import BINS, COLOURS, INK, WIDTH
from interp.plots.theme import LINES, template

if TYPE_CHECKING:
    from circuits.features.feature_graph import FeatureGraph

MOST = 400
"""Edges drawn at most, the strongest shares; the title says so."""
ROW = 84
LOOK = {
    "embedding": ("square", LINES[2]),
    "error": ("diamond-open", "#b2432f"),
    "feature": ("circle", "#d97706"),
    "logit": ("square", "#3b82c4"),
}
NAMED = 3  # strongest edges in and out that a node tells of


def draw(graph: FeatureGraph, *, title: str = "") -> go.Figure:
    """Figure of the graph. Hovering over a node tells what it is, its influence and its strongest edges."""
    e = graph.edges
    order = e.share.argsort(descending=True, stable=True)[:MOST]
    ends = {*e.source[order].tolist(), *e.target[order].tolist()}
    shown = [i for i, node in enumerate(graph.nodes) if i in ends or node.kind in ("embedding", "logit")]
    columns = sorted({graph.nodes[i].position for i in shown})
    rows = sorted({graph.nodes[i].layer for i in shown})
    places = _places(graph, shown, columns, rows)
    figure = go.Figure(_lines(graph, order.tolist(), places))
    influence = graph.influence.tolist()
    for kind, (symbol, colour) in LOOK.items():
        own = [i for i in shown if graph.nodes[i].kind == kind]
        if own:
            figure.add_trace(
                go.Scatter(
                    x=[places[i][0] for i in own],
                    y=[places[i][1] for i in own],
                    mode="markers",
                    name=kind,
                    marker={"symbol": symbol, "size": 9, "color": colour, "line": {"width": 1, "color": INK}},
                    hovertext=[_hover(graph, i, influence[i]) for i in own],
                    hovertemplate="%{hovertext}<extra></extra>",
                )
            )
    note = "" if len(order) == len(e.weight) else f", the strongest {len(order)} of {len(e.weight)} edges drawn"
    head = title or f"Attribution graph{note}"
    n_layers = max((n.layer for n in graph.nodes if n.kind == "logit"), default=0)
    names = {-1: "tokens", n_layers: "logits"}
    figure.update_layout(
        template=template(),
        title={"text": head, "x": 0.01, "font": {"size": 14}},
        width=WIDTH,
        height=ROW * max(len(rows), 3) + 148,
        margin={"l": 8, "r": 8, "t": 72, "b": 8},
        hovermode="closest",
        dragmode="pan",
        legend={"orientation": "h", "y": 1, "x": 0, "xanchor": "left", "yanchor": "bottom"},  # not under the buttons
    )
    ticks = [escape(graph.tokens[c]) if c < len(graph.tokens) else str(c) for c in columns]
    figure.update_xaxes(
        tickvals=list(range(len(columns))), ticktext=ticks, showgrid=False, zeroline=False, title="token"
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[names.get(r, f"layer {r}") for r in rows],
        zeroline=False,
        range=[-0.5, len(rows) - 0.5],
    )
    return figure


def _places(
    graph: FeatureGraph, shown: list[int], columns: list[int], rows: list[int]
) -> dict[int, tuple[float, float]]:
    """(x, y) of each node: those of one token and layer side by side, by influence, in several lines if many."""
    cells: dict[tuple[int, int], list[int]] = {}
    influence = graph.influence
    for i in sorted(shown, key=lambda i: -float(influence[i])):
        cells.setdefault((graph.nodes[i].position, graph.nodes[i].layer), []).append(i)
    places = {}
    for (position, layer), own in cells.items():
        x, y = columns.index(position), rows.index(layer)
        per_line = max(4, int(np.ceil(len(own) ** 0.5)))
        lines = -(-len(own) // per_line)
        for j, i in enumerate(own):
            line, slot = divmod(j, per_line)
            width = min(per_line, len(own) - line * per_line)
            dx = 0.8 * ((slot + 0.5) / width - 0.5) if width > 1 else 0.0
            places[i] = (x + dx, y + 0.5 * ((line + 0.5) / lines - 0.5))
    return places


def _lines(graph: FeatureGraph, order: list[int], places: dict[int, tuple[float, float]]) -> list[go.Scatter]:
    """One broken line for each colour, weak ones first; colour and width by the signed share."""
    e, by_bin = graph.edges, {}
    share = (e.share * e.weight.sign()).tolist()
    largest = max((abs(share[i]) for i in order), default=1.0) or 1.0
    for i in order:
        number = round((share[i] / largest + 1) / 2 * (BINS - 1))
        (x0, y0), (x1, y1) = places[int(e.source[i])], places[int(e.target[i])]
        by_bin.setdefault(number, []).append([[x0, y0], [x1, y1], [np.nan, np.nan]])
    traces = []
    for number in sorted(by_bin, key=lambda i: abs(i - BINS // 2)):
        line = np.concatenate(by_bin[number])
        size = abs(number - BINS // 2) / (BINS // 2)
        style = {"color": COLOURS[number], "width": 0.7 + 3.0 * size}
        traces.append(
            go.Scatter(
                x=line[:, 0],
                y=line[:, 1],
                mode="lines",
                line=style,
                hoverinfo="skip",
                showlegend=False,
                opacity=0.35 + 0.6 * size,
            )
        )
    return traces


def _hover(graph: FeatureGraph, i: int, influence: float) -> str:
    node, e = graph.nodes[i], graph.edges
    lines = [f"<b>{escape(node.name)}</b> {escape(node.label)}", f"value {node.value:.4g}, influence {influence:.4g}"]
    for word, own, far in (("from", e.target == i, e.source), ("to", e.source == i, e.target)):
        edges = own.nonzero()[:, 0]
        edges = edges[e.share[edges].argsort(descending=True)[:NAMED]]
        for j in edges.tolist():
            other = graph.nodes[int(far[j])]
            lines.append(f"{word} {escape(other.name)} {escape(other.label)}: {float(e.weight[j]):.3g}")
            parts = graph.heads.get((int(e.source[j]), int(e.target[j])))
            if parts:
                head, part = max(parts.items(), key=lambda entry: abs(entry[1]))
                lines[-1] += f" (most by {head}: {part:.3g})"
    return "<br>".join(lines)
