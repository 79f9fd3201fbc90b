"""`PlantedDictionary`: activations that are sums of known directions, each active now and then.

>>> planted = PlantedDictionary.of("uncorrelated", n_features=32, d=16, l0=2.0)
>>> x, f = planted.draw(1000, seed=0)
>>> x.shape, f.shape
(torch.Size([1000, 16]), torch.Size([1000, 32]))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import SchemaError, nearest

CASES = ("uncorrelated", "correlated", "hierarchical", "zipf")
GROUP = 4
"""Features of a correlated or hierarchical group."""
CORRELATION = 0.6
"""Of the normal variables behind the features of a correlated group."""
CHILD = 0.4
"""Chance of a child where its parent is active."""
SPREAD, NOISE = 0.25, 0.02
"""Standard deviations of magnitudes around 1, and of each coordinate of the noise."""
MOST = 0.5
"""Highest rate of a feature by Zipf's law."""


@dataclass(frozen=True, eq=False)
class PlantedDictionary:
    """x = sum over active features i of m_i d_i + noise, with m_i ~ |N(1, .25^2)|.

    Attributes:
        directions: [feature d], unit norm.
        rates: share of tokens at which each is active, by itself; a child's, where its parent is.
        groups: number of the group that each is drawn with, -1 for none. Its normal variables are correlated.
        parents: feature without which each is silent, -1 for none.
        seed: that the directions were drawn from.
    """

    directions: Float[Tensor, "feature d"]
    rates: Float[Tensor, " feature"]
    groups: Int[Tensor, " feature"]
    parents: Int[Tensor, " feature"]
    seed: int = 0

    @classmethod
    def of(
        cls, case: str = "uncorrelated", *, n_features: int = 128, d: int = 64, l0: float = 4.0, seed: int = 0
    ) -> PlantedDictionary:
        """Random directions, with features that are active l0 at a time on average.

        Args:
            case: "uncorrelated", all at one rate; "correlated", in groups of four by a Gaussian copula of correlation
                .6; "hierarchical", in groups of a parent and three children, active with chance .4 where it is; "zipf",
                rates proportional to 1 / rank, .5 at most.
            n_features: how many.
            d: width.
            l0: mean active features.
            seed: of the directions.

        Raises:
            SchemaError: a case that is none, or more active features than there are.
        """
        if case not in CASES:
            raise SchemaError(f"unknown case {case!r} of a planted dictionary; {nearest(str(case), CASES)}")
        if not 0 < l0 < n_features * MOST:
            raise SchemaError(f"l0 is {l0}; it must be above 0 and below half of the {n_features} features")
        random = torch.Generator().manual_seed(seed)
        directions = torch.nn.functional.normalize(torch.randn(n_features, d, generator=random), dim=1)
        number, none = torch.arange(n_features), torch.full((n_features,), -1)
        rates = torch.full((n_features,), l0 / n_features)
        groups, parents = none, none
        if case == "correlated":
            groups = number // GROUP
        elif case == "hierarchical":
            first = number // GROUP * GROUP
            parents = torch.where(number == first, none, first)
            n_parents = int((parents < 0).sum())
            rate = l0 / (n_parents + CHILD * (n_features - n_parents))
            rates = torch.where(parents < 0, torch.tensor(rate), torch.tensor(CHILD))
        elif case == "zipf":
            rates = _zipf(n_features, l0)
        return cls(directions, rates, groups, parents, seed)

    def draw(self, n: int, *, seed: int) -> tuple[Float[Tensor, "token d"], Float[Tensor, "token feature"]]:
        """Activations and magnitudes of the features, 0 where silent: the same for the same seed."""
        random, n_features = torch.Generator().manual_seed(seed), len(self.rates)
        z = torch.randn(n, n_features, generator=random)
        if bool((self.groups >= 0).any()):
            shared = torch.randn(n, int(self.groups.max()) + 1, generator=random)[:, self.groups.clamp(min=0)]
            mixed = CORRELATION**0.5 * shared + (1 - CORRELATION) ** 0.5 * z
            z = torch.where(self.groups >= 0, mixed, z)
        active = z > torch.special.ndtri(1 - self.rates.double()).float()
        active &= (self.parents < 0) | active[:, self.parents.clamp(min=0)]
        f = active * (1 + SPREAD * torch.randn(n, n_features, generator=random)).abs()
        return f @ self.directions + NOISE * torch.randn(n, self.directions.shape[1], generator=random), f


def _zipf(n: int, l0: float) -> Float[Tensor, " feature"]:
    """min(c / rank, .5), with the c that makes them sum to l0."""
    low, high = 0.0, float(n)
    for _ in range(60):
        middle = (low + high) / 2
        total = float((middle / torch.arange(1, n + 1)).clamp(max=MOST).sum())
        low, high = (middle, high) if total < l0 else (low, middle)
    return (low / torch.arange(1, n + 1)).clamp(max=MOST)
