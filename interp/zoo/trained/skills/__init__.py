"""What the rich zoo model is taught: seeded generators, one file for each family of skills.

>>> item = skill_items("ioi", n=1, seed=0, split="held-out")[0]
>>> item.tokens[item.places[0]] in item.answers[0]
True
"""

from __future__ import annotations

from random import Random

from interp.errors import InterpError, nearest
from interp.zoo.trained.skills import facts, greater_than, ioi, needles, ordinals, repeats, text
from interp.zoo.trained.skills.item import CONTEXT, Item, Skill, Split

__all__ = ["CONTEXT", "SKILLS", "Item", "Skill", "Split", "skill_items", "skill"]

SKILLS: dict[str, Skill] = {
    spec.name: spec
    for spec in (
        repeats.SKILL,
        ordinals.SKILL,
        ordinals.WRAPPING,
        ioi.SKILL,
        greater_than.SKILL,
        facts.MEMORY,
        facts.CONTEXT,
        facts.CONFLICT,
        needles.SKILL,
        text.SKILL,
    )
}
"""Name -> skill, in the order of the card."""


def skill(name: str) -> Skill:
    """The skill of this name; InterpError where there is none."""
    if name not in SKILLS:
        raise InterpError(f"no skill is called {name!r}; {nearest(name, tuple(SKILLS))}")
    return SKILLS[name]


def skill_items(name: str, *, n: int, seed: int, split: Split = "train") -> list[Item]:
    """`n` items of a skill: the same for the same arguments, the splits never from the same stream."""
    source = skill(name)
    rng = Random(f"{name} {split} {seed}")
    return [source.draw(rng, split) for _ in range(n)]
