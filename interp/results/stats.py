"""Nulls, intervals, corrections and matched controls. Thin, over scipy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from interp.errors import TaskError

Head = tuple[int, int]


def p_against_nulls(
    value: Float[np.ndarray, "*component"], null: Float[np.ndarray, "draw *component"], *, margin: float = 0.0
) -> Float[np.ndarray, "*component"]:
    """One-sided p that `value` is one more draw from the normal population of the `null` draws, shifted by `margin`.

    t = (value - mean(null) - margin) / (sd(null) sqrt(1 + 1/m)) with m - 1 degrees of freedom: Student's prediction
    interval. Meant for the same statistic at m wrong offsets: their spread carries both sampling noise and the head's
    own structure, so a head that merely has some structure is not significant for having it here. `margin` makes it a
    minimum-effect test: with enough prompts any dependence on content, however slight, differs from zero.
    """
    m = null.shape[0]
    if m < 3:
        raise ValueError(f"{m} null draws are too few; at least 3 are needed")
    spread = null.std(axis=0, ddof=1) * np.sqrt(1 + 1 / m)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (value - null.mean(axis=0) - margin) / spread
    return stats.t.sf(np.nan_to_num(t, nan=0.0), df=m - 1)


def p_above(
    difference: Float[np.ndarray, "unit *component"], *, margin: float = 0.0
) -> Float[np.ndarray, "*component"]:
    """One-sided p that the mean over units (prompts) is at most `margin`: Student's t, n - 1 degrees of freedom.

    Where all units agree exactly the answer is certain: 0 above the margin, 1 otherwise. NaN components get 1.

    Raises:
        TaskError: fewer than three units.
    """
    n = len(difference)
    if n < 3:
        raise TaskError(f"{n} prompts are too few for a test over prompts; at least 3 are needed")
    mean, se = difference.mean(0), difference.std(0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean - margin) / se
    certain = np.where(mean > margin, np.inf, -np.inf)
    t = np.where(np.isnan(mean), -np.inf, np.where(se > 0, t, certain))
    return np.asarray(stats.t.sf(t, df=n - 1))


def nan_mean(values: Float[np.ndarray, "*all"], *, axis: int) -> Float[np.ndarray, "*rest"]:
    """Mean over an axis of what has an answer; NaN, without a warning, where nothing has."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis), known.sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


class Interval(NamedTuple):
    """Mean of n independent values, its standard error, and a percentile-bootstrap interval."""

    mean: Float[np.ndarray, "*component"]
    se: Float[np.ndarray, "*component"]
    low: Float[np.ndarray, "*component"]
    high: Float[np.ndarray, "*component"]
    n: int


def bootstrap_mean(
    values: Float[np.ndarray, "unit *component"], *, seed: int, level: float = 0.95, n_resamples: int = 1000
) -> Interval:
    """Mean over units (prompts) with its 95 % percentile-bootstrap interval, resampling whole units.

    Resampling n units with replacement is weighting them by multinomial counts, so all components and resamples are
    one matrix product.
    """
    n = values.shape[0]
    flat = values.reshape(n, -1)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples) / n
    tails = np.quantile(counts @ flat, [(1 - level) / 2, (1 + level) / 2], axis=0)
    shape = values.shape[1:]
    se = flat.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.full(flat.shape[1], np.nan)
    low, high = (t.reshape(shape) for t in tails)
    return Interval(flat.mean(axis=0).reshape(shape), se.reshape(shape), low, high, n)


def benjamini_hochberg(p: Float[np.ndarray, "*component"]) -> Float[np.ndarray, "*component"]:
    """p adjusted for the false discovery rate over all components (Benjamini & Hochberg 1995)."""
    return stats.false_discovery_control(p.ravel()).reshape(p.shape)


def uniform_causal(first: int, last: int) -> float:
    """Mean probability of one key under uniform causal attention over queries first..last: mean of 1 / (i + 1)."""
    return float(np.mean(1.0 / np.arange(first + 1, last + 2)))


def matched_sets(
    chosen: Sequence[Head], pool: Sequence[Head], *, n_sets: int, seed: int
) -> dict[str, list[tuple[Head, ...]]]:
    """Up to `n_sets` distinct random sets of unchosen heads to compare a chosen set with, by how they are matched.

    "same layers": as many heads in each layer as `chosen` has. Where fewer than `n_sets` such sets exist, "any layers"
    is given as well: as many heads, from anywhere. A way of matching that has no sets is left out.
    """
    rng = np.random.default_rng(seed)
    others = [h for h in pool if h not in set(chosen)]
    need = Counter(layer for layer, _ in chosen)
    have = Counter(layer for layer, _ in others)
    sets: dict[str, list[tuple[Head, ...]]] = {}
    if all(have[layer] >= k for layer, k in need.items()):
        sets["same layers"] = _distinct(lambda: _draw_by_layer(rng, need, others), n_sets)
    if len(sets.get("same layers", ())) < n_sets and len(others) >= len(chosen):
        sets["any layers"] = _distinct(lambda: _draw(rng, others, len(chosen)), n_sets)
    return sets


def _distinct(draw: Callable[[], tuple[Head, ...]], n: int) -> list[tuple[Head, ...]]:
    """Different sets, fewer than `n` when there are no more (small pools repeat themselves, so tries are bounded)."""
    found: dict[tuple[Head, ...], None] = {}
    for _ in range(20 * n):
        if len(found) == n:
            break
        found[tuple(sorted(draw()))] = None
    return list(found)


def _draw_by_layer(rng: np.random.Generator, need: Counter[int], others: Sequence[Head]) -> tuple[Head, ...]:
    drawn: list[Head] = []
    for layer, k in sorted(need.items()):
        drawn += _draw(rng, [h for h in others if h[0] == layer], k)
    return tuple(drawn)


def _draw(rng: np.random.Generator, heads: Sequence[Head], k: int) -> tuple[Head, ...]:
    return tuple(heads[i] for i in rng.choice(len(heads), size=k, replace=False))
