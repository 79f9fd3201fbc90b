"""Least squares of vectors on vectors with one number a regressor: y_n = sum_c beta_c x_nc + b, b a free vector.

A prompt gives d equations, which are not independent: what is resampled, permuted and held out is always whole prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from interp.results import stats
from interp.shapes import brief

CONSTANT = 1e-6
"""Share of its own squared length below which a regressor's spread over prompts counts as none."""
COLLINEAR = 1e8
"""Variance inflation from which on a coefficient is not identified."""
RESAMPLES, CHUNK = 400, 32
"""Bootstrap draws, and how many at a time."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What least squares needs of each prompt, so that a weighted fit is a sum of small matrices.

    Attributes:
        gram: <x_nc, x_nc'>. cross: <x_nc, y_n>. square: <y_n, y_n>.
        x, y: the vectors, for their means.
    """

    gram: Float[ndarray, "prompt c c2"]
    cross: Float[ndarray, "prompt c"]
    square: Float[ndarray, " prompt"]
    x: Float[ndarray, "prompt c d"]
    y: Float[ndarray, "prompt d"]

    __repr__ = brief

    @classmethod
    def of(cls, x: Float[ndarray, "prompt c d"], y: Float[ndarray, "prompt d"]) -> Moments:
        """Of regressors and what is regressed on them."""
        return cls(x @ x.swapaxes(1, 2), (x @ y[..., None])[..., 0], (y**2).sum(1), x, y)

    def centred(
        self, weights: Float[ndarray, "draw prompt"]
    ) -> tuple[Float[ndarray, "draw c c2"], Float[ndarray, "draw c"], Float[ndarray, " draw"]]:
        """Gram, cross and square of what is left when means under the weights (which sum to 1) are taken off."""
        n, c, d = self.x.shape
        gram, cross, mean_y = np.tensordot(weights, self.gram, 1), weights @ self.cross, weights @ self.y
        for first in range(0, len(weights), CHUNK):  # means of every regressor in every draw would be large
            part = slice(first, first + CHUNK)
            mean_x = (weights[part] @ self.x.reshape(n, -1)).reshape(-1, c, d)
            gram[part] -= mean_x @ mean_x.swapaxes(1, 2)
            cross[part] -= (mean_x @ mean_y[part, :, None])[..., 0]
        return gram, cross, weights @ self.square - (mean_y**2).sum(1)


@dataclass(frozen=True, eq=False)
class Regression:
    """A fit, and how far it can be believed.

    Attributes:
        beta: coefficients; NaN where a regressor is the same at all prompts, so that it is in the intercept, or where
            the others give it exactly.
        low, high: ends of a 95 % bootstrap interval over prompts. se: its standard deviation.
        null: coefficients when y is given to other prompts, one permutation after another.
        vif: variance inflation 1 / (1 - R2 of the regressor on the others): 1 where it stands alone.
        condition: of the regressors scaled to one length: the root of the ratio of largest to smallest eigenvalue.
        intercept: b.
        r2: share of the spread of y over prompts that the fit explains. null_r2: under the permutations.
        held_out: the same of prompts that the fit has not seen. null_held_out: under the permutations.
        folds: how prompts were held out: a number for each.
    """

    beta: Float[ndarray, " c"]
    low: Float[ndarray, " c"]
    high: Float[ndarray, " c"]
    se: Float[ndarray, " c"]
    null: Float[ndarray, "draw c"]
    vif: Float[ndarray, " c"]
    condition: float
    intercept: Float[ndarray, " d"]
    r2: float
    null_r2: Float[ndarray, " draw"]
    held_out: float
    null_held_out: Float[ndarray, " draw"]
    folds: Int[ndarray, " prompt"]

    __repr__ = brief


def regress(
    x: Float[ndarray, "prompt c d"],
    y: Float[ndarray, "prompt d"],
    *,
    groups: Sequence[int] | Int[ndarray, " prompt"] | None = None,
    draws: int = 20,
    n_folds: int = 5,
    seed: int = 0,
) -> Regression:
    """beta and b that minimise sum_n |y_n - sum_c beta_c x_nc - b|^2, with intervals, inflation, held-out R2 and null.

    Args:
        x: regressors, a vector each.
        y: what is regressed on them.
        groups: of each prompt, such as its template: whole groups are held out where there are two or more. Else
            `n_folds` parts of the prompts, drawn at random.
        draws: permutations of y over the prompts.
        n_folds: parts.
        seed: of resamples, permutations and parts.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(30, 2, 8))
    >>> fit = regress(x, 2 * x[:, 0] - x[:, 1] + 3.0)
    >>> [round(float(b), 3) for b in fit.beta]
    [2.0, -1.0]
    """
    n = len(y)
    x, y = x.astype(float), y.astype(float)
    spread = ((x - x.mean(0)) ** 2).sum((0, 2))
    varies = spread > CONSTANT * np.maximum((x**2).sum((0, 2)), np.finfo(float).tiny)
    kept = np.flatnonzero(varies)
    own = x[:, kept]
    equal = np.full((1, n), 1 / n)
    moments = Moments.of(own, y)
    gram, cross, square = (m[0] for m in moments.centred(equal))
    vif, condition = _inflation(gram)
    unknown = vif > COLLINEAR
    fit = _solve(gram[None], cross[None])[0]
    drawn = stats.bootstrap(lambda w: _solve(*moments.centred(w)[:2]), n, seed=seed, n_resamples=RESAMPLES, around=fit)
    rng = np.random.default_rng(seed)
    folds = _folds(n, groups, n_folds, rng)
    held = _HeldOut(moments, folds)
    nulls, null_r2, null_held = [], [], []
    for _ in range(draws):
        other = y[rng.permutation(n)]
        c = np.einsum("ncd,nd->c", own, other) / n - own.mean(0) @ other.mean(0)
        beta = _solve(gram[None], c[None])[0]
        nulls.append(beta)
        null_r2.append(float(beta @ c / square) if square > 0 else np.nan)
        null_held.append(held.r2(other))

    def full(values: ndarray, *, fill: float = np.nan) -> ndarray:
        out = np.full((*values.shape[:-1], len(varies)), fill)
        out[..., kept] = np.where(unknown, np.nan, values)
        return out

    inflation = np.full(len(varies), np.nan)
    inflation[kept] = vif
    return Regression(
        beta=full(fit),
        low=full(drawn.low),
        high=full(drawn.high),
        se=full(drawn.se),
        null=full(np.array(nulls).reshape(draws, len(kept))),
        vif=inflation,
        condition=condition,
        intercept=y.mean(0) - np.einsum("c,cd->d", fit, own.mean(0)),
        r2=float(fit @ cross / square) if square > 0 else float("nan"),
        null_r2=np.array(null_r2),
        held_out=held.r2(y),
        null_held_out=np.array(null_held),
        folds=folds,
    )


def _solve(gram: Float[ndarray, "draw c c2"], cross: Float[ndarray, "draw c"]) -> Float[ndarray, "draw c"]:
    """Least squares, of least length where several are as good."""
    return (np.linalg.pinv(gram, rcond=1e-12, hermitian=True) @ cross[..., None])[..., 0]


def _inflation(gram: Float[ndarray, "c c2"]) -> tuple[Float[ndarray, " c"], float]:
    """Variance inflation of each regressor, and the condition number of all."""
    if not len(gram):
        return np.zeros(0), float("nan")
    size = np.sqrt(np.diag(gram))
    values, vectors = np.linalg.eigh(gram / np.outer(size, size))
    least = max(values[-1] * 1e-12, 0.0)
    safe = np.maximum(values, least)
    return (vectors**2 / safe).sum(1), float(np.sqrt(values[-1] / safe[0]))


def _folds(
    n: int, groups: Sequence[int] | ndarray | None, n_folds: int, rng: np.random.Generator
) -> Int[ndarray, " prompt"]:
    if groups is not None and len(np.unique(np.asarray(groups))) > 1:
        return np.unique(np.asarray(groups), return_inverse=True)[1]
    folds = np.empty(n, dtype=int)
    folds[rng.permutation(n)] = np.arange(n) % min(n_folds, n)
    return folds


class _HeldOut:
    """Fits without one fold of the prompts after another, and what they explain of these."""

    def __init__(self, moments: Moments, folds: Int[ndarray, " prompt"]) -> None:
        self.x, self.parts = moments.x, []
        for fold in np.unique(folds):
            other = folds != fold
            mean = self.x[other].mean(0)
            gram = moments.gram[other].sum(0) - other.sum() * mean @ mean.T
            self.parts.append((~other, other, mean, np.linalg.pinv(gram, rcond=1e-12, hermitian=True)))

    def r2(self, y: Float[ndarray, "prompt d"]) -> float:
        """1 - sum |y - fit of the others|^2 / sum |y - mean of the others|^2, over all prompts."""
        missed = total = 0.0
        for own, other, mean_x, inverse in self.parts:
            mean_y = y[other].mean(0)
            cross = np.einsum("ncd,nd->c", self.x[other], y[other]) - other.sum() * mean_x @ mean_y
            rest = y[own] - mean_y
            missed += float(((rest - (inverse @ cross) @ (self.x[own] - mean_x)) ** 2).sum())
            total += float((rest**2).sum())
        return 1 - missed / total if total > 0 else float("nan")
