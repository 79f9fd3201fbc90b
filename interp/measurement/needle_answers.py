"""Whether a model says what hidden needles ask for: one number of each needle, under any edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float

from interp.edits import Edit
from interp.measurement.ability import Ability
from interp.measurement.rerun import Rerun
from interp.model import Model
from interp.tasks.needles import Answer, Needles

T = TypeVar("T")
LOGITS = 1 << 26  # logits held at a time: 256 MiB in float32


def needle_accuracy(run: Rerun, haystacks: Needles, edits: Sequence[Edit] = ()) -> dict[str, float]:
    """Share of needles answered right, and the mean loss of their tokens in nats."""
    right, loss = each_answer(run, haystacks, edits)
    return {"needle_accuracy": float(right.mean()), "needle_loss_nats": float(loss.mean())}


def needle_ability(right: Float[np.ndarray, " needle"], model: Model) -> dict[str, Ability]:
    """Ability to answer needles, from which were answered right; chance is that of one token of the vocabulary."""
    return {"needles": Ability.of_right(right, 1 / model.info.d_vocab)}


def each_answer(
    run: Rerun, haystacks: Needles, edits: Sequence[Edit] = ()
) -> tuple[Float[np.ndarray, " needle"], Float[np.ndarray, " needle"]]:
    """For each needle, 1 if every token of its value ranks first, and the mean loss of these tokens in nats."""
    right: list[float] = []
    losses: list[float] = []
    for some in chunks(range(len(haystacks.batch.ids)), haystacks.batch.ids.shape[1] * run.model.info.d_vocab):
        part = slice(some[0], some[-1] + 1)
        logits = run(haystacks.batch.select(part), edits)
        for a in (a for b in some for a in answers_of(haystacks, b)):
            token = torch.tensor(haystacks.value(a))
            answer_logits = logits[a.prompt - some[0], list(a.rows)].float().cpu()
            right.append(float((answer_logits.argmax(-1) == token).all()))
            losses.append(torch.nn.functional.cross_entropy(answer_logits, token).item())
    return np.array(right), np.array(losses)


def answers_of(haystacks: Needles, prompt: int) -> Iterator[Answer]:
    """Questions of one prompt."""
    return (a for a in haystacks.answers if a.prompt == prompt)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """As many items at a time as keep `size` logits each within bounds."""
    step = max(1, LOGITS // size)
    return (items[i : i + step] for i in range(0, len(items), step))
