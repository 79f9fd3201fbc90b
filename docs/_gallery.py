"""Thumbnails of the gallery: `python docs/_gallery.py` runs notebooks up to a cell and keeps the figure it shows.

The pictures stay in `docs/images/gallery`, so that the site needs neither Chromium nor the notebooks; a test asks that
each cell is still there. `page` makes docs/gallery.md from the same list.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _markdown import DOCS, NOTE, ROOT

PICTURES = DOCS / "images" / "gallery"
WIDTH, HEIGHT, SCALE = 560, 320, 0.75
"""Pixels of a figure as it is drawn, its height where it has none of its own, and the part of them that is kept."""


@dataclass(frozen=True)
class Item:
    """A figure: the last line of the cell that shows it, what it answers, and how it is asked for."""

    notebook: str
    cell: str
    question: str
    call: str

    @property
    def picture(self) -> Path:
        """File of the thumbnail."""
        words = "".join(c if c.isalnum() else " " for c in self.cell.split("#")[0]).split()
        return PICTURES / f"{self.notebook[:2]}-{'-'.join(words)}.png"


ITEMS = (
    Item(
        "01_load_and_look",
        'result.plot("induction")',
        "Which heads copy?",
        'interp.analyze(model, "induction")',
    ),
    Item(
        "03_patching",
        "patch_map(resid, order=order)",
        "Where is the answer, by layer and token?",
        "activation_patching(model, task)",
    ),
    Item(
        "04_circuit",
        "found.graph.draw()",
        "Which connections carry a task?",
        'circuits.circuit(model, "ioi")',
    ),
    Item(
        "04_circuit",
        "found.curve.plot()",
        "How many edges does it take?",
        "found.curve",
    ),
    Item(
        "06_attention",
        'entropy.plot("entropy")',
        "How sharp does each head look?",
        'interp.analyze(model, "entropy")',
    ),
    Item(
        "07_features",
        "graph.draw()",
        "Which features made an answer?",
        "circuits.attribution_graph(model, prompt)",
    ),
    Item(
        "08_mlps",
        "neurons.plot()",
        "Which neurons does a task need?",
        'interp.analyze(model, "neurons")',
    ),
    Item(
        "09_arithmetic",
        'waves.plot("key_frequencies")',
        "By which waves does it add?",
        'interp.analyze(model, "key_frequencies")',
    ),
    Item(
        "11_sinks",
        'found.plot("sinks")',
        "Where does attention rest?",
        'interp.analyze(model, "sinks")',
    ),
    Item(
        "12_reach",
        'profile.plot("distance_profile")',
        "How far back do heads look?",
        'interp.analyze(model, "distance_profile")',
    ),
)


def page() -> str:
    """docs/gallery.md: every thumbnail with its question, linked to its notebook."""
    lines = [
        "# Gallery",
        "",
        NOTE,
        "",
        "Each picture is what a cell of a notebook shows, on a model of the package; press one for the notebook.",
        "All figures are plotly's: they can be pointed at there, and changed.",
        "",
        "::::{container} gallery",
    ]
    for item in ITEMS:
        picture = item.picture.relative_to(DOCS).as_posix()
        lines += [
            "",
            ":::{container} card",
            f"```{{image}} {picture}",
            f":alt: {item.question}",
            f":target: notebooks/{item.notebook}.html",
            "```",
            "",
            f"**{item.question}**",
            "",
            f"`{item.call}`",
            ":::",
        ]
    return "\n".join([*lines, "::::", ""])


def cells(notebook: str) -> list[str]:
    """Sources of the code cells."""
    content = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def shown(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of its last expression, which a notebook shows."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "<cell>", "exec"), names)
        return None
    tree.body.pop()
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def figures(notebook: str, wanted: list[Item]) -> dict[Item, Any]:
    """Figures of a notebook's cells; it is run up to the last of them."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found: dict[Item, Any] = {}
    for source in cells(notebook):
        value = shown(source, names)
        last = source.strip().splitlines()[-1]
        found |= {item: value for item in wanted if item not in found and last.startswith(item.cell)}
        if len(found) == len(wanted):
            break
    return found


def main() -> None:
    """Make every thumbnail, or those of the notebooks that are named."""
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    names = sys.argv[1:] or sorted({item.notebook for item in ITEMS})
    made = {}
    for notebook in names:
        made |= figures(notebook, [item for item in ITEMS if item.notebook == notebook])
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 2000}, device_scale_factor=SCALE)
        for item, figure in made.items():
            figure.update_layout(width=None, height=figure.layout.height or HEIGHT)
            html = figure.to_html(include_plotlyjs=False, full_html=False, config={"displayModeBar": False})
            tab.set_content(f"<script>{get_plotlyjs()}</script><body style='margin:0'><div id=figure>{html}</div>")
            tab.wait_for_selector(".main-svg")
            tab.locator("#figure").screenshot(path=item.picture)
            sys.stdout.write(f"{item.picture.relative_to(ROOT)}  {item.picture.stat().st_size // 1000} KB\n")
        browser.close()


if __name__ == "__main__":
    main()
