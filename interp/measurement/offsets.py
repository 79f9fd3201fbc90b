"""Attention at an offset, beside the same at wrong offsets: what tells a role from a head's own structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.attention import Mean, Offset, Statistic
from interp.batch import Batch
from interp.edits import Ablate
from interp.model import Model
from interp.results import stats
from interp.shapes import brief
from interp.tasks import Repeats, permuted_repeats

WRONG_OFFSETS, PERMUTED = "wrong offsets", "contents permuted"
"""Where null draws of a score on repeats come from: other stripes of the same prompts, or the same stripe of prompts
whose second copy is in another order."""
N_PERMUTED = 16


@dataclass(frozen=True, eq=False)
class OffsetScores:
    """Per prompt and head, the mean mass at the target and at each wrong offset."""

    target: Float[np.ndarray, "prompt layer head"]
    wrong: Float[np.ndarray, "offset layer head"]
    extra: dict[str, Float[np.ndarray, "prompt layer head"]]

    __repr__ = brief


def offset_questions(batch: Batch, rows: Tensor, wrong: Sequence[int], *, first_key: int) -> dict[str, Statistic]:
    """Mean mass at each wrong offset over `rows`, leaving out rows whose key would be before `first_key` (a BOS)."""
    position = torch.arange(batch.ids.shape[1])
    return {f"wrong {d}": Mean(Offset(d), rows & (position - d >= first_key)) for d in wrong}


def offset_scores(
    model: Model,
    groups: Sequence[tuple[Batch, dict[str, Statistic]]],
    *,
    edits: Sequence[Ablate] = (),
    method: str = "auto",
) -> OffsetScores:
    """Run each group of prompts and join the answers; each wrong offset is averaged over the prompts that have it.

    Groups must list as many wrong offsets each, nearest first, so that the i-th of every group belong together. A rank
    that no prompt has (longer than all of them, or than a sliding window) is NaN.
    """
    targets, wrongs, extras = [], [], []
    for batch, questions in groups:
        answers = model.attention(batch, questions, method=method, edits=edits).values
        by_prompt = {name: value.transpose(0, 1).double().numpy() for name, value in answers.items()}
        targets.append(by_prompt["target"])
        wrong = [v for name, v in by_prompt.items() if name.startswith("wrong")]
        wrongs.append(np.stack(wrong) if wrong else np.empty((0, *by_prompt["target"].shape)))
        extras.append({k: v for k, v in by_prompt.items() if k != "target" and not k.startswith("wrong")})
    extra = {k: np.concatenate([e[k] for e in extras]) for k in extras[0]}
    return OffsetScores(np.concatenate(targets), stats.nan_mean(np.concatenate(wrongs, axis=1), axis=1), extra)


def repeat_null(groups: Sequence[Repeats], wrong: Callable[[Repeats], Sequence[int]]) -> str:
    """`WRONG_OFFSETS` where three block lengths and enough wrong offsets fit the prompts, else `PERMUTED`.

    With fewer lengths a head that looks a fixed distance back, whatever stands there, would pass; what tells it apart
    then is that it looks there in prompts that do not repeat as well.
    """
    reach = [[d < g.second.stop - g.start for d in wrong(g)] for g in groups]  # the last query's furthest key
    enough = int(np.any(reach, axis=0).sum()) >= stats.LEAST_NULLS
    return WRONG_OFFSETS if len({g.length for g in groups}) >= 3 and enough else PERMUTED


def permuted_scores(
    model: Model, groups: Sequence[Repeats], offset: Callable[[Repeats], int], *, method: str = "auto", seed: int = 0
) -> Float[np.ndarray, "draw layer head"]:
    """Mean mass at an offset over queries of second copies in another order: `N_PERMUTED` draws, no token in place."""
    draws = []
    for draw in range(N_PERMUTED):
        shuffled = permuted_repeats(groups, seed=seed + draw, derange=True)
        questions: list[tuple[Batch, dict[str, Statistic]]] = [
            (g.batch, {"target": Mean(Offset(offset(g)), g.rows(g.second))}) for g in shuffled
        ]
        draws.append(stats.nan_mean(offset_scores(model, questions, method=method).target, axis=0))
    return np.stack(draws)


def wrong_offsets(target: int, *, near: int = 2, count: int = 8, lowest: int = 0) -> list[int]:
    """Offsets around a target on both sides, skipping those closer than `near`, none below `lowest`; 2 * count of them.

    What is missing below is made up above.
    """
    below = [d for d in range(target - near, target - near - count, -1) if d >= lowest]
    above = list(range(target + near, target + near + 2 * count - len(below)))
    return below + above
