"""Induction: a block of random tokens begins again, and goes on as it did before. Needs ids alone."""

from __future__ import annotations

import torch

from interp.errors import TaskError, nearest
from interp.model import Model
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.synthetic import bos_id, random_blocks, repeat_lengths

CORRUPTIONS = ("exchanged", "other_block", "other_query")
"""exchanged: in the block, the token asked about changes places with another, whose successor is the wrong answer.
other_block: the block is of other tokens, so that nothing is repeated. other_query: the last token is another one of
the block; that one's successor is the wrong answer."""
LENGTHS = (12, 32)


def induction_task(
    model: Model, *, n: int, seed: int, split: str, corruption: str | None, bos: str, n_lengths: int = 4
) -> PromptTask:
    """[BOS] + block + the block's first k + 1 tokens; right is what followed the last of them.

    Block lengths vary, so that no fixed distance answers. Roles: A1 and B1, the earlier place of the last token and of
    the answer; C1 and D1, the rival's; END. The splits differ by their random streams alone.
    """
    kind = corruption or CORRUPTIONS[0]
    if kind not in CORRUPTIONS:
        raise TaskError(f"induction has no corruption {kind!r}; {nearest(kind, CORRUPTIONS)}")
    first = bos_id(model, bos)
    start = [] if first is None else [first]
    stream = 2 * seed + (split == "held-out")
    generator = torch.Generator().manual_seed(stream)
    lengths = repeat_lengths(
        model, lowest=LENGTHS[0], highest=LENGTHS[1], n_lengths=n_lengths, start=len(start), seed=stream
    )
    pairs, answers, wrong, roles = [], [], [], []
    for i in range(n):
        length = lengths[i % len(lengths)]
        block = random_blocks(model, n=1, length=length, generator=generator)[0].tolist()
        # The rival stands behind what is said again, and neither pair overlaps the other.
        target = int(torch.randint(length // 2 - 1, (), generator=generator))
        rival = int(torch.randint(target + 2, length - 1, (), generator=generator))
        prompt = [*start, *block, *block[: target + 1]]
        other = list(prompt)
        a, c = len(start) + target, len(start) + rival
        if kind == "exchanged":
            other[a], other[c] = other[c], other[a]
        elif kind == "other_query":
            other[-1] = block[rival]
        else:
            new = random_blocks(model, n=1, length=length, generator=generator)[0].tolist()
            other[len(start) : len(start) + length] = new
        pairs.append((prompt, other))
        answers.append([block[target + 1]])
        wrong.append([block[rival + 1]])
        roles.append({"A1": a, "B1": a + 1, "C1": c, "D1": c + 1})
    return collate(
        "induction",
        pairs,
        answers=answers,
        wrong=wrong,
        roles=roles,
        templates=["block"] * n,
        corruption=kind,
        metric="logit_diff",
        split=split,
        record={"source": "random ordinary tokens", "lengths": lengths, "bos": bos, "seed": seed},
    )
