"""What every made page shares: where the tree is, the note on top, a cell of a table."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
NOTE = "<!-- Made by `python docs/_generate.py`; do not edit. -->"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
