"""Indirect object: of two names, one of which stands twice, the other is said (arXiv 2211.00593)."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document
from interp.tasks.spell import Example

CORRUPTIONS = ("abc", "counterfactual", "other_subject", "flipped_order")
"""abc: three other names (the paper's). counterfactual: S2 becomes IO, which flips the answer. other_subject: S2
becomes a third name. flipped_order: IO and S1 change places, ABBA becomes BABA and the answer stays."""
METRIC = "logit_diff"


def draw(rng: Random, document: Document, corruption: str) -> Example:
    """ABBA: IO first; BABA: S1 first. Slots {A} and {B} are the two names in order, {S2} is who gives."""
    template = rng.choice(document.templates)
    io, s, *others = rng.sample(document.words["name"], 5)
    abba = rng.random() < 0.5
    first, second = (io, s) if abba else (s, io)
    fillers = {slot: rng.choice(document.words[slot]) for slot in template.slots if slot not in ("A", "B", "S2")}
    twins = {
        "abc": tuple(others),
        "counterfactual": (first, second, io),
        "other_subject": (first, second, others[0]),
        "flipped_order": (second, first, s),
    }
    low, high = sorted((io, s))
    return Example(
        template,
        clean={"A": first, "B": second, "S2": s, **fillers},
        corrupt={**dict(zip(("A", "B", "S2"), twins[corruption], strict=True)), **fillers},
        answers=(io,),
        wrong=(s,),
        key=(document.key or "ioi {low} {high}").format(low=low, high=high),
        roles={"A": "IO", "B": "S1"} if abba else {"A": "S1", "B": "IO"},
        variant="ABBA" if abba else "BABA",
        after={"S1+1": "S1"},
    )
