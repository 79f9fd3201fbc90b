"""Nulls, intervals, corrections and matched controls. Thin, over scipy."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from interp.errors import TaskError

Head = tuple[int, int]

LEAST_NULLS = 5
"""Finite null draws below which nothing is said about significance."""
LEAST_P = float(np.finfo(float).eps)
"""2.2e-16: tails beyond it are the model's, not the data's."""


def p_against_nulls(
    value: Float[np.ndarray, "*component"],
    null: Float[np.ndarray, "draw *component"],
    *,
    margin: float | Float[np.ndarray, "*component"] = 0.0,
) -> Float[np.ndarray, "*component"]:
    """One-sided p that `value` is one more draw from the normal population of the `null` draws, shifted by `margin`.

    t = (value - mean(null) - margin) / (sd(null) sqrt(1 + 1/m)) with m - 1 degrees of freedom: Student's prediction
    interval. Meant for the same statistic at m wrong offsets: their spread carries both sampling noise and the head's
    own structure, so a head that merely has some structure is not significant for having it here. `margin` makes it a
    minimum-effect test: with enough prompts any dependence on content, however slight, differs from zero.

    A draw that does not exist (NaN: an offset longer than the prompt) is no draw; m counts those that are finite. Draws
    are told apart to the spacing of float32, and p is never below `LEAST_P`. NaN where the value is NaN or fewer than
    `LEAST_NULLS` draws are finite: nothing is then known.

    Raises:
        TaskError: fewer than `LEAST_NULLS` draws for every component.
    """
    if len(null) < LEAST_NULLS:
        raise TaskError(f"{len(null)} null draws are too few for a test; at least {LEAST_NULLS} are needed")
    finite = np.isfinite(null)
    m = np.maximum(finite.sum(axis=0), 2)
    draws = np.where(finite, null, 0.0)
    mean = draws.sum(axis=0) / m
    variance = np.where(finite, (null - mean) ** 2, 0.0).sum(axis=0) / (m - 1)
    largest = np.maximum(np.abs(value), np.abs(draws).max(axis=0))
    resolution = np.maximum(np.finfo(np.float32).eps * largest, np.finfo(np.float32).tiny)
    spread = np.maximum(np.sqrt(variance), resolution) * np.sqrt(1 + 1 / m)
    p = np.maximum(stats.t.sf((value - mean - margin) / spread, df=m - 1), LEAST_P)
    return np.where((finite.sum(axis=0) >= LEAST_NULLS) & np.isfinite(value), p, np.nan)


def p_two_sided(
    value: Float[np.ndarray, "*component"],
    null: Float[np.ndarray, "draw *component"],
    *,
    margin: float | Float[np.ndarray, "*component"] = 0.0,
) -> Float[np.ndarray, "*component"]:
    """`p_against_nulls` in both directions, each shifted outwards by `margin`: twice the smaller p, at most 1.

    Raises:
        TaskError: fewer than `LEAST_NULLS` draws for every component.
    """
    above, below = (p_against_nulls(s * value, s * null, margin=margin) for s in (1, -1))
    return np.minimum(2 * np.minimum(above, below), 1.0)


def p_above(
    difference: Float[np.ndarray, "unit *component"], *, margin: float = 0.0
) -> Float[np.ndarray, "*component"]:
    """One-sided p that the mean over units (prompts) is at most `margin`: Student's t, n - 1 degrees of freedom.

    Where all units agree exactly, Student's t says nothing: p is then that of the sign test, 2^-n above the margin and
    1 otherwise. It is never below `LEAST_P`. NaN components get NaN.

    Raises:
        TaskError: fewer than three units.
    """
    n = len(difference)
    if n < 3:
        raise TaskError(f"{n} prompts are too few for a test over prompts; at least 3 are needed")
    mean, se = difference.mean(0), difference.std(0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean - margin) / se
    agreed = np.where(mean > margin, 0.5**n, 1.0)
    p = np.maximum(np.where(se > 0, stats.t.sf(t, df=n - 1), agreed), LEAST_P)
    return np.asarray(np.where(np.isnan(mean), np.nan, p))


def nan_mean(values: Float[np.ndarray, "*all"], *, axis: int) -> Float[np.ndarray, "*rest"]:
    """Mean over an axis of what has an answer; NaN, without a warning, where nothing has."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis), known.sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def resample(n: int, *, seed: int | np.random.Generator, n_resamples: int = 1000) -> Float[np.ndarray, "draw unit"]:
    """Weights of n units (prompts) in bootstrap resamples; each row sums to 1.

    Drawing n units with replacement is weighting each by how often it is drawn, which is multinomial, over n: what is a
    mean over units is then, for all resamples and components, one matrix product with these weights. A generator goes
    on from where it is.
    """
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples) / n


class Bootstrap(NamedTuple):
    """A statistic of resampled units: the ends of its percentile interval, and each draw of it."""

    low: Float[np.ndarray, "*component"]
    high: Float[np.ndarray, "*component"]
    draws: Float[np.ndarray, "draw *component"]

    @property
    def se(self) -> Float[np.ndarray, "*component"]:
        """Standard deviation of the draws."""
        return np.asarray(self.draws.std(axis=0, ddof=1))


def bootstrap(
    statistic: Callable[..., Float[np.ndarray, "draw *component"]],
    *sizes: int,
    seed: int | np.random.Generator,
    n_resamples: int = 1000,
    level: float = 0.95,
    around: Any = None,
    omit_nan: bool = False,
) -> Bootstrap:
    """Percentile bootstrap of any statistic of resampled units: quantiles (1 -+ level) / 2 of its draws.

    Args:
        statistic: of the weights [draw unit] that `resample` gives, one array per sample: `lambda w: w @ values` for a
            mean, `lambda w: (w @ a) / (w @ b)` for a ratio of means, `lambda v, w: v @ a - w @ b` for a difference.
        sizes: units of each sample; samples are resampled one after another, independently.
        seed: an integer, or a generator that goes on from where it is. Statistics with the same seed and sizes see the
            same resamples.
        n_resamples: draws.
        level: of the interval.
        around: a value that the interval is widened to hold; with few units the quantiles of a biased statistic may
            both lie on one side of it.
        omit_nan: leave out resamples in which the statistic is not defined. Otherwise one makes the interval NaN.
    """
    rng = np.random.default_rng(seed)
    draws = statistic(*(resample(n, seed=rng, n_resamples=n_resamples) for n in sizes))
    ends = [(1 - level) / 2, (1 + level) / 2]
    if omit_nan:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # such an interval is NaN, as it says
            low, high = np.nanquantile(draws, ends, axis=0)
    else:
        low, high = np.quantile(draws, ends, axis=0)
    if around is not None:
        low, high = np.minimum(low, around), np.maximum(high, around)
    return Bootstrap(np.asarray(low), np.asarray(high), draws)


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
    """Mean over units (prompts), its standard error s / sqrt(n) and `bootstrap` interval; whole units are resampled."""
    n, shape = len(values), values.shape[1:]
    flat = values.reshape(n, -1)
    drawn = bootstrap(lambda w: w @ flat, n, seed=seed, n_resamples=n_resamples, level=level)
    se = flat.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.full(flat.shape[1], np.nan)
    mean, se, low, high = (x.reshape(shape) for x in (flat.mean(axis=0), se, drawn.low, drawn.high))
    return Interval(mean, se, low, high, n)


class RankCorrelation(NamedTuple):
    """Spearman's rho of pairs, and its two-sided p against no association."""

    rho: float
    p: float


def spearman(a: ArrayLike, b: ArrayLike, *, least: int = 2) -> RankCorrelation:
    """Spearman's rank correlation (scipy's) of pairs; a pair with a NaN is left out.

    NaN, without a warning, where either side does not vary or fewer than `least` pairs are left. Two pairs always give
    1 or -1, and no p.
    """
    x, y = (np.asarray(side, dtype=float).ravel() for side in (a, b))
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < max(least, 2) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankCorrelation(np.nan, np.nan)
    found: Any = stats.spearmanr(x, y)
    return RankCorrelation(float(found.statistic), float(found.pvalue))


def spearman_rows(
    a: Float[np.ndarray, "draw component"], b: Float[np.ndarray, "draw component"]
) -> Float[np.ndarray, " draw"]:
    """`spearman` of each row of `a` with that of `b`, all at once; NaN where either row does not vary."""
    x, y = (stats.rankdata(side, axis=1) for side in (a, b))
    x, y = (side - side.mean(1, keepdims=True) for side in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def benjamini_hochberg(p: Float[np.ndarray, "*component"]) -> Float[np.ndarray, "*component"]:
    """p adjusted for the false discovery rate over all components that have one (Benjamini & Hochberg 1995)."""
    q = np.array(p, dtype=float)
    known = ~np.isnan(q)
    if known.any():
        q[known] = stats.false_discovery_control(q[known])
    return q


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
