"""What can be asked of an attention pattern. Each question is a value; nothing here computes.

With p_ij the probability query i gives key j, and "row" a query row. Per-row answers have shape
[batch, head, query] and are NaN where the question has no answer: padding, or no key of the kind asked for
that the query may see (so that an average never counts "could not" as "did not").
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Statistic:
    """Base of all questions."""

    @property
    def per_row(self) -> bool:
        """Whether the answer is one number per query row, so that `Mean` can average it."""
        return True


@dataclass(frozen=True, eq=False)
class Offset(Statistic):
    """p_{i, i-distance}: probability paid `distance` positions back. 0 is the query itself."""

    distance: int


@dataclass(frozen=True, eq=False)
class Pairs(Statistic):
    """sum of p_ij over listed pairs of row i: any (query, key) rule, such as equal tokens, written out.

    `batch`, `query`, `key` are parallel index lists in any order; a pair listed twice counts twice. The cost is
    O(pairs * d_head).
    """

    batch: Int[Tensor, " pairs"]
    query: Int[Tensor, " pairs"]
    key: Int[Tensor, " pairs"]


@dataclass(frozen=True, eq=False)
class KeyMass(Statistic):
    """sum_j p_ij x_j: mass on a key set (x an indicator) or any linear read-out of the row."""

    readout: Bool[Tensor, "batch key"] | Float[Tensor, "batch key"]


@dataclass(frozen=True, eq=False)
class Distance(Statistic):
    """sum_j p_ij (i - j): expected distance looked back, in tokens."""


@dataclass(frozen=True, eq=False)
class Entropy(Statistic):
    """-sum_j p_ij log p_ij in nats, the sink slot counted as an outcome in models with sink logits."""


@dataclass(frozen=True, eq=False)
class SumSquares(Statistic):
    """sum_j p_ij^2 over keys: 1 for a one-hot row, 1/n for a uniform one."""


@dataclass(frozen=True, eq=False)
class Received(Statistic):
    """sum_i w_i p_ij for each key j, [batch, head, key]; padding keys are NaN.

    `weight` is w, zero where a row must not count; all real rows count once without it.
    """

    weight: Float[Tensor, "batch query"] | None = None

    @property
    def per_row(self) -> bool:
        """Per key, not per row."""
        return False


@dataclass(frozen=True, eq=False)
class TopKeys(Statistic):
    """The k largest p_ij of chosen rows and the keys they go to, [batch, head, rows, k, 2].

    The last axis is (probability, key index). `rows` lists query positions per prompt, -1 for none; `exclude`
    drops keys from the contest (a sink would win most). Where fewer than k keys are left, (NaN, -1).
    """

    rows: Int[Tensor, "batch rows"]
    k: int = 1
    exclude: Bool[Tensor, "batch key"] | None = None

    @property
    def per_row(self) -> bool:
        """Chosen rows, k answers each."""
        return False


@dataclass(frozen=True, eq=False)
class Rows(Statistic):
    """p_ij itself for chosen rows, [batch, head, rows, key]: for looking at, a few rows at a time."""

    rows: Int[Tensor, "batch rows"]

    @property
    def per_row(self) -> bool:
        """Chosen rows, every key."""
        return False


@dataclass(frozen=True, eq=False)
class Mean(Statistic):
    """Average of a per-row statistic over chosen rows that have an answer, [batch, head]; NaN if none has."""

    of: Statistic
    rows: Bool[Tensor, "batch query"] | None = None

    def __post_init__(self) -> None:
        """Refuse what has no rows to average."""
        if not self.of.per_row:
            raise TypeError(f"Mean averages query rows; {type(self.of).__name__} is not one number per row")

    @property
    def per_row(self) -> bool:
        """Already averaged."""
        return False
