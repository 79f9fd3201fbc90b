"""Dated facts: what holds of a subject in one year and not in another (who held an office, where the games were)."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document, templates_for
from interp.tasks.spell import Example

FAMILY = "dated_facts"
CORRUPTIONS = ("time", "subject")
"""time: another year of the same subject, with another answer. subject: another subject in the same year."""
METRIC = "logit_diff"


def draw(rng: Random, document: Document, corruption: str) -> Example | None:
    """Slots {subject} and {year}; right is what held then, wrong the twin's. None: no row to exchange it with.

    Wrong are, with the twin's, all else that ever held of the subject.
    """
    row = rng.choice(document.rows)
    shared, changed = ("subject", "year") if corruption == "time" else ("year", "subject")
    others = [
        r
        for r in document.rows
        if r.get("group") == row.get("group")
        and r["slots"][shared] == row["slots"][shared]
        and r["slots"][changed] != row["slots"][changed]
        and not set(r["answers"]) & set(row["answers"])
    ]
    if not others:
        return None
    other = rng.choice(others)
    rivals = [a for r in document.rows if r["slots"]["subject"] == row["slots"]["subject"] for a in r["answers"]]
    wrong = dict.fromkeys(a for a in (*other["answers"], *rivals) if a not in row["answers"])
    return Example(
        rng.choice(templates_for(document.templates, group=row.get("group"))),
        clean=row["slots"],
        corrupt=other["slots"],
        answers=tuple(row["answers"]),
        wrong=tuple(wrong),
        key=(document.key or "{subject} {year}").format(**row["slots"]),
        roles={"subject": "SUBJECT", "year": "TIME"},
    )
