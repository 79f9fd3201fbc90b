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
    target, rival = rng.sample(range(pairs), 2)
    pair_slots = [*(f"x{i + 1}" for i in range(pairs)), *(f"y{i + 1}" for i in range(pairs)), "asked"]
    fillers = {slot: rng.choice(document.words[slot]) for slot in template.slots if slot not in pair_slots}
    clean_ys = ys[:pairs]
    swapped_ys = [clean_ys[{target: rival, rival: target}.get(i, i)] for i in range(pairs)]
    twins = {
        "asked": [*xs[:pairs], *clean_ys, xs[rival]],
        "swapped": [*xs[:pairs], *swapped_ys, xs[target]],
        "random": [*new_xs, *new_ys, new_xs[target]],
    }
    key = document.key or "{asked} {answer}"
    return Example(
        template,
        clean={**dict(zip(pair_slots, [*xs[:pairs], *clean_ys, xs[target]], strict=True)), **fillers},
        corrupt={**dict(zip(pair_slots, twins[corruption], strict=True)), **fillers},
        answers=(clean_ys[target],),
        wrong=tuple(y for i, y in enumerate(clean_ys) if i != target),
        key=key.format(asked=xs[target], answer=clean_ys[target]),
        roles={
            f"x{target + 1}": "X",
            f"y{target + 1}": "Y",
            f"x{rival + 1}": "other X",
            f"y{rival + 1}": "other Y",
            "asked": "ASKED",
        },
        variant=f"{target + 1} of {pairs}",
    )
