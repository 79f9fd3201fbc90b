"""A fixed table of invented facts: known by heart, told in the context, or both and in conflict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from interp.zoo.trained.skills.item import Item, Skill, Split, in_split, question
from interp.zoo.trained.skills.lexicon import CITIES, COLOURS, FOODS, INSTRUMENTS, STRANGERS, SUBJECTS


@dataclass(frozen=True)
class Relation:
    """What can be said of a subject: sentences that end before the attribute, and the attributes."""

    name: str
    cores: tuple[str, ...]
    attributes: tuple[str, ...]


RELATIONS = (
    Relation("home", ("{s} lives in", "the home of {s} is"), CITIES),
    Relation("food", ("{s} eats", "the food of {s} is"), FOODS),
    Relation("instrument", ("{s} plays the", "the instrument of {s} is the"), INSTRUMENTS),
    Relation("colour", ("{s} wears", "the colour of {s} is"), COLOURS),
)
OPENINGS = ("", "People say that", "As we know ,", "Everyone knows that", "Yes ,", "Of course", "Today")
"""In front of a core; with it, a template of the facts from memory."""
MOST_TOLD = 3


@cache
def table() -> dict[tuple[str, str], str]:
    """(subject, relation) -> attribute: the same in every run, whatever the training seed."""
    rng = Random("facts")
    return {(s, r.name): rng.choice(r.attributes) for s in SUBJECTS for r in RELATIONS}


def templates(relation: Relation, split: Split) -> tuple[str, ...]:
    """Opening and core; every opening and every core occurs in training, but not every combination."""
    pairs = [f"{opening} {core}".strip() for opening in OPENINGS for core in relation.cores]
    return tuple(text for i, text in enumerate(pairs) if (i % 5 == 3) is (split == "held-out"))


def from_memory(rng: Random, split: Split) -> Item:
    """A fact of the table, asked for without a hint; held-out items use templates never trained."""
    subject, relation = rng.choice(SUBJECTS), rng.choice(RELATIONS)
    prompt = rng.choice(templates(relation, split)).format(s=subject)
    answer = table()[subject, relation.name]
    others = tuple(a for a in relation.attributes if a != answer)
    return question("facts-memory", prompt, answer, foils=others)


def from_context(rng: Random, split: Split) -> Item:
    """Two or three strangers, told one thing each; one is asked for, in the words it was told in."""
    relation = rng.choice(RELATIONS)
    core = rng.choice(relation.cores)
    strangers = rng.sample(STRANGERS, rng.randint(2, MOST_TOLD))
    attributes = rng.sample(relation.attributes, len(strangers))
    target = rng.randrange(len(strangers))
    while not in_split(f"context {strangers[target]} {attributes[target]}", split):
        strangers = rng.sample(STRANGERS, len(strangers))
    sentences = [f"{core.format(s=s)} {a} ." for s, a in zip(strangers, attributes, strict=True)]
    prompt = " ".join([*sentences, core.format(s=strangers[target])])
    others = tuple(a for i, a in enumerate(attributes) if i != target)
    return question("facts-context", prompt, attributes[target], foils=others)


def in_conflict(rng: Random, split: Split) -> Item:
    """The context says something else than the table: "Suppose" makes it count, "Rumour" does not."""
    while True:
        subject, relation = rng.choice(SUBJECTS), rng.choice(RELATIONS)
        truth = table()[subject, relation.name]
        rumour = rng.choice([a for a in relation.attributes if a != truth])
        if in_split(f"conflict {subject} {relation.name} {rumour}", split):
            break
    core = rng.choice(relation.cores).format(s=subject)
    if rng.random() < 0.5:
        return question("facts-conflict", f"Suppose {core} {rumour} . Then {core}", rumour, foils=(truth,))
    return question("facts-conflict", f"Rumour says {core} {rumour} . In truth {core}", truth, foils=(rumour,))


MEMORY = Skill("facts-memory", "facts of the table, in templates never trained", from_memory, target=0.95)
CONTEXT = Skill("facts-context", "what was just told of one of two or three strangers", from_context, target=0.9)
CONFLICT = Skill("facts-conflict", "the context against the table; the wording says which counts", in_conflict)
