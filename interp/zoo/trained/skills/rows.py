"""`LessonRows`: training batches of equal length, each token marked with the skill whose loss it counts for."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.zoo.trained.skills import SKILLS, Item
from interp.zoo.trained.skills.needles import MOST, haystack_item
from interp.zoo.trained.skills.repeats import MAX_PREFIX, repeat_item
from interp.zoo.trained.skills.text import stretch
from interp.zoo.trained.skills.vocabulary import NEWLINE, index

GROUPS = ("rest", *SKILLS)
"""What a mark means: 0 is a token that no skill counts."""
KINDS = {"repeats": 0.2, "needles": 0.25, "text": 0.1, "packed": 0.45}
"""Share of the rows of a mixed batch. A packed row holds many short items, one a line."""
PACKED = {
    "ordinals": 0.2,
    "ordinals-wrap": 0.05,
    "ioi": 0.2,
    "greater-than": 0.1,
    "facts-memory": 0.15,
    "facts-context": 0.2,
    "facts-conflict": 0.1,
}
"""Share of the items of a packed row."""
SHORT_NEEDLES = 64
"""Tokens of the shortest text that hides a needle; the rest of its row is packed."""


@dataclass(frozen=True)
class LessonRows:
    """One batch."""

    tokens: Int[Tensor, "batch pos"]
    groups: Int[Tensor, "batch pos"]
    """Index into GROUPS of each token, as a token to be predicted."""


@dataclass(frozen=True)
class CurriculumStage:
    """Contents of a batch at one time of the curriculum."""

    length: int
    """Tokens in a row."""
    periods: tuple[int, int]
    """Shortest and longest repeated block."""
    until: float
    """Fraction of the steps at which the stage ends at the latest."""
    passed: float = 0.0
    """Loss on the repeats, in nats, below which it ends before that."""
    pool: int | None = None
    """How many different tokens the repeats are made of; None for all."""
    mixed: bool = False
    """Every kind of row, or repeats alone."""


def _place(item: Item, tokens: list[int], groups: list[int]) -> None:
    """Append an item, without its BOS."""
    shift = len(tokens) - 1
    tokens += item.tokens[1:]
    groups += [0] * (len(item.tokens) - 1)
    for place in item.loss:
        groups[shift + place] = GROUPS.index(item.skill)


def _pack(rng: Random, tokens: list[int], groups: list[int], *, length: int) -> None:
    """Fill a row with short items, one a line; a last one that does not fit is cut."""
    end = index()[NEWLINE]
    while len(tokens) < length:
        name = rng.choices(tuple(PACKED), weights=tuple(PACKED.values()))[0]
        _place(SKILLS[name].draw(rng, "train"), tokens, groups)
        tokens.append(end)
        groups.append(0)


def row(rng: Random, stage: CurriculumStage) -> tuple[list[int], list[int]]:
    """Tokens and marks of one row of `stage.length`."""
    kind = rng.choices(tuple(KINDS), weights=tuple(KINDS.values()))[0] if stage.mixed else "repeats"
    tokens, groups = [index()["<bos>"]], [0]
    if kind == "repeats":
        period = rng.randint(*stage.periods)
        prefix = rng.randint(0, MAX_PREFIX)
        copies = stage.length // period + 1
        item = repeat_item(rng, length=period, copies=copies, prefix=prefix, limit=stage.length, pool=stage.pool)
        _place(item, tokens, groups)
    elif kind == "text":
        tokens += stretch(rng, "train", length=stage.length - 1)
        groups += [GROUPS.index("text")] * (stage.length - 1)
    elif kind == "needles":
        longest = rng.choice((stage.length, rng.randint(SHORT_NEEDLES, stage.length)))
        _place(haystack_item(rng, "train", length=longest, n=rng.randint(1, MOST)), tokens, groups)
        tokens.append(index()[NEWLINE])
        groups.append(0)
    _pack(rng, tokens, groups, length=stage.length)
    return tokens[: stage.length], groups[: stage.length]


def batch(rng: Random, stage: CurriculumStage, *, n_tokens: int) -> LessonRows:
    """About `n_tokens` tokens of the stage."""
    rows = [row(rng, stage) for _ in range(max(1, n_tokens // stage.length))]
    return LessonRows(torch.tensor([tokens for tokens, _ in rows]), torch.tensor([groups for _, groups in rows]))


def skill_losses(
    logits: Float[Tensor, "batch pos d_vocab"], rows: LessonRows
) -> tuple[Float[Tensor, " group"], Float[Tensor, " group"]]:
    """Mean next-token loss in nats of each group of GROUPS, 0 where it has no token; and its token counts."""
    targets = rows.tokens[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction="none")
    groups = rows.groups[:, 1:].flatten()
    sums = losses.new_zeros(len(GROUPS)).index_add(0, groups, losses)
    counts = losses.new_zeros(len(GROUPS)).index_add(0, groups, torch.ones_like(losses))
    return sums / counts.clamp(min=1), counts
