"""Intervals of the successor score that resample classes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import interp
from probes.heads._successor import over_classes


def test_classes_that_differ_say_more_than_their_many_words():
    hits = np.repeat([1.0, 0.0], [30, 30]).reshape(60, 1, 1)
    low, high = over_classes(hits, [30, 30], seed=0)
    assert_allclose([low.item(), high.item()], [0, 1])  # only 0, a half and 1 can be drawn
    low, high = over_classes(np.tile([1.0, 0.0], 30).reshape(60, 1, 1), [30, 20, 10], seed=0)
    assert_allclose([low.item(), high.item()], [0.5, 0.5])  # all alike: nothing to vary


def test_larger_classes_weigh_more_and_one_class_says_nothing():
    hits = np.repeat([1.0, 0.0], [40, 10]).reshape(50, 1, 1)
    drawn = np.random.default_rng(0).multinomial(2, [0.5, 0.5], size=1000)
    share = drawn[:, 0] * 40 / (drawn @ [40, 10])
    low, high = over_classes(hits, [40, 10], seed=0)
    assert_allclose([low.item(), high.item()], np.quantile(share, [0.025, 0.975]))
    assert all(np.isnan(x).all() for x in over_classes(hits, [50], seed=0))


@pytest.fixture(scope="module")
def rows():
    found = interp.analyze(interp.load("zoo:default"), "successor", causal=False)
    return found.table[found.table["variant"] == "full"].set_index("component")


def test_in_the_trained_model_classes_differ(rows):
    """L2H6 counts days and months and hardly numbers: over classes its score is far less sure than over words."""
    head = rows.loc["L2H6"]
    assert head["class_low"] <= head["value"] <= head["class_high"]
    assert head["class_high"] - head["class_low"] > 1.5 * (head["ci_high"] - head["ci_low"])
    assert rows["class_low"].notna().all()
