"""Attention at an offset, beside the same at wrong offsets: what tells a role from a head's own structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.attention import Mean, Offset, Statistic
from interp.batch import Batch
from interp.edits import Ablate
from interp.model import Model


@dataclass(frozen=True, eq=False)
class OffsetScores:
    """Per prompt and head, the mean mass at the target and at each wrong offset."""

    target: Float[np.ndarray, "prompt layer head"]
    wrong: Float[np.ndarray, "offset layer head"]
    extra: dict[str, Float[np.ndarray, "prompt layer head"]]


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
    """Run each group of prompts and join the answers; wrong offsets are averaged over all prompts, by rank.

    Groups must list as many wrong offsets each, nearest first, so that the i-th of every group belong together.
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
    return OffsetScores(np.concatenate(targets), np.concatenate(wrongs, axis=1).mean(1), extra)


def wrong_offsets(target: int, *, near: int = 2, count: int = 8, lowest: int = 0) -> list[int]:
    """Offsets around a target on both sides, skipping those closer than `near`, none below `lowest`; 2 * count of them.

    What is missing below is made up above.
    """
    below = [d for d in range(target - near, target - near - count, -1) if d >= lowest]
    above = list(range(target + near, target + near + 2 * count - len(below)))
    return below + above
