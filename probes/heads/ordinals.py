"""Ordinal classes in a model's own tokens, and lists of them to continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp import data
from interp.batch import Batch
from interp.errors import NotApplicable
from interp.model import Model
from interp.tasks.spell import Speller

OFFERED = "ordinal_classes"
"""Name under which a tokenizer may carry its classes, {name: members in order}, in tokenizer_config.json."""
LEAST = 5
"""Fewer members of a class than this are no class."""
SHORTEST, LONGEST = 3, 6
"""Members told in a list before the one that is asked for."""


@dataclass(frozen=True, eq=False)
class Ordinal:
    """Members of a class that are one token each.

    Attributes:
        name: of the class.
        words: as they are written, without a leading space.
        joint: what stands before a member: a space or nothing.
        ids: their tokens.
        rank: place of each in the whole class; gaps are members that are several tokens.
        size: members of the whole class.
        cyclic: whether the first follows the last.
    """

    name: str
    words: tuple[str, ...]
    joint: str
    ids: Int[Tensor, " member"]
    rank: Int[np.ndarray, " member"]
    size: int
    cyclic: bool

    def has(self, offset: int) -> Bool[np.ndarray, " member"]:
        """Which members have another one `offset` places on."""
        return np.isin(self.rank + offset, self.rank)

    @property
    def wraps(self) -> Bool[np.ndarray, " member"]:
        """The last member of a cyclic class, where its first is there as well."""
        return (self.rank == self.size - 1) & self.cyclic & (0 in self.rank)


def find(model: Model, classes: Mapping[str, Sequence[str]] | None = None) -> tuple[list[Ordinal], dict[str, Any]]:
    """Classes that this tokenizer has, each in its best-covered spelling, and the coverage of every spelling.

    The caller's classes; or the tokenizer's own (`ordinal_classes` in tokenizer_config.json); or `datasets/ordinals`.

    Raises:
        NotApplicable: no tokenizer, or no class with five members of one token.
    """
    speller = Speller(model, bos="none")
    tokenizer: Any = model.tokenizer
    word_lists = classes if classes is not None else tokenizer.init_kwargs.get(OFFERED)
    if word_lists is None:
        dataset = data.read_json(data.path("ordinals", "classes.json"))["classes"]
        members_by_class = {name: (tuple(c["members"]), bool(c["cyclic"])) for name, c in dataset.items()}
    else:
        members_by_class = {name: (tuple(members), False) for name, members in word_lists.items()}
    ordinals, coverage = [], {}
    for name, (members, cyclic) in members_by_class.items():
        spellings = _spellings(speller, name, members, cyclic)
        coverage[name] = {form: [len(c.ids), len(members)] for form, c in spellings.items()}
        best = max(spellings.values(), key=lambda c: len(c.ids))
        if len(best.ids) >= LEAST and len(best.ids.unique()) == len(best.ids):
            ordinals.append(best)
    if not ordinals:
        raise NotApplicable(f"no ordinal class has {LEAST} members that are one token each: {coverage}")
    return ordinals, coverage


def _spellings(speller: Speller, name: str, members: tuple[str, ...], cyclic: bool) -> dict[str, Ordinal]:
    """The class in each way of writing it; ways that are the same are left out."""
    spellings: dict[str, Ordinal] = {}
    for case, change in (("", str), (" lower", str.lower), (" capital", str.capitalize)):
        words = tuple(change(m) for m in members)
        if case and (words == members or len(set(words)) < len(words)):
            continue
        for form, joint in (("space", " "), ("no space", "")):
            tails = speller.tails("the", [joint + w for w in words]) if joint else speller.ids(words)
            ranks = [i for i, t in enumerate(tails) if t is not None and len(t) == 1 and t[0] != speller.unknown]
            ids = torch.tensor([t[0] for t in (tails[i] for i in ranks) if t], dtype=torch.long)
            known_words = tuple(words[i] for i in ranks)
            rank = np.array(ranks, dtype=np.int64)
            spellings[form + case] = Ordinal(name, known_words, joint, ids, rank, len(members), cyclic)
    return spellings


@dataclass(frozen=True, eq=False)
class AnswerPrompts:
    """Prompts answered at their last token."""

    batch: Batch
    answers: Int[Tensor, " batch"]


def lists(model: Model, classes: Sequence[Ordinal], *, n: int, bos: str, seed: int) -> AnswerPrompts | None:
    """Up to `n` different lists "Monday, Tuesday," and what follows; None where fewer than 16 can be written.

    As many of each class as there are, none that wraps around.
    """
    speller = Speller(model, bos=bos)
    rng = Random(f"ordinal lists {seed}")
    prompts: dict[tuple[int, ...], int] = {}
    for i in range(10 * n):
        c = classes[i % len(classes)]
        length = rng.randint(SHORTEST, min(LONGEST, len(c.words) - 1))
        start = rng.randrange(len(c.words) - length)
        if len(prompts) == n or c.rank[start + length] - c.rank[start] != length:  # a gap: its successor is no token
            continue
        text = ("," + c.joint).join(c.words[start : start + length]) + ","
        ids, tail = speller.ids([text])[0], speller.tails(text, [c.joint + c.words[start + length]])[0]
        if ids is not None and tail == (int(c.ids[start + length]),) and speller.unknown not in ids:
            prompts.setdefault((*speller.start, *ids), int(c.ids[start + length]))
    if len(prompts) < min(16, n):
        return None
    return AnswerPrompts(Batch.of([list(p) for p in prompts]), torch.tensor(list(prompts.values())))
