"""Residues of numbers in vectors: whole decades as a grid, a probe on decades it has not seen, features, tuning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

RIDGE = 0.01  # of the mean squared norm of the centred vectors


@dataclass(frozen=True, eq=False)
class Grid:
    """Members of a class by block (decade) and residue; blocks that are not whole are left out.

    Attributes:
        at: place among the members.
        after: place of the member one on, -1 where that is no token.
        rank: of all members in their class: the numbers themselves, where they start at 0.
    """

    at: Int[np.ndarray, "block residue"]
    after: Int[np.ndarray, "block residue"]
    rank: Int[np.ndarray, " member"]

    @classmethod
    def of(cls, rank: Int[np.ndarray, " member"], base: int) -> Grid:
        """All blocks of `base` consecutive ranks, from a multiple of `base` on, of which every rank is a member."""
        place = {int(r): i for i, r in enumerate(rank)}
        starts = [s for s in range(0, int(rank.max()) + 1, base) if all(s + r in place for r in range(base))]
        at = [[place[s + r] for r in range(base)] for s in starts]
        after = [[place.get(s + r + 1, -1) for r in range(base)] for s in starts]
        shape = (len(starts), base)
        return cls(np.array(at, dtype=np.int64).reshape(shape), np.array(after, dtype=np.int64).reshape(shape), rank)


def probe(
    x: Float[np.ndarray, "block residue d"], *, n_permutations: int, seed: int, ridge: float = RIDGE
) -> tuple[Bool[np.ndarray, "block residue"], Float[np.ndarray, " permutation"]]:
    """Whether a linear probe names each residue in the block it was not fitted on, and accuracies on permuted labels.

    Ridge regression of the residue as one-hot on centred x; the largest output is the answer. Labels are permuted
    within each block, held-out ones as well, so that every block keeps one of each residue.
    """
    blocks, base, _ = x.shape
    labels = permuted(blocks, base, n=n_permutations, seed=seed)  # permutation block residue
    labels = np.concatenate([np.broadcast_to(np.arange(base), (1, blocks, base)), labels])
    hits = np.zeros(labels.shape, dtype=bool)
    for held_out in range(blocks):
        rest = np.delete(np.arange(blocks), held_out)
        train_x = x[rest].reshape(len(rest) * base, -1)
        mean = train_x.mean(0)
        train_x, test_x = train_x - mean, x[held_out] - mean
        kernel = train_x @ train_x.T
        weight = ridge * np.trace(kernel) / len(kernel)
        smoother = np.linalg.solve(kernel + max(weight, 1e-12) * np.eye(len(kernel)), train_x @ test_x.T).T
        one_hot = np.eye(base)[labels[:, rest].reshape(len(labels), -1)]  # permutation number residue
        hits[:, held_out] = (smoother @ one_hot).argmax(-1) == labels[:, held_out]
    return hits[0], hits[1:].mean((1, 2))


def permuted(blocks: int, base: int, *, n: int, seed: int) -> Int[np.ndarray, "permutation block residue"]:
    """Residues in a random order of its own in every block."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(base), (n, blocks, 1)), axis=-1)


def derangements(base: int, *, n: int, seed: int) -> Int[np.ndarray, "draw residue"]:
    """Random orders of the residues in which none is in its own place."""
    rng = np.random.default_rng(seed)
    orders: list[np.ndarray] = []
    while len(orders) < n:  # one order in e has no fixed point
        order = rng.permutation(base)
        if (order != np.arange(base)).all():
            orders.append(order)
    return np.array(orders)


def features(x: Float[np.ndarray, "*any block residue d"]) -> Float[np.ndarray, "*any block residue d"]:
    """f_r for use in a block: mean of x over the *other* blocks' members of residue r, less that over all residues.

    What is added to a number is then never made of it, nor of the number that should come out.
    """
    blocks = x.shape[-3]
    mean = (x.sum(-3, keepdims=True) - x) / (blocks - 1)
    return mean - mean.mean(-2, keepdims=True)


def shifted(
    logits: Float[np.ndarray, "head block residue member"],
    names: Int[np.ndarray, " residue"],
    own: Float[np.ndarray, "head block residue member"] | None = None,
) -> Int[np.ndarray, "head block residue residue"]:
    """Arg-max over members of l(x - f_a + f_b), [.. a b], for x of residue a; `names` says which feature is taken as f.

    Logits are linear in x, so that features of the logits are the logits of the features: those of the class means, or
    others' where given as `own`.
    """
    f = (features(logits) if own is None else own)[..., names, :]
    return (logits[..., :, None, :] - f[..., :, None, :] + f[..., None, :, :]).argmax(-1)


def arithmetic(
    argmax: Int[np.ndarray, "head block residue residue"], grid: Grid
) -> dict[str, Float[np.ndarray, "block head"]]:
    """Shares per block of x - a + b + 1 among what was picked for x - f_a + f_b, a != b.

    arithmetic: of b + 1 below the base. carry: of b + 1 = base, where the next block begins (NaN where that is no
    token). digit: only the last digit, (b + 1) mod base, has to be right.
    """
    base = grid.at.shape[1]
    target = np.broadcast_to(grid.after[None, :, None, :], argmax.shape)
    other = np.broadcast_to(~np.eye(base, dtype=bool), argmax.shape)
    inside = np.broadcast_to(np.arange(base) < base - 1, argmax.shape)
    digit = grid.rank[argmax] % base == (np.arange(base) + 1) % base
    return {
        "arithmetic": _share(argmax == target, other & inside),
        "carry": _share(argmax == target, other & ~inside & (target >= 0)),
        "digit": _share(digit, other),
    }


def _share(
    hit: Bool[np.ndarray, "head block residue residue"], mask: Bool[np.ndarray, "head block residue residue"]
) -> Float[np.ndarray, "block head"]:
    n = mask.sum((-1, -2))
    share = np.divide((hit & mask).sum((-1, -2)), n, out=np.full(n.shape, np.nan), where=n > 0)
    return share.T


def tuning(
    acts: Float[np.ndarray, "block residue neuron"], *, n_permutations: int, seed: int
) -> tuple[Float[np.ndarray, " neuron"], Float[np.ndarray, " neuron"], Float[np.ndarray, " neuron"]]:
    """Share of each neuron's variance within blocks that is between residues; its p; and p over all neurons at once.

    Labels are permuted within each block, for all neurons alike. p counts how often a neuron's own share is reached,
    the last one how often that of any neuron is: no more than that many of the labels are ever false, however seldom
    neurons fire (a neuron that fires for two numbers in all has them in one residue one time in `base`). The mean over
    permutations is 1 / blocks, exactly. 0 for a neuron that is constant.
    """
    blocks, base, _ = acts.shape
    inside = acts - acts.mean(1, keepdims=True)
    total = (inside**2).sum((0, 1))

    def share(x: np.ndarray) -> np.ndarray:
        between = blocks * (x.mean(0) ** 2).sum(0)
        return np.divide(between, total, out=np.zeros_like(total), where=total > 0)

    own = share(inside)
    n_reached, n_any_reached = np.ones_like(own), np.ones_like(own)
    for order in permuted(blocks, base, n=n_permutations, seed=seed):
        null = share(np.take_along_axis(inside, order[..., None], 1)) + 1e-9  # what only rounding tells apart is equal
        n_reached += null >= own
        n_any_reached += null.max() >= own
    return own, n_reached / (1 + n_permutations), n_any_reached / (1 + n_permutations)


def matched_sets(
    size: Float[np.ndarray, " neuron"], neurons: Int[np.ndarray, " k"], *, n: int, seed: int, near: int = 8
) -> list[Int[np.ndarray, " k"]]:
    """`n` sets of unchosen neurons of about the same `size`: each chosen one gives its place to one of the `near` next.

    Fewer, down to none, where there are not enough others.
    """
    rng = np.random.default_rng(seed)
    pool = np.setdiff1d(np.arange(len(size)), neurons)
    if len(pool) < len(neurons):
        return []
    sets = []
    for _ in range(n):
        candidates, drawn = pool.copy(), []
        for neuron in rng.permutation(neurons):
            close = np.argsort(np.abs(size[candidates] - size[neuron]), kind="stable")[:near]
            pick = rng.choice(close)
            drawn.append(candidates[pick])
            candidates = np.delete(candidates, pick)
        sets.append(np.array(drawn))
    return sets
