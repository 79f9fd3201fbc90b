"""Greater-than: a span of years ends later than it begins (arXiv 2305.00586)."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document
from interp.tasks.spell import Example

CORRUPTIONS = ("start_01", "random_year")
"""start_01: the first year ends in 01, which rules next to nothing out. random_year: it ends in another number."""
METRIC = "prob_diff"
YEARS = tuple(f"{n:02d}" for n in range(100))
CONTEXTS = tuple(f"year {century}" for century in range(11, 100))
"""Where "00" is read if it merges with the century at hand, as it does in "1700"."""
FIRST, LAST = 2, 97
"""Years of a century that something may begin in, so that both sides have a few members."""


def draw(rng: Random, document: Document, corruption: str) -> Example:
    """Slots {century} and {year}, which must be tokens of their own; right is every later year of the century."""
    template = rng.choice(document.templates)
    year = rng.randint(FIRST, LAST)
    fillers = {slot: rng.choice(document.words[slot]) for slot in template.slots if slot != "year"}
    other = 1 if corruption == "start_01" else rng.choice([y for y in range(FIRST, LAST + 1) if y != year])
    return Example(
        template,
        clean={**fillers, "year": YEARS[year]},
        corrupt={**fillers, "year": YEARS[other]},
        answers=YEARS[year + 1 :],
        wrong=YEARS[: year + 1],
        key=(document.key or "{noun} {century} {year}").format(**fillers, year=year),
        contexts=CONTEXTS,
    )
