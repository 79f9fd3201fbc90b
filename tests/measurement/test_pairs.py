"""Pairs of equal tokens in long prompts: a share of the queries, with all of their copies."""

from __future__ import annotations

import numpy as np
import torch

from interp import tasks
from interp.batch import Batch
from interp.measurement.pairs import copy_pairs

PROMPTS = torch.randint(5, (3, 60), generator=torch.Generator().manual_seed(0))


def by_hand(batch: Batch) -> set[tuple[int, int, int]]:
    return {
        (b, i, j)
        for b, (row, real) in enumerate(zip(batch.ids.tolist(), batch.mask.tolist(), strict=True))
        for i in range(len(row))
        for j in range(i)
        if row[i] == row[j] and real[i] and real[j]
    }


def listed(pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> list[tuple[int, int, int]]:
    return list(zip(*(x.tolist() for x in pairs), strict=True))


def test_pairs_and_copies_are_those_of_a_double_loop():
    for side in ("left", "right"):
        batch = Batch.of([PROMPTS[0].tolist(), PROMPTS[1, :9].tolist(), [4]], side=side)
        found = listed(tasks.earlier_equal_pairs(batch))
        assert len(found) == len(set(found))
        assert set(found) == by_hand(batch)
        count = np.zeros(batch.ids.shape, dtype=int)
        for b, i, _ in found:
            count[b, i] += 1
        assert tasks.earlier_copies(batch).tolist() == count.tolist()


def test_short_prompts_keep_every_query():
    batch = Batch.of(PROMPTS)
    rows = batch.positions >= 4
    pairs, share = copy_pairs(batch, rows, seed=0)
    assert share == 1
    assert set(listed(pairs)) == {(b, i, j) for b, i, j in by_hand(batch) if i >= 4}


def test_of_many_pairs_a_share_of_queries_keeps_all_its_copies():
    batch, every = Batch.of(PROMPTS), by_hand(Batch.of(PROMPTS))
    most = len(every) // 4
    pairs, share = copy_pairs(batch, batch.mask, seed=0, most=most)
    found = set(listed(pairs))
    queries = {(b, i) for b, i, _ in found}
    assert found == {(b, i, j) for b, i, j in every if (b, i) in queries}
    assert len(found) < 1.5 * most
    assert share == len(queries) / len({(b, i) for b, i, _ in every})
    assert {b for b, _ in queries} == {0, 1, 2}


def test_the_mean_over_drawn_queries_is_that_over_all():
    batch = Batch.of(PROMPTS[:1])

    def copies_each(pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
        return len(pairs[0]) / len(pairs[1].unique())

    whole = copies_each(tasks.earlier_equal_pairs(batch))
    drawn = [copies_each(copy_pairs(batch, batch.mask, seed=s, most=60)[0]) for s in range(200)]
    assert abs(np.mean(drawn) - whole) < 4 * np.std(drawn) / np.sqrt(len(drawn))


def test_memory_is_that_of_the_pairs_kept():
    batch = Batch.of(torch.zeros(1, 20_000, dtype=torch.long))  # 2e8 pairs
    pairs, share = copy_pairs(batch, batch.mask, seed=0)
    assert len(pairs[0]) < 1 << 19
    assert share < 0.002
