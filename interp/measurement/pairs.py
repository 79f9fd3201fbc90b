"""Attention from queries to keys that a rule of the prompt's content names, beside keys a few places off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import tasks
from interp.attention import Mean, Pairs, Statistic
from interp.batch import Batch
from interp.measurement.prompts import visible_keys
from interp.model import Model
from interp.results.stats import nan_mean

WRONG = (*range(-9, -1), *range(2, 10))
"""Places around a target key at which the same attention is the null."""
MOST = 1 << 18
"""Pairs of equal tokens that are listed at most, about: they grow with the square of a prompt's length."""
NEAR_KEYS = "keys near the targets"
"""How provenance calls them."""
KeyPairs = tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " pairs"]]
"""Prompt, query and key of each pair."""
SomePairs = tuple[Int[Tensor, " some"], Int[Tensor, " some"], Int[Tensor, " some"]]
"""Those of some of the pairs."""


@dataclass(frozen=True, eq=False)
class PairScores:
    """Mass at the target keys.

    Attributes:
        values: mean over a prompt's queries of the sum over their targets, for prompts that have any.
        wrong: the same at keys a number of places off, mean over prompts; NaN where no prompt has such keys.
        null: what uniform attention gives, by layer.
    """

    values: Float[np.ndarray, "prompt layer head"]
    wrong: Float[np.ndarray, "draw layer head"]
    null: Float[np.ndarray, "layer head"]


def pair_scores(model: Model, batch: Batch, pairs: KeyPairs, *, start: int, method: str = "auto") -> PairScores:
    """Score of every head: mean over queries i of sum_j p(i, j) over the pairs (i, j), and its nulls.

    Args:
        model: any loaded model.
        batch: prompts, padding on the right.
        pairs: targets; queries without one do not count, nor do prompts without.
        start: first column of a prompt's own text: 1 behind a BOS. Keys before it are no null.
        method: attention method, "fused" or "naive".
    """
    prompt, query, key = pairs
    questions: dict[str, Statistic] = {"target": Mean(Pairs(prompt, query, key))}
    for k in WRONG:
        inside = (key + k >= start) & (key + k <= query)
        questions[f"wrong {k}"] = Mean(Pairs(prompt[inside], query[inside], key[inside] + k))
    has = torch.bincount(prompt, minlength=len(batch.ids)) > 0
    answers = model.attention(batch, questions, method=method)
    # a target outside a sliding window gets nothing
    values = answers["target"][:, has].transpose(0, 1).double().nan_to_num().numpy()
    wrong = np.stack([nan_mean(answers[f"wrong {k}"].double().numpy(), axis=1) for k in WRONG])
    null = np.repeat(_chance(model, batch, prompt, query, key)[:, None], model.info.n_heads, axis=1)
    return PairScores(values, wrong, null)


def copy_pairs(batch: Batch, rows: Bool[Tensor, "batch pos"], *, seed: int, most: int = MOST) -> tuple[KeyPairs, float]:
    """Pairs of these rows with all earlier copies of their token, and the share of rows with a copy that they are.

    Beyond `most` pairs (about), rows are drawn at random, as large a share in each prompt, one at least, and keep all
    their copies: the mean over rows of any sum over copies is unbiased. Memory is linear in length.
    """
    copies = torch.where(rows.cpu(), tasks.earlier_copies(batch), 0)
    candidates, total = copies > 0, int(copies.sum())
    if total <= most:
        return tasks.earlier_equal_pairs(batch, candidates), 1.0
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(copies.shape, generator=generator).masked_fill(~candidates, 2.0).argsort(1).argsort(1)
    size = candidates.sum(1, keepdim=True)
    chosen = candidates & (order < (size * most // total).clamp(min=1))
    return tasks.earlier_equal_pairs(batch, chosen), int(chosen.sum()) / int(candidates.sum())


def following(pairs: KeyPairs) -> SomePairs:
    """What stands behind the keys, before the query: where induction looks when the keys are earlier copies."""
    prompt, query, key = pairs
    before = key + 1 < query
    return prompt[before], query[before], key[before] + 1


def _chance(model: Model, batch: Batch, *pairs: Int[Tensor, " pairs"]) -> Float[np.ndarray, " layer"]:
    """Score of uniform attention: of the keys that a query sees, the share that are targets; mean as for the score."""
    prompt, query, key = (x.numpy() for x in pairs)  # numpy takes a tensor of one number for that number
    scores = []
    for n_visible in visible_keys(model, batch):
        inside = (query - key) < n_visible[prompt, query]
        share, count = np.zeros(n_visible.shape), np.zeros(n_visible.shape)
        np.add.at(share, (prompt, query), inside / n_visible[prompt, query])
        np.add.at(count, (prompt, query), inside)
        row_shares = np.where(count > 0, share, np.nan)
        scores.append(np.nan_to_num(nan_mean(row_shares, axis=1))[np.unique(prompt)].mean())
    return np.array(scores)
