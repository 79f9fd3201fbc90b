"""Scores by discrete codes judged: on planted outputs of heads, and against the heads of a circuit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.evaluation.truth import judge_nodes
from circuits.features._sae_codes import UNITS, Scoring, head_scores
from circuits.features.code_autoencoder import Training
from interp.errors import SchemaError, nearest
from interp.results.results import Result

Difference = Literal["shift", "codes"]
DIFFERENCES: tuple[Difference, ...] = ("shift", "codes")
WORDS = 8
"""Vectors of which a planted head writes one on a positive, where the difference is "codes"."""
CHEAP = Scoring(Training(epochs=100), n_seeds=2, n_permutations=20)
PUBLISHED = Scoring(n_seeds=1)
"""Training and scores as published, with one autoencoder."""


def planted_outputs(
    difference: Difference,
    effect: float,
    *,
    n_pairs: int = 250,
    n_heads: int = 144,
    n_planted: int = 26,
    d: int = 64,
    seed: int = 0,
) -> tuple[Float[Tensor, "prompt head d"], Bool[np.ndarray, " prompt"], Bool[np.ndarray, " head"]]:
    """Standard normal outputs of heads, whether a prompt is a positive, and which heads were planted.

    On positives a planted head writes, besides, `effect` times a unit vector: its own one ("shift"), or one of 8 of its
    own drawn anew for every prompt ("codes"). Sizes are those of GPT-2 small and the circuit of IOI.

    Raises:
        SchemaError: an unknown difference.
    """
    if difference not in DIFFERENCES:
        raise SchemaError(f"unknown difference {difference!r}; {nearest(difference, DIFFERENCES)}")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * n_pairs, n_heads, d))
    labels, true = np.arange(2 * n_pairs) < n_pairs, np.zeros(n_heads, dtype=bool)
    true[rng.choice(n_heads, n_planted, replace=False)] = True
    words = rng.standard_normal((n_planted, 1 if difference == "shift" else WORDS, d))
    words /= np.linalg.norm(words, axis=-1, keepdims=True)
    drawn = rng.integers(words.shape[1], size=(n_pairs, n_planted))
    x[:n_pairs, true] += effect * words[np.arange(n_planted), drawn]
    return torch.from_numpy(x).float(), labels, true


def planted_board(
    *,
    differences: Sequence[Difference] = DIFFERENCES,
    effects: Sequence[float] = (0.0, 1.0, 2.0, 4.0),
    seeds: int = 5,
    scoring: Scoring = CHEAP,
    n_pairs: int = 250,
    n_heads: int = 144,
    n_planted: int = 26,
    d: int = 64,
) -> pd.DataFrame:
    """AUROC of every score of heads on `planted_outputs`: one row per (difference, effect, seed, score)."""
    sizes = {"n_pairs": n_pairs, "n_heads": n_heads, "n_planted": n_planted, "d": d}
    rows = []
    for difference in differences:
        for effect in effects:
            for seed in range(seeds):
                x, labels, true = planted_outputs(difference, effect, seed=seed, **sizes)
                pair = np.tile(np.arange(n_pairs), 2)
                scores = head_scores(x, labels, pair, shape=(1, n_heads), scoring=scoring, seed=seed)
                place = {"difference": difference, "effect": effect, "seed": seed}
                rows += [{**place, "score": name, "auroc": auroc(v, true)} for name, v in scores.values.items()]
    return pd.DataFrame(rows)


def auroc(values: Float[np.ndarray, "*layer head"], true: Bool[np.ndarray, " every"]) -> float:
    """Of the true heads among all, by score."""
    scores = {str(i): float(value) for i, value in enumerate(values.ravel())}
    return judge_nodes(scores, [str(i) for i in np.flatnonzero(true)], among=scores)["auroc"]


def judge_codes(table: Result, heads: Iterable[str]) -> pd.DataFrame:
    """How each score of a table of `sae_codes` ranks the heads of a circuit: one row per score, pooling and scaling.

    Columns: `auroc` and `average_precision` over all heads; the largest F1 = 2 TPR precision / (TPR + precision) over
    thresholds, at which threshold, and how many heads it keeps; and the same for what the published code calls F1,

        2 TPR (1 - FPR) / (TPR + 1 - FPR),

    the harmonic mean of sensitivity and specificity: no precision, so that where few heads are true it is far larger.

    Raises:
        SchemaError: a head that the table does not have.
    """
    inside, rows = set(heads), []
    for (variant, pooling, scaling), part in table.table.groupby(["variant", "pooling", "scaling"], sort=False):
        if variant not in UNITS:
            continue
        scores = {str(name): float(value) for name, value in zip(part["component"], part["value"], strict=True)}
        if inside - set(scores):
            raise SchemaError(f"no head {min(inside - set(scores))!r} in the table")
        ranking = judge_nodes(scores, inside, among=scores)
        place = {"score": variant, "pooling": pooling, "scaling": scaling}
        true = np.array([name in inside for name in scores])
        rows.append({**place, **ranking, **best_thresholds(np.array(list(scores.values())), true)})
    return pd.DataFrame(rows)


def best_thresholds(values: Float[np.ndarray, " head"], true: Bool[np.ndarray, " head"]) -> Mapping[str, float]:
    """Largest F1, usual and published, over thresholds `value >= threshold`; the threshold, and how many reach it."""
    thresholds = np.unique(values)[::-1]
    kept = values >= thresholds[:, None]
    out: dict[str, float] = {}
    for name, score in (("f1", f1(kept, true)), ("f1_published", f1_published(kept, true))):
        best = int(score.argmax())
        out |= {name: float(score[best]), f"{name}_at": float(thresholds[best]), f"{name}_n": float(kept[best].sum())}
    return out


def f1(kept: Bool[np.ndarray, "*draw head"], true: Bool[np.ndarray, " head"]) -> Float[np.ndarray, "*draw"]:
    """2 TP / (heads kept + true heads): the usual F1 of sets of heads."""
    return np.asarray(2 * (kept & true).sum(-1) / np.maximum(kept.sum(-1) + true.sum(), 1))


def f1_published(kept: Bool[np.ndarray, "*draw head"], true: Bool[np.ndarray, " head"]) -> Float[np.ndarray, "*draw"]:
    """2 TPR (1 - FPR) / (TPR + 1 - FPR): what the published code computes under the name of F1."""
    tpr, tnr = _share(kept, true), 1 - _share(kept, ~true)
    return np.divide(2 * tpr * tnr, tpr + tnr, out=np.zeros(np.shape(tpr)), where=tpr + tnr > 0)


def _share(kept: Bool[np.ndarray, "*draw head"], of: Bool[np.ndarray, " head"]) -> Float[np.ndarray, "*draw"]:
    return np.asarray((kept & of).sum(-1) / max(int(of.sum()), 1))
