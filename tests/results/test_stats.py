"""Nulls are null, intervals cover, corrections and matched sets are what they are called."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats as scipy_stats

from interp.results import stats


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("m", [3, 8, 16])
def test_p_is_uniform_under_the_null(m):
    draws = rng(m).normal(0.3, 0.05, size=(m + 1, 4000))
    p = stats.p_against_nulls(draws[0], draws[1:])
    assert scipy_stats.kstest(p, "uniform").pvalue > 0.01


def test_p_of_a_shifted_value_is_small_and_one_sided():
    null = rng().normal(0, 1, size=(16, 500))
    assert np.quantile(stats.p_against_nulls(np.full(500, 8.0), null), 0.99) < 1e-4
    assert np.quantile(stats.p_against_nulls(np.full(500, -8.0), null), 0.01) > 0.999


def test_p_is_students_prediction_interval():
    null = np.array([1.0, 2, 3, 4])
    t = (9 - 2.5) / (np.std(null, ddof=1) * np.sqrt(1.25))
    assert_allclose(stats.p_against_nulls(np.array([9.0]), null[:, None]), [scipy_stats.t.sf(t, 3)], rtol=1e-12)


def test_a_margin_is_a_smaller_value():
    draws = rng().normal(size=(9, 50))
    shifted = stats.p_against_nulls(draws[0], draws[1:], margin=0.4)
    assert_allclose(shifted, stats.p_against_nulls(draws[0] - 0.4, draws[1:]), rtol=1e-9)
    assert (shifted > stats.p_against_nulls(draws[0], draws[1:])).all()


def test_p_without_spread():
    null = np.full((5, 3), 0.25)
    assert_allclose(stats.p_against_nulls(np.array([0.25, 0.5, 0.0]), null), [0.5, 0, 1])


def test_p_needs_three_draws():
    with pytest.raises(ValueError, match="2 null draws are too few; at least 3"):
        stats.p_against_nulls(np.zeros(4), np.zeros((2, 4)))


@pytest.mark.parametrize("n", [30, 64])
def test_bootstrap_interval_covers_and_se_is_right(n):
    values = rng(n).exponential(1.0, size=(n, 400))
    found = stats.bootstrap_mean(values, seed=0)
    covered = ((found.low <= 1) & (found.high >= 1)).mean()
    assert 0.86 <= covered <= 0.97
    assert_allclose(found.mean, values.mean(0), rtol=1e-12)
    assert_allclose(found.se, values.std(0, ddof=1) / np.sqrt(n), rtol=1e-12)
    assert found.n == n
    narrow = stats.bootstrap_mean(values, seed=0, level=0.5)
    assert ((narrow.high - narrow.low) < (found.high - found.low)).all()


def test_bootstrap_resamples_whole_units_and_keeps_the_shape():
    values = rng().normal(size=(20, 3, 5))
    found = stats.bootstrap_mean(values, seed=7)
    assert all(x.shape == (3, 5) for x in found[:4])
    one = stats.bootstrap_mean(values[:, 1, 2], seed=7)
    assert_allclose([one.low, one.high], [found.low[1, 2], found.high[1, 2]], rtol=1e-12)
    assert_allclose(stats.bootstrap_mean(values, seed=7).low, found.low, rtol=0)
    assert np.abs(stats.bootstrap_mean(values, seed=8).low - found.low).max() > 0


def test_bootstrap_of_one_unit():
    found = stats.bootstrap_mean(np.array([[0.25, 0.5]]), seed=0)
    assert_allclose([found.mean, found.low, found.high], [[0.25, 0.5]] * 3)
    assert np.isnan(found.se).all()


def test_benjamini_hochberg_known_values():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert_allclose(stats.benjamini_hochberg(p), [0.02, 0.04, 0.04, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_benjamini_hochberg_by_definition(listed):
    p = np.array(listed)
    m, order = len(p), np.argsort(p, kind="stable")
    expected = np.empty(m)
    for rank, index in enumerate(order, start=1):
        expected[index] = min(1.0, *(p[order[k - 1]] * m / k for k in range(rank, m + 1)), 1.0)
    assert_allclose(stats.benjamini_hochberg(p), expected, rtol=1e-12)


def test_benjamini_hochberg_is_over_all_components_at_once():
    p = rng().uniform(size=(4, 6))
    assert_allclose(stats.benjamini_hochberg(p), stats.benjamini_hochberg(p.ravel()).reshape(4, 6))
    false = rng().uniform(size=(300, 100))
    assert np.mean([(stats.benjamini_hochberg(row) < 0.1).any() for row in false]) < 0.15


@pytest.mark.parametrize(("period", "expected"), [(20, 0.0329), (25, 0.0266), (50, 0.0136), (100, 0.0069)])
def test_uniform_causal_after_a_bos(period, expected):
    null = stats.uniform_causal(period + 1, 2 * period)
    harmonic = [sum(1 / i for i in range(1, n + 1)) for n in (2 * period + 1, period + 1)]
    assert_allclose(null, (harmonic[0] - harmonic[1]) / period, rtol=1e-12)
    assert_allclose(null, expected, atol=5e-5)


def test_uniform_causal_of_one_query():
    assert_allclose(stats.uniform_causal(0, 0), 1.0)
    assert_allclose(stats.uniform_causal(4, 4), 0.2)


POOL = [(layer, head) for layer in range(3) for head in range(4)]


def layers(heads):
    return sorted(layer for layer, _ in heads)


@given(st.sets(st.sampled_from(POOL), min_size=1, max_size=12), st.integers(0, 100))
def test_matched_sets(chosen, seed):
    chosen = sorted(chosen)
    sets = stats.matched_sets(chosen, POOL, n_sets=5, seed=seed)
    per_layer = [layers(chosen).count(layer) for layer in range(3)]
    same = math.prod(math.comb(4 - k, k) for k in per_layer)  # how many there are
    anywhere = math.comb(len(POOL) - len(chosen), len(chosen)) if same < 5 else 0
    found = {name: len(set(drawn)) for name, drawn in sets.items()}
    expected = {"same layers": min(5, same), "any layers": min(5, anywhere)}
    assert found == {name: count for name, count in expected.items() if count}
    for name, listed in sets.items():
        assert len(set(listed)) == len(listed)
        for drawn in listed:
            assert len(set(drawn)) == len(drawn) == len(chosen)
            assert set(drawn) <= set(POOL) - set(chosen)
            if name == "same layers":
                assert layers(drawn) == layers(chosen)
    assert stats.matched_sets(chosen, POOL, n_sets=5, seed=seed) == sets


def test_matched_sets_vary_and_follow_the_seed():
    first, other = (stats.matched_sets([(0, 0), (1, 1)], POOL, n_sets=6, seed=s)["same layers"] for s in (1, 2))
    assert len(set(first)) == 6
    assert first != other
