"""`Item` and `Skill`: token sequences with answers, and the split into training and held-out items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from interp.data import is_held_out
from interp.zoo.trained.skills.vocabulary import encode, index

Split = Literal["train", "held-out"]
CONTEXT = 512
"""No item is longer."""


@dataclass(frozen=True)
class Item:
    """One token sequence and the places in it where something is to be known.

    A place is the position of the token to be predicted; the logits that are judged stand one earlier.
    """

    skill: str
    tokens: tuple[int, ...]
    """`<bos>` first; the answers are part of it."""
    loss: tuple[int, ...]
    """Where the training loss counts."""
    places: tuple[int, ...]
    """Where accuracy is measured; a part of `loss`."""
    answers: tuple[tuple[int, ...], ...]
    """For each place, the ids that are right."""
    foils: tuple[tuple[int, ...], ...] = ()
    """For each place, the ids it is contrasted with; empty where there are none."""


@dataclass(frozen=True)
class Skill:
    """A named behaviour, its generator and what the shipped model has to reach on it."""

    name: str
    summary: str
    draw: Callable[[Random, Split], Item]
    target: float | None = None
    """Held-out accuracy promised for `zoo:default`; None where it is only reported."""
    contrast: Literal["logit difference", "probability difference"] | None = None
    """How answers are compared with foils: mean logits, or summed probabilities."""
    contrast_target: float | None = None


def in_split(key: str, split: Split, *, one_in: int = 8) -> bool:
    """Whether the key may be used in this split; every key belongs to exactly one."""
    return is_held_out(key, one_in=one_in) is (split == "held-out")


def question(
    skill: str, prompt: str, answer: str, *, answers: tuple[str, ...] = (), foils: tuple[str, ...] = ()
) -> Item:
    """Item of a prompt and one answer token at its end; `answers` where others are right as well."""
    vocab = index()
    tokens = (vocab["<bos>"], *encode(prompt), vocab[answer])
    last = (len(tokens) - 1,)
    right = tuple(vocab[a] for a in (answers or (answer,)))
    wrong = (tuple(vocab[f] for f in foils),) if foils else ()
    return Item(skill, tokens, loss=last, places=last, answers=(right,), foils=wrong)
