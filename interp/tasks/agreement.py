"""Subject-verb agreement: the verb follows the number of the subject, not of the noun next to it."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document
from interp.tasks.spell import Example

CORRUPTIONS = ("number", "all_numbers")
"""number: the subject changes its number. all_numbers: every noun does."""
METRIC = "prob_diff"
NUMBERS = ("singular", "plural")


def draw(rng: Random, document: Document, corruption: str) -> Example:
    """Slots {subject} and {other}; the other noun's number is drawn as well. Right are all verbs of that number."""
    template = rng.choice(document.templates)
    nouns = list(zip(document.words["singular noun"], document.words["plural noun"], strict=True))
    subject, other = rng.sample(nouns, 2)
    number, distraction = rng.randrange(2), rng.randrange(2)
    other_number = 1 - distraction if corruption == "all_numbers" else distraction
    clean = {"subject": subject[number], "other": other[distraction]}
    corrupt = {"subject": subject[1 - number], "other": other[other_number]}
    return Example(
        template,
        clean={slot: clean[slot] for slot in template.slots},
        corrupt={slot: corrupt[slot] for slot in template.slots},
        answers=document.words[f"{NUMBERS[number]} verb"],
        wrong=document.words[f"{NUMBERS[1 - number]} verb"],
        key=(document.key or "{noun}").format(noun=subject[0]),
        variant=NUMBERS[number],
    )
