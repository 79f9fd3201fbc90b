"""Sums, differences and products of two numbers of one to three digits, in the digit form of each tokenizer.

What is asked depends on how the tokenizer writes numbers:

  number  a number is one token (Llama 3 up to three digits): right is the result, wrong that of the corrupted operands;
  digit   a digit is one token (Qwen, Gemma): the prompt goes on to the first digit in which the two results differ, and
          that digit is asked for;
  chunk   anything else (GPT-2): the first token of each result stands for it, and pairs in which they agree are left
          out.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from random import Random

from interp.errors import SchemaError, nearest
from interp.tasks.source import Document
from interp.tasks.spell import Example, Speller

CORRUPTIONS = ("operands", "second_operand", "carry")
"""operands: both are others. second_operand: that one alone. carry: the second one's last digit changes such that the
ones carry (of a difference, borrow) where they did not, or the other way round."""
METRIC = "logit_diff"
OPTIONS = ("digits",)
FIRST = "first"
"""Operator of a task that asks for the first number itself: nothing is computed, only retrieved."""


def first(x: int, y: int) -> int:
    """x."""
    return x


OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    FIRST: first,
}
FORMS = ("number", "digit", "chunk")
TRIES = 100


def fit(document: Document, speller: Speller, corruption: str) -> tuple[Callable[..., Example | None], str]:
    """`draw` in the digit form of a tokenizer, and which it is."""
    highest = 10**document.digits - 1
    largest = _operator(document)(highest, 1 if document.operator == "-" else highest)
    rng = Random(document.name)
    numbers = sorted({0, largest, *(rng.randint(0, largest) for _ in range(TRIES))})
    template = max(document.templates, key=lambda t: len(t.joint))
    tails = speller.tails(template.text, [template.joint + str(n) for n in numbers])
    space = speller.lone_space(template.text, [str(n) for n in numbers], joint=template.joint)
    lengths = [0 if tail is None else len(tail) - space for tail in tails]
    if all(length == 1 for length in lengths):
        form = FORMS[0]
    elif all(length == len(str(n)) for n, length in zip(numbers, lengths, strict=True)):
        form = FORMS[1]
    else:
        form = FORMS[2]
    return partial(draw, form=form, apart=space > 0), form


def draw(
    rng: Random, document: Document, corruption: str, *, form: str = FORMS[2], apart: bool = False
) -> Example | None:
    """Slots {x} and {y}; right is their result, wrong that of the corrupted operands; None where no digit differs.

    With `apart` the space before a number is a token of its own, and part of the prompt.
    """
    template = rng.choice(document.templates)
    lowest, highest = 10 ** (document.digits - 1) if document.digits > 1 else 0, 10**document.digits - 1
    apply = _operator(document)
    x, y = rng.randint(lowest, highest), rng.randint(lowest, highest)
    carries = _carries(document, x, y)
    x2, y2 = x, rng.randint(lowest, highest)
    if corruption == "operands":
        x2 = rng.randint(lowest, highest)
    elif corruption == "carry":
        ones = [d for d in range(10) if _carries(document, x, d) is not carries] or [(y + 1) % 10]
        y2 = y - y % 10 + rng.choice(ones)
    if document.operator == "-":  # no negative results
        x, y, x2, y2 = (max(x, y), min(x, y), max(x2, y2), min(x2, y2)) if corruption != "carry" else (x, y, x2, y2)
        if x < y or x2 < y2:
            return None
    right, wrong = str(apply(x, y)), str(apply(x2, y2))
    shared = os.path.commonprefix([right, wrong]) if form == FORMS[1] else ""
    if form == FORMS[1]:
        if len(shared) in (len(right), len(wrong)):
            return None
        right, wrong = right[len(shared)], wrong[len(shared)]
    if shared or apart:
        template = replace(template, text=template.text + template.joint + shared, joint="")
    return Example(
        template,
        clean={"x": str(x), "y": str(y)},
        corrupt={"x": str(x2), "y": str(y2)},
        answers=(right,),
        wrong=(wrong,),
        key=(document.key or f"{{x}} {document.operator} {{y}}").format(x=x, y=y),
        variant="carry" if carries else "",
    )


def _operator(document: Document) -> Callable[[int, int], int]:
    """What is done with the two numbers.

    Raises:
        SchemaError: an unknown operator.
    """
    if document.operator not in OPERATORS:
        raise SchemaError(
            f"{document.source}: unknown operator {document.operator!r}; {nearest(document.operator, OPERATORS)}"
        )
    return OPERATORS[document.operator]


def _carries(document: Document, x: int, y: int) -> bool:
    """Whether the ones of a sum or a product carry, or those of a difference borrow."""
    if document.operator == "*":
        return (x % 10) * (y % 10) >= 10  # noqa: PLR2004
    if document.operator == "-":
        return x % 10 < y % 10
    return x % 10 + y % 10 >= 10  # noqa: PLR2004
