"""How figures look: template, palette, `Figure`, whose text follows the theme of the page it stands on.

Paper and plots are transparent, and every colour is legible on white and on near-black: lines and the strong ends of
scales at 3 to 1 at least on #ffffff, #111111 (JupyterLab) and #1e1e1e (VS Code). No grey reaches 4.5 to 1 on white and
on #111111 at once (the best has 4.35 on both), so text has 4.5 to 1 on white by itself, and where a page has a theme
of its own a style sheet gives it that theme's colour: `Figure` brings it along. Nothing is redrawn, and no scale has a
second set of colours for the dark.
"""

from __future__ import annotations

import html
import json
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

LINES = ("#2f7fd0", "#d97706", "#2e9e6b", "#c4569a", "#8a8d1f", "#9a5bc4", "#1893a3", "#d1495b")
"""Colours of lines, one after another; none is grey."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Of the first round of colours, the second and so on."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
"""Of markers, for whom colours are not enough."""
ACCENT, MARK = "#2f7fd0", "#d97706"
"""What is measured, and what is marked."""
GREY = "#6e7781"
"""Nulls, and text where the page says nothing of its colours."""
GRID = "rgba(128,138,150,0.25)"
INK = "interp-ink"
"""First font of text that follows the page. No such font is installed: it is what the style sheet finds the text by."""
FONTS = "system-ui, -apple-system, 'Segoe UI', sans-serif"
STYLE = f"""<style>
.js-plotly-plot svg text[style*="{INK}"] {{
  fill: var(--jp-ui-font-color1, var(--vscode-editor-foreground, light-dark(#3d4650, #cdd4dc))) !important;
}}
</style>"""
"""Text in the colour of JupyterLab's or VS Code's theme; elsewhere by the page's `color-scheme`."""
PAGE = STYLE.replace("<style>", "<style>\n:root { color-scheme: light dark; }")
"""The same for a page that holds nothing but figures: it follows the browser."""


class Figure(go.Figure):
    """A plotly figure that brings the style sheet of its text along, into notebooks and into pages of its own."""

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(HTML(STYLE))
        super()._ipython_display_()

    def to_html(self, *args: Any, **options: Any) -> str:
        """As plotly's, with the style sheet; a whole page follows the browser's light or dark."""
        return super().to_html(*args, **_with_style(args, options))

    def write_html(self, file: Any, *args: Any, **options: Any) -> None:
        """As plotly's, with the style sheet; a whole page follows the browser's light or dark."""
        super().write_html(file, *args, **_with_style(args, options))


def _with_style(args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Options of plotly's writers, with a script that adds the style sheet to the page."""
    style = STYLE if args or not options.get("full_html", True) else PAGE
    own = options.get("post_script") or []
    scripts = [own] if isinstance(own, str) else list(own)
    quoted = json.dumps(style).replace("</", "<\\/")  # a script ends at the first "</"
    add = f"document.head.insertAdjacentHTML('beforeend', {quoted});"
    return {**options, "post_script": [*scripts, add]}


def template() -> str:
    """Name of the toolkit's plotly template, registered if it was not."""
    if "interp" not in pio.templates:
        axis = {
            "showgrid": False,
            "zeroline": False,
            "showline": False,
            "ticks": "",
            "title": {"standoff": 8},
            "automargin": True,
        }
        pio.templates["interp"] = go.layout.Template(
            layout={
                "font": {"family": f"{INK}, {FONTS}", "size": 12, "color": GREY},
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "colorway": list(LINES),
                "hoverlabel": {
                    "bgcolor": "#1d242c",
                    "bordercolor": "#1d242c",
                    "font": {"family": FONTS, "color": "#f2f4f7", "size": 12},
                    "align": "left",
                },
                "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": ACCENT},
                "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
                "xaxis": axis,
                "yaxis": axis,
            }
        )
    return "interp"


def line_style(i: int) -> dict[str, Any]:
    """`line` and `marker` of the i-th of several lines; 32 of them are all different, and none is grey."""
    colour = LINES[i % len(LINES)]
    symbol = SYMBOLS[i % len(SYMBOLS)]
    dash = DASHES[i // len(LINES) % len(DASHES)]
    return {"line": {"color": colour, "width": 2, "dash": dash}, "marker": {"color": colour, "symbol": symbol}}


def null_line(i: int = 0) -> dict[str, Any]:
    """`line` and `marker` of the i-th null of a figure: grey, dashed."""
    dash = ("dash", "dot", "dashdot", "longdash")[i % 4]
    return {"line": {"color": GREY, "width": 1.5, "dash": dash}, "marker": {"color": GREY, "symbol": "circle-open"}}


def as_text(value: str) -> str:
    """Text as plotly shall draw it: it would read tags and entities in names that come from a checkpoint."""
    return html.escape(value, quote=False)
