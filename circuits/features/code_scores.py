"""Scores of heads from discrete codes on positive and negative prompts: codes seen in positives alone, and information.

A `CodeTable` is which codes each prompt uses at each head; every score is counts of it, so that all heads, all pairs of
heads and all permutations of the labels are matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num

from interp.errors import SchemaError, nearest

SHARES = ("all", "layer", "none")
"""Over what unique codes are put through a softmax: all heads, those of a layer, or not at all."""


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Which codes are used where: only those that some prompt uses have a column.

    Attributes:
        used: 1 where a prompt uses a code, float32 so that counts are matrix products (exact below 2^24 prompts).
        owner: the head that a column's code is of, ascending.
        n_heads: heads.
        columns: the column of the one code that each head has on a prompt; None where heads have sets of codes.
    """

    used: Float[np.ndarray, "prompt code"]
    owner: Int[np.ndarray, " code"]
    n_heads: int
    columns: Int[np.ndarray, "prompt head"] | None = None

    @classmethod
    def of(cls, codes: Int[np.ndarray, "prompt head"]) -> CodeTable:
        """Of one code for each head."""
        n, heads = codes.shape
        width = int(codes.max()) + 1
        ids = codes + np.arange(heads) * width
        present = np.bincount(ids.ravel(), minlength=heads * width) > 0
        used = np.zeros((n, int(present.sum())), dtype=np.float32)
        columns = (np.cumsum(present) - 1)[ids]
        np.put_along_axis(used, columns, 1.0, axis=1)
        return cls(used, np.flatnonzero(present) // width, heads, columns)

    @classmethod
    def of_sets(cls, active: Bool[np.ndarray, "prompt head feature"]) -> CodeTable:
        """Of a set of codes for each head."""
        present = active.any(0)
        return cls(active[:, present].astype(np.float32), np.nonzero(present)[0], active.shape[1])

    def per_head(self, values: Num[np.ndarray, "*draw code"]) -> Float[np.ndarray, "*draw head"]:
        """Sums over each head's codes."""
        edges = np.searchsorted(self.owner, np.arange(self.n_heads + 1))
        cumulated = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, -1, dtype=np.float64)], -1)
        return cumulated[..., edges[1:]] - cumulated[..., edges[:-1]]

    def unique(
        self, labels: Bool[np.ndarray, "*draw prompt"], *, normalise: bool = False
    ) -> Float[np.ndarray, "*draw head"]:
        """Codes that a head uses on positives and never on negatives; over all codes it uses with `normalise`.

        `labels`: whether each prompt is a positive, or several draws of that.
        """
        total = self.used.sum(0)
        counts = self.per_head((labels.astype(np.float32) @ self.used == total).astype(float))
        return counts / self.per_head(np.ones(len(total))) if normalise else counts

    def unique_pairs(
        self, labels: Bool[np.ndarray, " prompt"], *, normalise: bool = False
    ) -> Float[np.ndarray, "head head2"]:
        """Pairs of codes that two heads use together on some positive and never on a negative; the diagonal is 0.

        `normalise`: over all pairs of codes that the two use together on any prompt.
        """
        row_counts = self._set_counts if self.columns is None else self._single_counts
        pairs = np.zeros((self.n_heads, self.n_heads))
        for head, (unique, every) in enumerate(row_counts(labels)):
            pairs[head, head + 1 :] = (unique / np.maximum(every, 1) if normalise else unique)[head + 1 :]
        return pairs + pairs.T

    def _single_counts(self, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each head, with each later head: unique pairs of codes, and all. One write a prompt and pair of heads."""
        assert self.columns is not None  # the caller chose
        edges, m = np.searchsorted(self.owner, np.arange(self.n_heads + 1)), len(self.owner)
        size = int(np.diff(edges).max()) * m  # at most as many as `used` has
        negative, last = np.zeros(size, dtype=bool), np.empty(size, dtype=np.int32)
        order = np.argsort(~labels, kind="stable")
        n_positive, columns = int(labels.sum()), self.columns[order]
        for head in range(self.n_heads):
            keys = (columns[:, head : head + 1] - edges[head]) * m + columns[:, head + 1 :]
            flat = keys.ravel()
            last[flat] = np.arange(len(flat))  # of equal keys the last one stays, and counts
            first = (last[flat] == np.arange(len(flat))).reshape(keys.shape)
            every = self._by_head(columns[:, head + 1 :][first])
            negative[keys[n_positive:]] = True
            positive = keys[:n_positive]
            own = positive[~negative[positive]]
            negative[keys[n_positive:]] = False
            last[own] = np.arange(len(own))
            yield self._by_head(own[last[own] == np.arange(len(own))] % m), every

    def _set_counts(self, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `_single_counts`, of sets: which pairs of codes occur is a matrix product."""
        positive, negative = (torch.from_numpy(self.used[rows]) for rows in (labels, ~labels))
        edges = np.searchsorted(self.owner, np.arange(self.n_heads + 1))
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            with_positive = positive[:, low:high].T @ positive > 0
            with_negative = negative[:, low:high].T @ negative > 0
            unique, every = with_positive & ~with_negative, with_positive | with_negative
            yield self.per_head(unique.sum(0).numpy()), self.per_head(every.sum(0).numpy())

    def _by_head(self, columns: np.ndarray) -> np.ndarray:
        return np.bincount(self.owner[columns], minlength=self.n_heads)

    def information(self, labels: Bool[np.ndarray, "*draw prompt"]) -> Float[np.ndarray, "*draw head"]:
        """I(code; label) = sum p(c, y) ln (p(c, y) / p(c) p(y)) in nats, of tables with one code for each head."""
        n, total = self.used.shape[0], self.used.sum(0, dtype=np.float64)
        marks = labels.astype(np.float32)
        positives = marks.sum(-1, keepdims=True, dtype=np.float64)
        joint = np.asarray(marks @ self.used, dtype=np.float64)
        terms = np.zeros(joint.shape)
        for counts, of_label in ((joint, positives), (total - joint, n - positives)):
            with np.errstate(divide="ignore", invalid="ignore"):
                terms += np.where(counts > 0, counts / n * np.log(counts * n / (total * of_label)), 0.0)
        return self.per_head(terms)


def unique_codes(
    codes: Int[np.ndarray, "prompt head"], labels: Bool[np.ndarray, " prompt"]
) -> Int[np.ndarray, " head"]:
    """`CodeTable.unique` of one code for each head and one draw of labels, by marks alone: no table is made."""
    width = int(codes.max()) + 1
    ids = codes + np.arange(codes.shape[1]) * width
    marks = np.zeros((2, codes.shape[1] * width), dtype=bool)
    marks[0, ids[labels]], marks[1, ids[~labels]] = True, True
    return (marks[0] & ~marks[1]).reshape(-1, width).sum(1)


def node_scores(
    counts: Float[np.ndarray, "*draw layer head"], *, softmax: str = "all"
) -> Float[np.ndarray, "*draw layer head"]:
    """Counts of unique codes as shares: a softmax over all heads as published, or over those of each layer.

    Raises:
        SchemaError: an unknown softmax.
    """
    if softmax not in SHARES:
        raise SchemaError(f"unknown softmax {softmax!r}; {nearest(softmax, SHARES)}")
    if softmax == "none":
        return counts
    axes = (-2, -1) if softmax == "all" else (-1,)
    powers = np.exp(counts - counts.max(axes, keepdims=True))
    return powers / powers.sum(axes, keepdims=True)


def edge_shares(pairs: Float[np.ndarray, "head head2"], *, top: int | None = None) -> Float[np.ndarray, " head"]:
    """Of its pairs with other heads, the share that is among the `top` pairs by score (published: heads^2 / 4).

    Published, pairs are walked from the largest score on and heads counted. Where scores tie at the boundary (many do,
    being counts), each tied pair counts for the share of them that fits, in place of the order they stand in.
    """
    n = len(pairs)
    first, second = np.triu_indices(n, 1)
    values = pairs[first, second]
    size = min(n * n // 4 if top is None else top, len(values))
    bound = np.sort(values)[len(values) - size] if size else np.inf
    above, tied = values > bound, values == bound
    weights = above + tied * ((size - above.sum()) / max(tied.sum(), 1))
    return (np.bincount(first, weights, n) + np.bincount(second, weights, n)) / max(n - 1, 1)


def swapped_labels(
    labels: Bool[np.ndarray, " prompt"], pair: Int[np.ndarray, " prompt"], *, n: int, seed: int
) -> Bool[np.ndarray, "draw prompt"]:
    """Labels with a positive and its own negative exchanged or not, by a fair coin for each pair."""
    rng = np.random.default_rng(seed)
    flips = rng.random((n, int(pair.max()) + 1)) < 0.5
    return labels ^ flips[:, pair]
