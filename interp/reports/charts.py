"""Figures that only the report draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots.theme import ACCENT, GREY, GRID, LINES, MARK, template

if TYPE_CHECKING:
    from circuits.features.graph_files import AttributionGraph

SERIES = {"attention": ACCENT, "MLP": MARK, "layer": LINES[2], "": LINES[5]}
"""Kind of a part -> colour; "" for what stands in no layer."""
SWAPPED = {"#8c1c13": "#ff8570", "#b2432f": "#e8715a", "#3173ab": "#4f9ae0", "#1a4c80": "#7fbcff"}
"""Ends of a circuit's colours, too dark for a dark page -> what they are there."""


def graph_figure(graph: AttributionGraph) -> go.Figure:
    """The drawing of an attribution graph, as wide as the page lets it be."""
    figure = graph.draw(title=" ")
    margin = {"l": 8, "r": 8, "t": 28, "b": 8}
    figure.update_layout(width=None, title=None, margin=margin, meta={"swapped": SWAPPED})
    return figure


def columns(parts: Mapping[str, float], *, unit: str) -> go.Figure:
    """Columns by depth: the embedding on the left, then attention and MLP of each layer, final biases on the right.

    Names are those of the parts: `attention 3` is the attention of layer 3.
    """
    places: dict[str, None] = {}
    series: dict[str, list[tuple[str, float, str]]] = {}
    for name, value in parts.items():
        kind, _, layer = name.rpartition(" ")
        inside = layer.isdigit()
        place = layer if inside else name
        places.setdefault(place)
        series.setdefault(kind if inside else "", []).append((place, value, name))
    order = list(places)
    figure = go.Figure()
    for kind, colour in SERIES.items():
        own = series.get(kind, [])
        if own:
            figure.add_bar(
                x=[order.index(place) for place, _, _ in own],
                y=[value for _, value, _ in own],
                customdata=[name for _, _, name in own],
                hovertemplate=f"%{{customdata}}<br>%{{y:.4f}} {unit}<extra></extra>",
                marker={"color": colour},
                name=kind or "outside the layers",
            )
    step = max(1, len(order) // 12)
    ticks = [i for i, place in enumerate(order) if not place.isdigit() or int(place) % step == 0]
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
    figure.update_layout(template=template(), height=320, legend=legend, barmode="group", bargap=0.25)
    figure.update_xaxes(tickvals=ticks, ticktext=[order[i] for i in ticks], title_text="layer", tickangle=0)
    zero = {"zeroline": True, "zerolinecolor": GREY, "zerolinewidth": 1}
    figure.update_yaxes(title_text=unit, showgrid=True, gridcolor=GRID, nticks=6, **zero)
    return figure
