"""Lookup: what goes with a word, from a table (capital and country, exemplar and class, profession and pronoun)."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document, templates_for
from interp.tasks.spell import Example

CORRUPTIONS = ("other",)
"""other: another row of the table, with another answer; that answer is the wrong one."""
METRIC = "logit_diff"


def draw(rng: Random, document: Document, corruption: str) -> Example | None:
    """A row fills the template's slots; rows and templates of a group go together. None: no row has another answer."""
    del corruption
    row = rng.choice(document.rows)
    template = rng.choice(templates_for(document.templates, group=row.get("group")))
    others = [
        r for r in document.rows if r.get("group") == row.get("group") and not set(r["answers"]) & set(row["answers"])
    ]
    if not others:
        return None
    other = rng.choice(others)
    return Example(
        template,
        clean=row["slots"],
        corrupt=other["slots"],
        answers=tuple(row["answers"]),
        wrong=tuple(other["answers"]),
        key=(" ".join(row["slots"].values()) if document.key is None else document.key).format(**row["slots"]),
    )
