"""Next tokens of one's own prompts as a task: a prompt for every token, so that a mean over it is one over tokens."""

from __future__ import annotations

from random import Random

from interp.batch import Prompts
from interp.errors import TaskError
from interp.model import Model
from interp.tasks.metrics import AnyMetric
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.synthetic import fingerprint

FAMILY = "next_tokens"


def next_tokens(
    model: Model, prompts: Prompts, *, skip: int = 0, metric: AnyMetric = "loss_nats", seed: int = 0
) -> PromptTask:
    """Every beginning of every prompt, with the token that follows as the right answer; no answer is wrong.

    A mean over this task is one over tokens: with `loss_nats`, the mean next-token loss, and an effect the fall of that
    loss, a negative one what a removal costs. The twin of a beginning is as many tokens of another prompt, or drawn
    from all prompts where no other has as many.

    Args:
        model: whose prompts these are.
        prompts: texts or ids, of two tokens at least.
        skip: tokens of each prompt, from the first, that are not asked for; the very first never is.
        metric: of `interp.tasks.metrics`, or a function (logits at END, task) -> [batch].
        seed: of the twins.

    Raises:
        TaskError: a prompt without a token to ask for.

    >>> import interp
    >>> from interp import tasks
    >>> task = tasks.next_tokens(interp.load("zoo:planted-induction"), [[5, 6, 7], [8, 9, 10]])
    >>> len(task), task.answers[:, 0].tolist()
    (4, [6, 7, 9, 10])
    """
    batch = model.batch(prompts).to("cpu")
    rows = [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    first = max(1, skip)
    for i, row in enumerate(rows):
        if len(row) <= first:
            raise TaskError(f"prompt {i} has {len(row)} tokens: {first + 1} at least, to have one to ask for")
    rng, pool = Random(seed), [token for row in rows for token in row]
    pairs = [(row[:n], _twin(rows, i, n, rng, pool)) for i, row in enumerate(rows) for n in range(first, len(row))]
    asked = [[row[n]] for row in rows for n in range(first, len(row))]
    return collate(
        FAMILY,
        pairs,
        answers=asked,
        wrong=[[]] * len(asked),
        roles=[{}] * len(asked),
        templates=["beginning"] * len(asked),
        corruption="other prompts",
        metric=metric,
        split="own",
        record={"source": "prompts given", "skip": skip, "seed": seed, "sha256": fingerprint([batch])},
    )


def _twin(rows: list[list[int]], i: int, n: int, rng: Random, pool: list[int]) -> list[int]:
    """As many tokens of another prompt."""
    others = [row[:n] for j, row in enumerate(rows) if j != i and len(row) >= n and row[:n] != rows[i][:n]]
    return rng.choice(others) if others else [rng.choice(pool) for _ in range(n)]
