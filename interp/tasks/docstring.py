"""Docstring: the third parameter is documented after the second, in the order of the signature."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document
from interp.tasks.spell import Example

CORRUPTIONS = ("random_random", "random_doc", "random_def")
"""Which of the parameters A, B and C become other names: all, those of the docstring, those of the signature."""
METRIC = "logit_margin"


def draw(rng: Random, document: Document, corruption: str) -> Example:
    """Slots A, B, C in the signature and A2, B2 in the docstring; p*: other parameters, w*: words."""
    template = rng.choice(document.templates)
    parameters = [slot for slot in template.slots if slot.startswith("p")]
    names = rng.sample(document.words["parameter"], 8 + len(parameters))
    a, b, c, *new = names[:8]
    padding = dict(zip(parameters, names[8:], strict=True))
    words = [slot for slot in template.slots if slot.startswith("w")]
    fillers = {**padding, **dict(zip(words, rng.sample(document.words["word"], len(words)), strict=True))}
    fillers["function"] = rng.choice(document.words["function"])
    signature, docstring = {"A": a, "B": b, "C": c}, {"A2": a, "B2": b}
    clean = {**fillers, **signature, **docstring}
    corrupt = dict(clean)
    if corruption != "random_doc":
        corrupt |= dict(zip(("A", "B", "C"), new[:3], strict=True))
    if corruption != "random_def":
        corrupt |= dict(zip(("A2", "B2"), new[3:], strict=True))
    return Example(
        template,
        clean=clean,
        corrupt=corrupt,
        answers=(c,),
        wrong=(a, b, *padding.values()),
        key=(document.key or "docstring {b} {c}").format(b=b, c=c),
        after={"B+1": "B"},
    )
