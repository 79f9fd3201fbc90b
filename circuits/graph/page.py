"""A page of its own for an attribution graph: its summary and its drawing. Needs no network and no other file."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import plotly.graph_objects as go


@runtime_checkable
class Drawable(Protocol):
    """What a page is made of: an attribution graph."""

    def draw(self, *, title: str = "") -> go.Figure:
        """Its picture."""
        ...


# Drawn for paper: the page stays light where the system is dark.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="interp-toolkit">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
body {{ margin: 0 auto; padding: 16px; max-width: 1200px; background: #fff; color: #1d242c; \
font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.2rem; margin: 0 0 8px; }}
p {{ margin: 0 0 8px; max-width: 90ch; }}
.drawing {{ overflow-x: auto; }}
.drawing > div {{ min-width: 640px; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{paragraphs}
<div class="drawing" tabindex="0" role="group" aria-label="Drawing of the graph, scrolls sideways; \
edges.csv beside this page lists the same edges">
{drawing}
</div>
</main>
</body>
</html>
"""


def page(graph: Drawable, summary: str) -> str:
    """HTML text: the first line of the summary is the title, the others stand under it."""
    title, *lines = summary.split("\n")
    figure = graph.draw(title=" ").update_layout(width=None, margin={"t": 8})
    options = {"config": {"responsive": True, "displaylogo": False}, "div_id": "circuit"}
    drawing = figure.to_html(include_plotlyjs=True, full_html=False, **options)
    paragraphs = "\n".join(f"<p>{escape(line)}</p>" for line in lines)
    return PAGE.format(title=escape(title), paragraphs=paragraphs, drawing=drawing)
