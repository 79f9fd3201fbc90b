"""Key-value needles in long distractor text, asked for at the end: retrieval."""

from __future__ import annotations

from random import Random

from interp.zoo.trained.skills.item import Item, Skill, Split, in_split
from interp.zoo.trained.skills.text import stretch
from interp.zoo.trained.skills.vocabulary import encode, index, nouns

LENGTH = 256
MOST = 3
"""Needles in one text: with more than one, the key decides."""


def _pairs(rng: Random, split: Split, *, n: int) -> list[tuple[int, int]]:
    """Keys and values, all different words."""
    while True:
        words = rng.sample(nouns(), 2 * n)
        pairs = list(zip(words[:n], words[n:], strict=True))
        if all(in_split(f"needle {key} {value}", split) for key, value in pairs):
            return pairs


def haystack_item(rng: Random, split: Split, *, length: int, n: int) -> Item:
    """`n` needles at random depths of a text, then a question for each, in another order: `length` tokens."""
    vocab = index()
    opening, end = encode("The code of"), vocab["\n"]
    pairs = _pairs(rng, split, n=n)
    needles = [(end, *opening, key, vocab["is"], value, end) for key, value in pairs]
    order = rng.sample(pairs, n)
    tail = [token for key, value in order for token in (end, *opening, key, vocab["is"], value)]
    room = length - 1 - len(tail) - sum(map(len, needles))
    filler = stretch(rng, split, length=room)
    cuts = [0, *sorted(rng.randint(0, room) for _ in needles), room]
    tokens = [vocab["<bos>"], *filler[: cuts[1]]]
    for i, needle in enumerate(needles, start=1):
        tokens += [*needle, *filler[cuts[i] : cuts[i + 1]]]
    tokens += tail
    step = len(tail) // n
    places = tuple(len(tokens) - 1 - step * i for i in reversed(range(n)))
    values = tuple(value for _, value in pairs)
    return Item(
        "needles",
        tuple(tokens),
        loss=places,
        places=places,
        answers=tuple((value,) for _, value in order),
        foils=tuple(tuple(v for v in values if v != value) for _, value in order) if n > 1 else (),
    )


def draw(rng: Random, split: Split) -> Item:
    """One to three needles in 256 tokens; held-out pairs of key and value were never trained."""
    return haystack_item(rng, split, length=LENGTH, n=rng.randint(1, MOST))


SKILL = Skill("needles", "one to three key-value pairs in 256 tokens of text", draw, target=0.9)
