"""Dated facts: what holds of a subject in one year and not in another (who held an office, where the games were)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from random import Random

from interp.tasks.source import Document, templates_for
from interp.tasks.spell import Example, Speller

FAMILY = "dated_facts"
CORRUPTIONS = ("time", "subject")
"""time: another year of the same subject, with another answer. subject: another subject in the same year."""
METRIC = "logit_diff"


def fit(document: Document, speller: Speller, corruption: str) -> tuple[Callable[..., Example | None], str]:
    """`draw` that knows which answers begin alike, and whether an answer is asked for behind a space of its own."""
    answers = list(dict.fromkeys(answer for row in document.rows for answer in row["answers"]))
    before = document.templates[0].text.format(subject="", year="")
    space = speller.lone_space(before, answers)
    tails = speller.tails(before, [" " + answer for answer in answers])
    starts = {a: tail[space] for a, tail in zip(answers, tails, strict=True) if tail is not None and len(tail) > space}
    return partial(draw, starts=starts, apart=space > 0), "first token"


def draw(
    rng: Random, document: Document, corruption: str, *, starts: Mapping[str, int], apart: bool = False
) -> Example | None:
    """Slots {subject} and {year}; right is what held then, wrong the twin's. None: no row to exchange it with.

    Wrong are, with the twin's, all else that ever held of the subject and begins with another token. With `apart` the
    space before the answer is a token of its own, and part of the prompt.
    """
    row = rng.choice(document.rows)
    right = {starts.get(answer) for answer in row["answers"]}
    shared, changed = ("subject", "year") if corruption == "time" else ("year", "subject")
    others = [
        r
        for r in document.rows
        if r.get("group") == row.get("group")
        and r["slots"][shared] == row["slots"][shared]
        and r["slots"][changed] != row["slots"][changed]
        and not {starts.get(answer) for answer in r["answers"]} & right
    ]
    if not others:
        return None
    other = rng.choice(others)
    rivals = [a for r in document.rows if r["slots"]["subject"] == row["slots"]["subject"] for a in r["answers"]]
    wrong = dict.fromkeys(a for a in (*other["answers"], *rivals) if starts.get(a) not in right)
    template = rng.choice(templates_for(document.templates, group=row.get("group")))
    if apart:
        template = replace(template, text=template.text + template.joint, joint="")
    return Example(
        template,
        clean=row["slots"],
        corrupt=other["slots"],
        answers=tuple(row["answers"]),
        wrong=tuple(wrong),
        key=(document.key or "{subject} {year}").format(**row["slots"]),
        roles={"subject": "SUBJECT", "year": "TIME"},
    )
