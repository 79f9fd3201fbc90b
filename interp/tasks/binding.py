"""Binding: several things are said of several others; one of them is asked for (coloured objects, told facts)."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document
from interp.tasks.spell import Example

CORRUPTIONS = ("asked", "swapped", "random")
"""asked: another of the things is asked for. swapped: two of them exchange what is said. random: all words are new."""
METRIC = "logit_diff"


def draw(rng: Random, document: Document, corruption: str) -> Example:
    """Slots x1 y1, x2 y2, ... and {asked}; other slots are filled from the list of their name.

    Roles: X and Y for the pair asked for, "other X" and "other Y" for the first of the others.
    """
    template = rng.choice(document.templates)
    pairs = sum(slot[0] == "x" and slot[1:].isdigit() for slot in template.slots)
    values = document.words["y" if template.group is None else f"y {template.group}"]
    xs, ys = rng.sample(document.words["x"], 2 * pairs), rng.sample(values, 2 * pairs)
    new_xs, new_ys = xs[pairs:], ys[pairs:]
    asked, rival = rng.sample(range(pairs), 2)
    pair_slots = [*(f"x{i + 1}" for i in range(pairs)), *(f"y{i + 1}" for i in range(pairs)), "asked"]
    rest = {slot: rng.choice(document.words[slot]) for slot in template.slots if slot not in pair_slots}
    said = ys[:pairs]
    exchanged = [said[{asked: rival, rival: asked}.get(i, i)] for i in range(pairs)]
    twins = {
        "asked": [*xs[:pairs], *said, xs[rival]],
        "swapped": [*xs[:pairs], *exchanged, xs[asked]],
        "random": [*new_xs, *new_ys, new_xs[asked]],
    }
    key = document.key or "{asked} {answer}"
    return Example(
        template,
        clean={**dict(zip(pair_slots, [*xs[:pairs], *said, xs[asked]], strict=True)), **rest},
        corrupt={**dict(zip(pair_slots, twins[corruption], strict=True)), **rest},
        answers=(said[asked],),
        wrong=tuple(y for i, y in enumerate(said) if i != asked),
        key=key.format(asked=xs[asked], answer=said[asked]),
        roles={
            f"x{asked + 1}": "X",
            f"y{asked + 1}": "Y",
            f"x{rival + 1}": "other X",
            f"y{rival + 1}": "other Y",
            "asked": "ASKED",
        },
        variant=f"{asked + 1} of {pairs}",
    )
