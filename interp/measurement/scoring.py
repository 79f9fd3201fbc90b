"""Shared by the attention-offset analyses: the mass at a target offset, the same at wrong ones, and rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import tasks
from interp.attention import Mean, Offset, Statistic
from interp.batch import Batch
from interp.edits import Ablate
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head, Interval
from interp.tasks import Repeats

THRESHOLD = 0.3  # mass below which a head is not called by a role's name, however significant
MARGIN = 0.05  # smallest excess over the wrong offsets worth a claim; tested against, not against zero
LEVEL = 0.01  # false discovery rate at which it is
T0 = 2  # first query positions left out of averages: with so few keys every head looks focused


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


def collect(
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


def ranked(model: Model, chosen: Bool[np.ndarray, "layer head"], score: Float[np.ndarray, "layer head"]) -> list[Head]:
    """Chosen heads as (layer, head), highest score first."""
    rows, heads = np.nonzero(chosen)
    order = np.argsort(-score[rows, heads], kind="stable")
    return [(model.info.attention_layers[rows[i]], int(heads[i])) for i in order]


def head_rows(
    model: Model, variant: str, unit: str, **columns: Float[np.ndarray, "layer head"] | object
) -> pd.DataFrame:
    """One row per head of a variant; each column is a [layer head] array or one value for all."""
    info = model.info
    layer, head = np.meshgrid(info.attention_layers, np.arange(info.n_heads), indexing="ij")
    flat = {
        name: value.reshape(-1) if isinstance(value, np.ndarray) and value.ndim == 2 else value
        for name, value in columns.items()
    }
    return pd.DataFrame({"variant": variant, "unit": unit, "layer": layer.ravel(), "head": head.ravel(), **flat})


def judged(model: Model, scores: OffsetScores, *, null: float, seed: int) -> pd.DataFrame:
    """Rows of the variant "score": interval over prompts, p against the wrong offsets, q over heads, and the label."""
    interval = stats.bootstrap_mean(scores.target, seed=seed)
    p = stats.p_against_nulls(interval.mean, scores.wrong, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (interval.mean >= THRESHOLD)
    return head_rows(model, "score", "probability", **interval_columns(interval), null=null, p=p, q=q, label=label)


def interval_columns(interval: Interval) -> dict[str, object]:
    """Columns value, se, ci_low, ci_high, n."""
    return {
        "value": interval.mean,
        "se": interval.se,
        "ci_low": np.minimum(interval.low, interval.mean),
        "ci_high": np.maximum(interval.high, interval.mean),
        "n": interval.n,
    }


def wrong_offsets(target: int, *, near: int = 2, count: int = 8, lowest: int = 0) -> list[int]:
    """Offsets around a target on both sides, skipping those closer than `near`, none below `lowest`; 2 * count of them.

    What is missing below is made up above.
    """
    below = [d for d in range(target - near, target - near - count, -1) if d >= lowest]
    above = list(range(target + near, target + near + 2 * count - len(below)))
    return below + above


def repeat_groups(
    model: Model, *, n_prompts: int, lengths: tuple[int, int], n_lengths: int, bos: str, seed: int
) -> list[Repeats]:
    """Repeated random blocks: `n_prompts` in all over `n_lengths` distinct lengths."""
    start = 0 if tasks.bos_id(model, bos) is None else 1
    low, high = lengths
    drawn = tasks.repeat_lengths(model, lowest=low, highest=high, n_lengths=n_lengths, start=start, seed=seed)
    n_each = max(1, n_prompts // len(drawn))
    return tasks.repeated_random(model, lengths=drawn, n_each=n_each, bos=bos, seed=seed)


def describe_repeats(groups: Sequence[Repeats], bos: str) -> dict[str, object]:
    """What was run on, for provenance."""
    return {
        "task": "repeated random tokens",
        "lengths": [g.length for g in groups],
        "n": sum(len(g.batch.ids) for g in groups),
        "bos": bos,
        "sha256": tasks.fingerprint([g.batch for g in groups]),
    }
