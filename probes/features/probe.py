"""`Probe`: one linear map from an activation to labels, and its directions as edits; `fit` makes one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp.edits import Add, Apply, Edit
from interp.errors import SchemaError, TaskError, nearest
from interp.sites import Site

PENALTIES = ("l2", "l1")
STEPS = 2000
FLOOR = 1e-2
"""Least standard deviation that a channel is divided by, in root mean squares of those of all channels."""


@dataclass(frozen=True)
class Recipe:
    """How a probe is fitted.

    Attributes:
        penalty: "l2", or "l1" for few features by themselves.
        strength: of the penalty, 1 / C of logistic regression, alpha of ridge regression.
        features: number of features kept before fitting, those with the largest share of variance explained; None for
            all.
    """

    penalty: str = "l2"
    strength: float = 1.0
    features: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted."""
        if self.penalty not in PENALTIES:
            raise SchemaError(f"unknown penalty {self.penalty!r}; {nearest(str(self.penalty), PENALTIES)}")
        if self.strength <= 0:
            raise SchemaError(f"a penalty of strength {self.strength}: expected more than 0")
        if self.features is not None and self.features < 1:
            raise SchemaError(f"{self.features} features: a probe needs one at least")


@dataclass(frozen=True, eq=False)
class Probe:
    """scores = x `weights`^T + `bias`, x the activation as it is (standardisation is folded in).

    Attributes:
        site: place of the activation, one layer and, for heads, one head.
        position: token it was read at; None for every token.
        classes: labels in the order of the scores; empty where the label is a number.
        weights: one row per class, one alone for two classes (that of the second) or a number.
        bias: one per row.
        mean: of the activations it was fitted on.
        features: columns with a weight other than zero.
        converged: whether the fit came to an end by itself.
    """

    site: Site
    position: int | None
    classes: tuple[Any, ...]
    weights: Float[Tensor, "out d"]
    bias: Float[Tensor, " out"]
    mean: Float[Tensor, " d"]
    features: tuple[int, ...]
    converged: bool

    def __repr__(self) -> str:
        """One line: where, what, how wide."""
        what = f"{len(self.classes)} labels" if self.classes else "a number"
        return f"<Probe {replace(self.site, position=self.position)}: {what}, {len(self.features)} features>"

    def scores(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch out"]:
        """Log odds of the second class, of each class, or the number."""
        return x.to(self.weights) @ self.weights.mT + self.bias

    def predict(self, x: Float[Tensor, "*batch d"]) -> ndarray:
        """The likeliest label of each activation, or the number."""
        scores = self.scores(x)
        if not self.classes:
            return scores[..., 0].numpy()
        index = (scores[..., 0] > 0).long() if len(self.classes) == 2 else scores.argmax(-1)
        return np.asarray(self.classes)[index.numpy()]

    def direction(self, label: Any = None) -> Float[Tensor, " d"]:
        """Unit vector along which the score of a label grows: its row, less the mean row where there are several.

        Without a label, of the second of two classes, or of the number.

        Raises:
            TaskError: no such label, or none said among more than two.
        """
        if label is None and len(self.classes) > 2:
            raise TaskError(f"the probe tells {len(self.classes)} labels apart; name the one whose direction is meant")
        sign = -1 if self.classes and label is not None and label == self.classes[0] else 1
        if label is not None and label not in self.classes:
            raise TaskError(f"no label {label!r}; the probe knows {', '.join(map(repr, self.classes))}")
        if len(self.classes) > 2:
            row = self.weights[self.classes.index(label)] - self.weights.mean(0)
        else:
            row = self.weights[0] * sign
        return row / row.norm().clamp(min=torch.finfo(row.dtype).tiny)

    def add(self, strength: float, label: Any = None, *, positions: Any = None) -> list[Edit]:
        """x + strength * direction, at every token or at `positions` (as in `Edit`); strength in units of x."""
        return [Add(self.site, strength * self.direction(label), positions=positions)]

    def ablate(self) -> list[Edit]:
        """x - (x - mean) P at every token, P the projection on the rows of `weights`: the probe sees its mean alone.

        What another direction says of the label stays: ablate, and fit again.
        """
        span = torch.linalg.svd(self.weights, full_matrices=False)
        rows = span.Vh[span.S / span.S.max().clamp(min=1e-30) > 1e-6]
        head, mean = self.site.head, self.mean

        def remove(x: Tensor) -> Tensor:
            own = x if head is None else x[:, :, head]
            new = own - ((own - mean.to(own)) @ rows.mT.to(own)) @ rows.to(own)
            if head is None:
                return new
            return torch.cat([x[:, :, :head], new[:, :, None], x[:, :, head + 1 :]], dim=2)

        return [Apply(replace(self.site, head=None), remove)]


def fit(
    x: Float[ndarray, "example d"], y: ndarray, recipe: Recipe, *, site: Site, position: int | None, seed: int
) -> Probe:
    """Logistic regression on standardised activations where labels are classes, ridge or lasso where numbers.

    Reference: Alain & Bengio 2016 (arXiv 1610.01644); the choice of k features: Gurnee et al. 2023 (arXiv 2305.01610).
    """
    from sklearn.exceptions import ConvergenceWarning

    mean, sd = x.mean(0), x.std(0)
    # a channel that hardly moves is not blown up: its weight, in units of x, would be most of the direction
    sd = np.maximum(sd, max(FLOOR * float(np.sqrt((sd**2).mean())), 1e-30))
    z = (x - mean) / sd
    numeric = np.issubdtype(y.dtype, np.floating)
    columns = np.arange(x.shape[1])
    if recipe.features is not None:
        columns = np.sort(np.argsort(-explained_share(z, y), kind="stable")[: recipe.features])
    model = _estimator(recipe, numeric, 2 if numeric else len(np.unique(y)), seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(z[:, columns], y)
    rows, offset = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    weights = np.zeros((len(rows), x.shape[1]))
    weights[:, columns] = rows / sd[columns]
    return Probe(
        site=site,
        position=position,
        classes=() if numeric else tuple(model.classes_.tolist()),
        weights=torch.from_numpy(weights).float(),
        bias=torch.from_numpy(offset - weights @ mean).float(),
        mean=torch.from_numpy(mean).float(),
        features=tuple(np.flatnonzero((weights != 0).any(0)).tolist()),
        converged=not any(issubclass(w.category, ConvergenceWarning) for w in caught),
    )


def explained_share(z: Float[ndarray, "example d"], y: ndarray) -> Float[ndarray, " d"]:
    """Share of each standardised feature's variance that the label explains: eta^2 of classes, r^2 of a number."""
    if np.issubdtype(y.dtype, np.floating):
        spread = max(float(y.std()), 1e-300)
        return ((z * ((y - y.mean()) / spread)[:, None]).mean(0)) ** 2
    return sum(((y == c).mean() * z[y == c].mean(0) ** 2 for c in np.unique(y)), np.zeros(z.shape[1]))


def encoded(labels: Sequence[Any] | ndarray | Tensor) -> tuple[ndarray, tuple[Any, ...]]:
    """Labels as an array, floating where they are numbers to predict, and their classes in order."""
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if y.ndim != 1:
        raise TaskError(
            f"labels of shape {y.shape}: one per prompt is needed, or one list per prompt with position=None"
        )
    if np.issubdtype(y.dtype, np.floating):
        if not np.isfinite(y).all():
            raise TaskError("labels with NaN or infinity; leave those prompts out")
        return y.astype(float), ()
    return y, tuple(np.unique(y).tolist())


def split(groups: Int[ndarray, " example"], share: float, *, seed: int) -> ndarray:
    """Which examples are held out: those of `share` of the prompts, drawn by the seed; one prompt stays on one side.

    Raises:
        SchemaError: a share that leaves a side without a prompt.
    """
    prompts = np.unique(groups)
    n = round(share * len(prompts))
    if not 0 < n < len(prompts):
        raise SchemaError(f"held_out={share} of {len(prompts)} prompts leaves one side empty; expected a share of them")
    return np.isin(groups, np.random.default_rng(seed).permutation(prompts)[:n])


def _estimator(recipe: Recipe, numeric: bool, n_classes: int, seed: int) -> Any:
    from sklearn.linear_model import Lasso, LogisticRegression, Ridge

    if numeric and recipe.penalty == "l1":
        return Lasso(alpha=recipe.strength, max_iter=STEPS)
    if numeric:
        return Ridge(alpha=recipe.strength)
    if recipe.penalty == "l2":
        return LogisticRegression(C=1 / recipe.strength, max_iter=STEPS)
    solver = "liblinear" if n_classes == 2 else "saga"
    return LogisticRegression(C=1 / recipe.strength, l1_ratio=1.0, solver=solver, max_iter=STEPS, random_state=seed)
