"""Greater-than: a span of years ends later than it begins (arXiv 2305.00586).

Which token decides is the tokenizer's doing. With Y the year at the beginning, of digits c c t u ("1732"), and s the
token that stands behind the prompt:

  year   the prompt ends in "17" and s is a number of two digits (GPT-2): right are s > tu, wrong s <= tu;
  tens   the prompt ends in "17" and s is a digit (Gemma, Qwen: one token a digit): right are s > t, wrong s < t;
         s = t decides nothing yet and is neither;
  units  the prompt ends in "173" and s is a digit (Llama 3, DeepSeek-V3: "173", "2"): right are s > u, wrong s <= u.

The metric is the same for all, sum p[right] - sum p[wrong]; values of different kinds are not to be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

from interp.tasks.source import Document, Template
from interp.tasks.spell import Example, Speller

CORRUPTIONS = ("start_01", "random_year")
"""start_01: the first year ends in 01, which rules next to nothing out (units: in 0, of the same decade). random_year:
it ends in another number, by the token that decides."""
METRIC = "prob_diff"
YEARS = tuple(f"{n:02d}" for n in range(100))
DIGITS = tuple("0123456789")
CONTEXTS = tuple(f"year {century}" for century in range(11, 100))
"""Where "00" is read if it merges with the century at hand, as it does in "1700"."""
FIRST, LAST = 2, 97
"""Years of a century that something may begin in, so that both sides have a few members."""
LOW, HIGH = 1, 8
"""Digits that may decide, for the same reason."""
PLACES = ("year", "tens", "units")
TRIES = 100
"""Draws in which a kind of question has to succeed once."""


def fit(document: Document, speller: Speller, corruption: str) -> tuple[Callable[..., Example], str]:
    """`draw` for the first kind of question that a tokenizer can be asked, and the kind; "year" where it is none."""
    for place in PLACES:
        rng = Random(place)
        examples = (draw(rng, document, corruption, place=place) for _ in range(TRIES))
        if any(speller.encode(e, first_token=document.answer == "first token") is not None for e in examples):
            return partial(draw, place=place), place
    return draw, PLACES[0]


def draw(rng: Random, document: Document, corruption: str, *, place: str = "year") -> Example:
    """Slots {century} and {year}, which end where tokens end; right is every later year of the century (the decade)."""
    template = rng.choice(document.templates)
    if place != "year":
        return _by_digit(rng, document, template, corruption, place)
    year = rng.randint(FIRST, LAST)
    fillers = {slot: rng.choice(document.words[slot]) for slot in template.slots if slot != "year"}
    other = 1 if corruption == "start_01" else rng.choice([y for y in range(FIRST, LAST + 1) if y != year])
    return Example(
        template,
        clean={**fillers, "year": YEARS[year]},
        corrupt={**fillers, "year": YEARS[other]},
        answers=YEARS[year + 1 :],
        wrong=YEARS[: year + 1],
        key=_key(document, fillers, year),
        contexts=CONTEXTS,
    )


def _by_digit(rng: Random, document: Document, template: Template, corruption: str, place: str) -> Example:
    """One digit decides: {year} is that digit alone. The digits before it join {century}; one behind it is {units}."""
    fillers = {slot: rng.choice(document.words[slot]) for slot in template.slots if slot != "year"}
    digit, beside = rng.randint(LOW, HIGH), rng.choice(DIGITS)
    other = 0 if corruption == "start_01" else rng.choice([d for d in range(LOW, HIGH + 1) if d != digit])
    if place == "tens":
        text = re.sub(r"(\{year(@\w+)?\})", r"\1{units}", template.text)
        template, year = replace(template, text=text), 10 * digit + int(beside)
        clean = {**fillers, "year": DIGITS[digit], "units": beside}
        corrupt = {**fillers, "year": DIGITS[other], "units": "1" if corruption == "start_01" else beside}
        wrong = DIGITS[:digit]
    else:
        year = 10 * int(beside) + digit
        decade = {**fillers, "century": fillers["century"] + beside}
        clean, corrupt = ({**decade, "year": DIGITS[d]} for d in (digit, other))
        wrong = DIGITS[: digit + 1]
    return Example(template, clean, corrupt, DIGITS[digit + 1 :], wrong, _key(document, fillers, year))


def _key(document: Document, fillers: dict[str, str], year: int) -> str:
    return (document.key or "{noun} {century} {year}").format(**fillers, year=year)
