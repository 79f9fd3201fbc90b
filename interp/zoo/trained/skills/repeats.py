"""A block of random tokens, said again: copying, the behaviour of induction heads."""

from __future__ import annotations

from random import Random

from interp.zoo.trained.skills.item import CONTEXT, Item, Skill, Split
from interp.zoo.trained.skills.vocabulary import index, ordinary

SHORTEST, LONGEST = 4, 200
MAX_PREFIX = 16


def repeat_item(
    rng: Random, *, length: int, copies: int, prefix: int = 0, limit: int = CONTEXT, pool: int | None = None
) -> Item:
    """`<bos>`, a random prefix, and a block of `length` distinct tokens `copies` times, cut at `limit`.

    Tokens are drawn from all ordinary ones, or from the first `pool`. The first token of the
    second copy is not judged: nothing before it says that a copy begins.
    """
    words = rng.sample(ordinary()[:pool], length + prefix)
    tokens = (index()["<bos>"], *words[length:], *(words[:length] * copies))[:limit]
    places = tuple(range(1 + prefix + length + 1, len(tokens)))
    answers = tuple((tokens[p],) for p in places)
    return Item("repeats", tokens, loss=places, places=places, answers=answers)


def draw(rng: Random, split: Split) -> Item:
    """Two copies, of a length drawn evenly on the log scale; the splits differ by their seeds alone."""
    length = round(SHORTEST * (LONGEST / SHORTEST) ** rng.random())
    return repeat_item(rng, length=length, copies=2, prefix=rng.randint(0, MAX_PREFIX))


SKILL = Skill("repeats", "random segments of 4 to 200 distinct tokens, at their second occurrence", draw, target=0.95)
