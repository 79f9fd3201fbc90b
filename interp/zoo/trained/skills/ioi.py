"""Indirect-object sentences: two names are there, the one named twice gives, the other receives."""

from __future__ import annotations

from random import Random

from interp.zoo.trained.skills.item import Item, Skill, Split, in_split, question
from interp.zoo.trained.skills.lexicon import OBJECTS, PEOPLE, PLACES

TEMPLATES = (
    "When {a} and {b} went to the {place} , {giver} gave a {object} to",
    "Then {a} and {b} went to the {place} . {giver} handed the {object} to",
    "While {a} and {b} stayed at the {place} , {giver} passed a {object} to",
    "After {a} and {b} visited the {place} , {giver} sent the {object} to",
    "Yesterday {a} and {b} met in the {place} and {giver} brought a {object} to",
)


def draw(rng: Random, split: Split) -> Item:
    """A sentence in which either name may come first; held-out pairs of names were never trained together."""
    while True:
        giver, receiver = rng.sample(PEOPLE, 2)
        if in_split("ioi " + " ".join(sorted((giver, receiver))), split):
            break
    a, b = (giver, receiver) if rng.random() < 0.5 else (receiver, giver)
    prompt = rng.choice(TEMPLATES).format(a=a, b=b, giver=giver, place=rng.choice(PLACES), object=rng.choice(OBJECTS))
    return question("ioi", prompt, receiver, foils=(giver,))


SKILL = Skill(
    "ioi",
    "who receives, in sentences with two invented names",
    draw,
    target=0.95,
    contrast="logit difference",
    contrast_target=2.0,
)
