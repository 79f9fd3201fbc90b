"""From scores to rows of a table: value, interval, null, p, q and label of every head; heads in order of a score."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp.model import Model
from interp.results import stats
from interp.results.stats import Head, Interval

THRESHOLD = 0.3  # mass below which a head is not called by a role's name, however significant
MARGIN = 0.05  # smallest excess over the wrong offsets worth a claim; tested against, not against zero
LEVEL = 0.01  # false discovery rate at which it is
T0 = 2  # first query positions left out of averages: with so few keys every head looks focused


def ranked_heads(
    model: Model, chosen: Bool[np.ndarray, "layer head"], score: Float[np.ndarray, "layer head"]
) -> list[Head]:
    """Chosen heads as (layer, head), highest score first."""
    rows, heads = np.nonzero(chosen)
    order = np.argsort(-score[rows, heads], kind="stable")
    return [(model.info.attention_layers[rows[i]], int(heads[i])) for i in order]


def head_rows(
    model: Model, variant: str, unit: str, **columns: Float[np.ndarray, "layer head"] | object
) -> pd.DataFrame:
    """One row per head of a variant, with its layer; each column is a [layer head] array or one value for all.

    Layers are those with attention, in the order of `model.info.attention_layers`. A label is NA where its q is NaN:
    what could not be tested is neither.
    """
    info = model.info
    q, label = columns.get("q"), columns.get("label")
    if isinstance(q, np.ndarray) and isinstance(label, np.ndarray):
        tested = label.astype(object)
        tested[np.isnan(q)] = None
        columns["label"] = tested
    layer, head = np.meshgrid(info.attention_layers, np.arange(info.n_heads), indexing="ij")
    flat = {
        name: value.reshape(-1) if isinstance(value, np.ndarray) and value.ndim == 2 else value
        for name, value in columns.items()
    }
    return pd.DataFrame({"variant": variant, "unit": unit, "layer": layer.ravel(), "head": head.ravel(), **flat})


def score_rows(
    model: Model,
    variant: str,
    unit: str,
    values: Float[np.ndarray, "prompt layer head"],
    nulls: Float[np.ndarray, "draw layer head"],
    *,
    null: float | Float[np.ndarray, "layer head"],
    seed: int,
) -> pd.DataFrame:
    """Rows of a score with everything beside it: interval over prompts, null, p, q over heads, and the label.

    p is one-sided, against the spread of at least five `nulls` (the same statistic where it means nothing) and for an
    excess above `MARGIN`; q is Benjamini-Hochberg; the label needs q < `LEVEL` and a value of `THRESHOLD` or more.

    Args:
        model: whose heads these are.
        variant: name of the score.
        unit: of its values: "probability" or "fraction", for which margin and threshold are made.
        values: of each prompt, the unit of the interval.
        nulls: draws that p is against.
        null: what is expected by chance, for the column `null`.
        seed: of the bootstrap.
    """
    interval = stats.bootstrap_mean(values, seed=seed)
    p = stats.p_against_nulls(interval.mean, nulls, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (interval.mean >= THRESHOLD)
    return head_rows(model, variant, unit, **interval_columns(interval), null=null, p=p, q=q, label=label)


def interval_columns(interval: Interval) -> dict[str, object]:
    """Columns value, se, ci_low, ci_high and n; the value is never outside the interval, which one prompt has not."""
    known = np.nan if interval.n < 2 else 0.0
    return {
        "value": interval.mean,
        "se": interval.se,
        "ci_low": np.minimum(interval.low, interval.mean) + known,
        "ci_high": np.maximum(interval.high, interval.mean) + known,
        "n": interval.n,
    }
