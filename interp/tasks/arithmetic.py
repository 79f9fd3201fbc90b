"""Addition of two numbers of two digits."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document
from interp.tasks.spell import Example

CORRUPTIONS = ("operands", "second_operand", "carry")
"""operands: both are others. second_operand: that one alone. carry: the second one's last digit changes such that the
ones carry where they did not, or the other way round."""
METRIC = "logit_diff"
LOWEST, HIGHEST = 10, 99


def draw(rng: Random, document: Document, corruption: str) -> Example:
    """Slots {x} and {y}; right is their sum, wrong the sum of the corrupted operands."""
    template = rng.choice(document.templates)
    x, y = rng.randint(LOWEST, HIGHEST), rng.randint(LOWEST, HIGHEST)
    carries = x % 10 + y % 10 >= 10
    x2, y2 = x, rng.randint(LOWEST, HIGHEST)
    if corruption == "operands":
        x2 = rng.randint(LOWEST, HIGHEST)
    elif corruption == "carry":
        ones = [d for d in range(10) if (x % 10 + d >= 10) is not carries] or [(y + 1) % 10]
        y2 = y - y % 10 + rng.choice(ones)
    return Example(
        template,
        clean={"x": str(x), "y": str(y)},
        corrupt={"x": str(x2), "y": str(y2)},
        answers=(str(x + y),),
        wrong=(str(x2 + y2),),
        key=(document.key or "{x} + {y}").format(x=x, y=y),
        variant="carry" if carries else "",
    )
