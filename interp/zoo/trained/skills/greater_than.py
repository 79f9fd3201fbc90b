"""Spans of years: the year in which something ends is later than the one in which it began."""

from __future__ import annotations

from random import Random

from interp.zoo.trained.skills.item import Item, Skill, Split, in_split, question
from interp.zoo.trained.skills.lexicon import EVENTS, YEARS

TEMPLATES = (
    "The {event} lasted from the year {century} {year} to the year {century}",
    "The {event} ran from {century} {year} to {century}",
    "The {event} began in {century} {year} and ended in {century}",
)
CENTURIES = tuple(str(c) for c in range(11, 20))
FIRST, LAST = 2, 97
"""Years of the century in which something may begin, so that both sides have a few members."""


def draw(rng: Random, split: Split) -> Item:
    """Any later year of the century is right; the one in the sequence is drawn evenly from them."""
    while True:
        event, century, year = rng.choice(EVENTS), rng.choice(CENTURIES), rng.randint(FIRST, LAST)
        if in_split(f"greater-than {event} {century} {year}", split):
            break
    prompt = rng.choice(TEMPLATES).format(event=event, century=century, year=YEARS[year])
    later, earlier = YEARS[year + 1 :], YEARS[: year + 1]
    return question("greater-than", prompt, rng.choice(later), answers=later, foils=earlier)


SKILL = Skill(
    "greater-than",
    "a later year of the same century",
    draw,
    contrast="probability difference",
    contrast_target=0.5,
)
