"""Plain text and code: stretches of the standard library's sources, every token to be predicted."""

from __future__ import annotations

from bisect import bisect
from functools import cache
from itertools import accumulate
from random import Random

from interp import texts as corpus
from interp.zoo.trained.skills.item import Item, Skill, Split
from interp.zoo.trained.skills.vocabulary import index, tokenizer

LENGTH = 256


@cache
def token_rows(split: Split) -> tuple[tuple[int, ...], ...]:
    """Ids of every module of a split, without BOS."""
    fast = tokenizer()
    texts = list(corpus.sources(split).values())
    rows = fast(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(tuple(row) for row in rows)


@cache
def _ends(split: Split) -> list[int]:
    return list(accumulate(len(row) for row in token_rows(split)))


def stretch(rng: Random, split: Split, *, length: int) -> tuple[int, ...]:
    """`length` successive tokens of one module; modules are drawn by their size."""
    ends = _ends(split)
    while True:
        row = token_rows(split)[bisect(ends, rng.randrange(ends[-1]))]
        if len(row) >= length:
            start = rng.randrange(len(row) - length + 1)
            return row[start : start + length]


def draw(rng: Random, split: Split) -> Item:
    """255 tokens after `<bos>`; held-out items come from modules never trained on."""
    tokens = (index()["<bos>"], *stretch(rng, split, length=LENGTH - 1))
    places = tuple(range(1, LENGTH))
    return Item("text", tokens, loss=places, places=places, answers=tuple((t,) for t in tokens[1:]))


SKILL = Skill("text", "standard library sources, from modules never trained on", draw)
