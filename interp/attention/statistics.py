"""Statistics of an attention pattern, as values: each is a question; nothing here computes.

With p_ij the probability query i gives key j, and "row" a query row. Per-row answers have shape
[batch, head, query] and are NaN where the question has no answer: padding, or no key of the kind asked for
that the query may see (so that an average never counts "could not" as "did not").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from interp.errors import TaskError
from interp.shapes import Bool, Float, Int, brief


@dataclass(frozen=True, eq=False)
class Statistic:
    """Base of all questions."""

    @property
    def per_row(self) -> bool:
        """Whether the answer is one number per query row, so that `Mean` can average it."""
        return True

    def check(self, *, batch: int, n_query: int, n_key: int) -> None:
        """Raise TaskError if the question does not fit prompts of this size."""


@dataclass(frozen=True, eq=False)
class Offset(Statistic):
    """p_{i, i-distance}: probability paid `distance` positions back. 0 is the query itself."""

    distance: int

    def check(self, *, batch: int, n_query: int, n_key: int) -> None:
        """Later keys are not seen."""
        if self.distance < 0:
            raise TaskError(f"Offset({self.distance}) asks about a later key; offsets count back, from 0")


@dataclass(frozen=True, eq=False)
class Pairs(Statistic):
    """sum of p_ij over listed pairs of row i: any (query, key) rule, such as equal tokens, written out.

    `batch`, `query`, `key` are parallel index lists in any order; a pair listed twice counts twice. The cost is
    O(pairs * d_head).
    """

    batch: Int[Tensor, " pairs"]
    query: Int[Tensor, " pairs"]
    key: Int[Tensor, " pairs"]

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class KeyMass(Statistic):
    """sum_j p_ij x_j: mass on a key set (x an indicator) or any linear read-out of the row."""

    readout: Bool[Tensor, "batch key"] | Float[Tensor, "batch key"]

    __repr__ = brief

    def check(self, *, batch: int, n_query: int, n_key: int) -> None:
        """One number per key of each prompt."""
        _shape("KeyMass.readout", self.readout, (batch, n_key))


@runtime_checkable
class Spans(Protocol):
    """Prompts with named stretches, as `interp.batch.Batch`."""

    def span(self, name: str) -> Bool[Tensor, "batch pos"]:
        """Mask of a stretch's tokens."""
        ...


def span_mass(batch: Spans, keys: str, queries: str | None = None) -> Statistic:
    """Mass on the tokens of one span: sum_{j in keys} p_ij of each row, or its mean over the rows of another span.

    Raises:
        TaskError: the batch has no span of that name.
    """
    mass = KeyMass(batch.span(keys))
    return mass if queries is None else Mean(mass, batch.span(queries))


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

    __repr__ = brief

    def check(self, *, batch: int, n_query: int, n_key: int) -> None:
        """One weight per query of each prompt, none negative."""
        _row_weight("Received.weight", self.weight, (batch, n_query))

    @property
    def per_row(self) -> bool:
        """Per key, not per row."""
        return False


@dataclass(frozen=True, eq=False)
class ByDistance(Statistic):
    """Mean of p_{i, i-d} over rows i that have a key d back, for every distance d: [batch, head, distance].

    sum_i w_i p_{i, i-d} / sum_i w_i over rows that see key i - d; NaN at distances that no counted row has. The last
    axis is as long as there are keys, and starts at 0, the query itself; keys behind the query are left out.
    `weight` is w, zero where a row must not count; all real rows count once without it.
    """

    weight: Float[Tensor, "batch query"] | None = None

    __repr__ = brief

    def check(self, *, batch: int, n_query: int, n_key: int) -> None:
        """One weight per query of each prompt, none negative."""
        _row_weight("ByDistance.weight", self.weight, (batch, n_query))

    @property
    def per_row(self) -> bool:
        """Per distance, not per row."""
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

    __repr__ = brief

    def check(self, *, batch: int, n_query: int, n_key: int) -> None:
        """Rows within the prompt, k at least 1, one flag per key."""
        _rows("TopKeys.rows", self.rows, batch, n_query)
        if self.k < 1:
            raise TaskError(f"TopKeys.k is {self.k}; at least 1 key can be asked for")
        if self.exclude is not None:
            _shape("TopKeys.exclude", self.exclude, (batch, n_key))

    @property
    def per_row(self) -> bool:
        """Chosen rows, k answers each."""
        return False


@dataclass(frozen=True, eq=False)
class Rows(Statistic):
    """p_ij itself for chosen rows, [batch, head, rows, key]: for looking at, a few rows at a time."""

    rows: Int[Tensor, "batch rows"]

    __repr__ = brief

    def check(self, *, batch: int, n_query: int, n_key: int) -> None:
        """Rows within the prompt."""
        _rows("Rows.rows", self.rows, batch, n_query)

    @property
    def per_row(self) -> bool:
        """Chosen rows, every key."""
        return False


@dataclass(frozen=True, eq=False)
class Mean(Statistic):
    """Average of a per-row statistic over chosen rows that have an answer, [batch, head]; NaN if none has."""

    of: Statistic
    rows: Bool[Tensor, "batch query"] | None = None

    __repr__ = brief

    def __post_init__(self) -> None:
        """Refuse what has no rows to average."""
        if not self.of.per_row:
            raise TypeError(f"Mean averages query rows; {type(self.of).__name__} is not one number per row")

    def check(self, *, batch: int, n_query: int, n_key: int) -> None:
        """What is averaged must fit, and one flag per query."""
        self.of.check(batch=batch, n_query=n_query, n_key=n_key)
        if self.rows is not None:
            _shape("Mean.rows", self.rows, (batch, n_query))

    @property
    def per_row(self) -> bool:
        """Already averaged."""
        return False


def _shape(name: str, tensor: Tensor, expected: tuple[int, int]) -> None:
    if tuple(tensor.shape) != expected:
        raise TaskError(f"{name} has shape {tuple(tensor.shape)}; the prompts need {expected}")


def _row_weight(name: str, weight: Tensor | None, expected: tuple[int, int]) -> None:
    if weight is None:
        return
    _shape(name, weight, expected)
    if bool((weight < 0).any()):
        raise TaskError(f"{name} has negative entries; weights count rows and start at 0")


def _rows(name: str, rows: Tensor, batch: int, n_query: int) -> None:
    if rows.ndim != 2 or rows.shape[0] != batch:
        raise TaskError(f"{name} has shape {tuple(rows.shape)}; one list of positions per prompt, [{batch}, rows]")
    if rows.numel() and (int(rows.min()) < -1 or int(rows.max()) >= n_query):
        raise TaskError(
            f"{name} asks for position {int(rows.max())}; positions go from 0 to {n_query - 1}, -1 for none"
        )
