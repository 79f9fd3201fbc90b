"""Direct logit attributions of heads by source token on a task, and what they would be for other prompts' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.decompose.attribution import Attribution, attributions
from interp.measurement.answers import ANSWERED, derangements, exchange_columns
from interp.model import Model
from interp.results import stats
from interp.tasks import PromptTask

SHARE, SMALLEST = 0.05, 0.01
"""Of what all heads write about the answer: below SHARE no label and no role, up to SMALLEST no claim."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Logits (answer less wrong) that components add at END; they sum to `logit`, the model's difference.

    Attributes:
        heads: each head, from each token. mlps: each MLP.
        rest: embedding, biases and what edits in force add, by name.
        logit: the difference, before a soft-cap. end: all logits at END.
    """

    heads: Float[Tensor, "layer head key batch"]
    mlps: Float[Tensor, "layer batch"]
    rest: dict[str, Float[Tensor, " batch"]]
    logit: Float[Tensor, " batch"]
    end: Float[Tensor, "batch d_vocab"]


def sources(
    model: Model,
    task: PromptTask,
    answers: Int[Tensor, "batch k"],
    wrong: Int[Tensor, "batch m"],
    *,
    draws: int,
    seed: int,
) -> tuple[Sources, list[Sources]]:
    """Attributions of the answers' mean logit less the wrong ones', and of `draws` exchanges of both between prompts.

    All of one run: same attention, same writes, other directions.
    """
    orders = [torch.arange(len(task)), *derangements(len(task), draws=draws, seed=seed)]
    contrasts = [(answers[rows], wrong[rows]) for rows in orders]
    width = task.clean.ids.shape[1]
    own, *exchanges = (_by_source(model, x, width) for x in attributions(model, task.clean, contrasts, sources=True))
    return own, exchanges


def _by_source(model: Model, effects: Attribution, width: int) -> Sources:
    """An attribution by what wrote it, of prompts of this many columns."""
    info, n = model.info, len(effects.logit)
    heads = torch.zeros(info.n_layers, info.n_heads, width, n)
    mlps = torch.zeros(info.n_layers, n)
    rest: dict[str, Tensor] = {}
    for c, values in zip(effects.terms, effects.values, strict=True):
        if c.kind == "source":
            heads[c.layer, c.head, c.source] = values
        elif c.kind == "mlp":
            mlps[c.layer] = values
        else:
            rest[c.name] = values
    assert effects.end is not None  # at one position
    return Sources(heads[list(info.attention_layers)], mlps, rest, effects.logit, effects.end)


def source_masks(task: PromptTask, subject: str) -> dict[str, Bool[Tensor, "batch key"]]:
    """Columns of the subject's last token, of the others, and of the first token of the prompt where it is neither."""
    column = torch.arange(task.clean.ids.shape[1])
    at = column == task.role(subject).cpu()[:, None]
    start = (column == 0) & ~at
    return {"subject": at, "relation": ~at & ~start, "start": start.expand_as(at)}


def by_source(
    sources: Sources, masks: Mapping[str, Bool[Tensor, "batch key"]]
) -> dict[str, Float[np.ndarray, "batch layer head"]]:
    """What each head adds from each kind of token."""
    return {name: by_prompt((sources.heads * m.T.to(sources.heads)).sum(2)) for name, m in masks.items()}


def source_roles(
    effects: Mapping[str, Float[np.ndarray, "batch layer head"]], ratio: float
) -> Shaped[np.ndarray, "layer head"]:
    """Where |subject| >= ratio |relation| "subject", the other way round "relation", otherwise "mixed"."""
    dla_s, dla_r = (np.abs(effects[k].mean(0)) for k in ("subject", "relation"))
    return np.where(dla_s >= ratio * dla_r, "subject", np.where(dla_r >= ratio * dla_s, "relation", "mixed"))


def null_columns(
    score: stats.Interval, exchanges: Sequence[Float[np.ndarray, "batch layer head"]], *, whole: float, able: bool
) -> dict[str, Float[np.ndarray, "layer head"]]:
    """Columns null, p and q over heads: two-sided, against the spread of the exchanges; 1 unless `able`.

    p is for more than `SMALLEST` of the `whole` that heads write: with enough prompts everything that a head writes
    about an answer, however little, differs from what it writes about others.
    """
    return exchange_columns(score.mean, [x.mean(0) for x in exchanges], margin=SMALLEST * whole, able=able)


def able(effects: Sources) -> bool:
    """Whether the model prefers the right answers in most prompts: if not, heads' effects explain nothing."""
    return bool((effects.logit > 0).double().mean() >= ANSWERED)


def where(task: PromptTask, ids: Int[Tensor, "batch k"]) -> Bool[Tensor, "batch key"]:
    """Columns of the clean prompts that hold one of these tokens."""
    tokens = task.clean.ids.cpu()
    targets = ids.masked_fill(ids < 0, -2)
    return (tokens[:, :, None] == targets[:, None, :]).any(-1) & task.clean.mask.cpu()


def by_prompt(values: Float[Tensor, "layer head batch"]) -> Float[np.ndarray, "batch layer head"]:
    """Prompts first, as the statistics want them."""
    return values.permute(2, 0, 1).double().numpy()
