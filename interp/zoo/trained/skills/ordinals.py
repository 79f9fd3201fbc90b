"""Lists of numbers, days, months and letters in order: the successor of the last member."""

from __future__ import annotations

from random import Random

from interp.zoo.trained.skills.item import Item, Skill, Split, in_split
from interp.zoo.trained.skills.lexicon import CLASSES, CYCLIC
from interp.zoo.trained.skills.vocabulary import index

SEPARATORS = (",", ";", "then", "next", "and")
"""Between members, so that the successor cannot be read off the last token alone."""
SHORTEST, LONGEST = 3, 10


def _list_item(skill: str, members: tuple[str, ...], separator: str, *, counts: range) -> Item:
    """The members with separators; `counts`: which of them are asked for."""
    vocab = index()
    ids = [vocab[m] for m in members]
    tokens = [vocab["<bos>"]]
    for token in ids:
        tokens += [token, vocab[separator]]
    places = tuple(1 + 2 * m for m in counts)
    answers = tuple((tokens[p],) for p in places)
    return Item(skill, tuple(tokens[:-1]), loss=places, places=places, answers=answers)


def draw(rng: Random, split: Split) -> Item:
    """A list that stays inside its class, judged from the second member on."""
    while True:
        name = rng.choice(tuple(CLASSES))
        members = CLASSES[name]
        length = rng.randint(SHORTEST, min(LONGEST, len(members)))
        start = rng.randint(0, len(members) - length)
        if in_split(f"ordinals {name} {start} {length}", split, one_in=5):
            stretch = members[start : start + length]
            return _list_item("ordinals", stretch, rng.choice(SEPARATORS), counts=range(1, length))


def draw_wrapping(rng: Random, split: Split) -> Item:
    """A list that passes from the last member of a cyclic class to the first, judged from there on."""
    while True:
        name = rng.choice(CYCLIC)
        members = CLASSES[name]
        length = rng.randint(SHORTEST, len(members))
        start = rng.randint(len(members) - length + 1, len(members) - 1)
        if in_split(f"wrap {name} {start} {length}", split, one_in=5):
            stretch = (members + members)[start : start + length]
            first = len(members) - start
            return _list_item("ordinals-wrap", stretch, rng.choice(SEPARATORS), counts=range(first, length))


SKILL = Skill("ordinals", "successors in lists of numbers, days, months and letters", draw, target=0.9)
WRAPPING = Skill("ordinals-wrap", "lists that go on from Sunday to Monday, from December to January", draw_wrapping)
