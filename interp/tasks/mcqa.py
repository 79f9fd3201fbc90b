"""Multiple choice: the answer stands in the prompt, and its letter is said."""

from __future__ import annotations

from random import Random

from interp.tasks.source import Document
from interp.tasks.spell import Example

CORRUPTIONS = ("position", "symbols")
"""position: the right choice changes places with another. symbols: it changes letters with another."""
METRIC = "logit_diff"
CHOICES = 4


def draw(rng: Random, document: Document, corruption: str) -> Example:
    """Slots {object}, {colour}, choices c1..c4 and their letters l1..l4, which are drawn, not in order."""
    template = rng.choice(document.templates)
    colours = rng.sample(document.words["colour"], CHOICES)
    letters = rng.sample(document.words["letter"], CHOICES)
    right, rival = rng.sample(range(CHOICES), 2)
    exchange = [{right: rival, rival: right}.get(i, i) for i in range(CHOICES)]
    new_colours = [colours[i] for i in exchange] if corruption == "position" else colours
    new_letters = [letters[i] for i in exchange] if corruption == "symbols" else letters
    thing = rng.choice(document.words["object"])
    slots = {"object": thing, "colour": colours[right]}

    def choice_slots(words: list[str], marks: list[str]) -> dict[str, str]:
        return {f"c{i + 1}": w for i, w in enumerate(words)} | {f"l{i + 1}": m for i, m in enumerate(marks)}

    return Example(
        template,
        clean={**slots, **choice_slots(colours, letters)},
        corrupt={**slots, **choice_slots(new_colours, new_letters)},
        answers=(letters[right],),
        wrong=tuple(letter for i, letter in enumerate(letters) if i != right),
        key=(document.key or "{object} {colour}").format(**slots),
        roles={f"c{right + 1}": "CHOICE", f"l{right + 1}": "LETTER", "colour": "COLOUR"},
        variant=f"choice {right + 1}",
    )
