"""Nulls are null, intervals cover, corrections and matched sets are what they are called."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats as scipy_stats

from interp.errors import TaskError
from interp.results import stats

ROOT = Path(__file__).parents[2]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("m", [5, 8, 16])
def test_p_is_uniform_under_the_null(m):
    draws = rng(m).normal(0.3, 0.05, size=(m + 1, 4000))
    p = stats.p_against_nulls(draws[0], draws[1:])
    assert scipy_stats.kstest(p, "uniform").pvalue > 0.01


def test_p_of_a_shifted_value_is_small_and_one_sided():
    null = rng().normal(0, 1, size=(16, 500))
    assert np.quantile(stats.p_against_nulls(np.full(500, 8.0), null), 0.99) < 1e-4
    assert np.quantile(stats.p_against_nulls(np.full(500, -8.0), null), 0.01) > 0.999


def test_p_is_students_prediction_interval():
    null = np.array([1.0, 2, 3, 4, 5])
    t = (9 - 3) / (np.std(null, ddof=1) * np.sqrt(1.2))
    assert_allclose(stats.p_against_nulls(np.array([9.0]), null[:, None]), [scipy_stats.t.sf(t, 4)], rtol=1e-12)


def test_a_margin_is_a_smaller_value():
    draws = rng().normal(size=(9, 50))
    shifted = stats.p_against_nulls(draws[0], draws[1:], margin=0.4)
    assert_allclose(shifted, stats.p_against_nulls(draws[0] - 0.4, draws[1:]), rtol=1e-9)
    assert (shifted > stats.p_against_nulls(draws[0], draws[1:])).all()


def test_p_without_spread():
    null = np.full((5, 3), 0.25)
    found = stats.p_against_nulls(np.array([0.25, 0.5, 0.0]), null)
    assert_allclose(found, [0.5, stats.LEAST_P, 1])
    assert found[1] == stats.LEAST_P  # no certainty from draws that happen to agree


def test_differences_below_the_spacing_of_float32_are_none():
    null = np.full((6, 1), 0.25)
    assert stats.p_against_nulls(np.array([0.25 * (1 + 2e-8)]), null) > 0.4


def test_p_needs_five_draws():
    with pytest.raises(TaskError, match="4 null draws are too few for a test; at least 5"):
        stats.p_against_nulls(np.zeros(4), np.zeros((4, 4)))


def test_draws_that_do_not_exist_are_none():
    """p is that of the finite draws alone, and unknown where too few are left or the value is."""
    null = rng(3).normal(size=(9, 4))
    value = np.array([2.0, 2.0, 2.0, np.nan])
    holes = null.copy()
    holes[6:, 0], holes[4:, 1] = np.nan, np.inf
    found = stats.p_against_nulls(value, holes, margin=0.3)
    assert_allclose(found[0], stats.p_against_nulls(value[:1], null[:6, :1], margin=0.3)[0], rtol=1e-12)
    assert_allclose(found[2], stats.p_against_nulls(value[2:3], null[:, 2:3], margin=0.3)[0], rtol=1e-12)
    assert np.isnan(found[[1, 3]]).all()


def test_q_is_of_what_has_a_p():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    q = stats.benjamini_hochberg(p)
    assert np.isnan(q[0, 1])
    assert_allclose(q[~np.isnan(q)], scipy_stats.false_discovery_control(np.array([0.01, 0.04, 0.03])))
    assert np.isnan(stats.benjamini_hochberg(np.array([np.nan, np.nan]))).all()


def test_resampling_is_drawing_units_with_replacement():
    """Each row holds counts over n; over many draws each unit comes up once on average, with variance 1 - 1/n."""
    counts = stats.resample(8, seed=0, n_resamples=20_000) * 8
    assert_allclose(counts, counts.round(), atol=1e-12)
    assert_allclose(counts.sum(1), 8, rtol=1e-12)
    assert_allclose(counts.mean(0), 1, atol=0.03)
    assert_allclose(counts.var(0), 1 - 1 / 8, atol=0.04)
    assert (stats.resample(8, seed=0) == stats.resample(8, seed=np.random.default_rng(0))).all()


def test_bootstrap_of_a_ratio_is_the_quantiles_of_its_draws():
    a, b = rng(1).normal(3, 1, size=(12, 5)), rng(2).normal(2, 0.3, size=12)
    found = stats.bootstrap(lambda w: (w @ a) / (w @ b)[:, None], 12, seed=4, n_resamples=300, level=0.9)
    weights = np.random.default_rng(4).multinomial(12, np.full(12, 1 / 12), size=300) / 12
    expected = np.array([[(w @ column) / (w @ b) for column in a.T] for w in weights])
    assert_allclose(found.draws, expected, rtol=1e-12)
    assert_allclose([found.low, found.high], np.quantile(expected, [0.05, 0.95], axis=0), rtol=1e-12)
    assert_allclose(found.se, expected.std(0, ddof=1), rtol=1e-12)


def test_samples_are_resampled_one_after_another():
    """Each by itself: the spread of a difference is that of both, and a generator goes on from where it is."""
    a, b = rng(1).normal(size=400), rng(2).normal(0, 2, size=100)
    found = stats.bootstrap(lambda v, w: v @ a - w @ b, 400, 100, seed=3, n_resamples=4000)
    assert_allclose(found.se, np.sqrt(a.var() / 400 + b.var() / 100), rtol=0.06)
    generator = np.random.default_rng(3)
    again = stats.bootstrap(lambda v, w: v @ a - w @ b, 400, 100, seed=generator, n_resamples=4000)
    assert_allclose(again.draws, found.draws, rtol=0)
    further = stats.bootstrap(lambda v, w: v @ a - w @ b, 400, 100, seed=generator, n_resamples=4000)
    assert not (further.draws == found.draws).any()


def test_an_interval_around_a_value_holds_it_and_is_nan_without_one():
    values = rng().normal(size=(20, 3))
    plain, wide = (
        stats.bootstrap(lambda w: w @ values, 20, seed=0, around=around)
        for around in (None, np.array([-9.0, 9.0, np.nan]))
    )
    assert wide.low[0] == -9
    assert wide.high[0] == plain.high[0]
    assert wide.high[1] == 9
    assert wide.low[1] == plain.low[1]
    assert np.isnan([wide.low[2], wide.high[2]]).all()


def test_draws_that_are_not_defined():
    def undefined(w):
        return np.stack([np.where(np.arange(len(w)) < 5, np.nan, w[:, 0]), np.full(len(w), np.nan)], 1)

    assert np.isnan(stats.bootstrap(undefined, 6, seed=0)[:2]).all()
    left = stats.bootstrap(undefined, 6, seed=0, omit_nan=True)
    assert_allclose([left.low[0], left.high[0]], np.quantile(left.draws[5:, 0], [0.025, 0.975]))
    assert np.isnan([left.low[1], left.high[1]]).all()


def test_rank_correlation_is_scipys_over_known_pairs():
    a, b = rng(0).normal(size=40).round(1), rng(1).normal(size=40).round(1)  # with ties
    found, expected = stats.spearman(a, b), scipy_stats.spearmanr(a, b)
    assert_allclose(found, [expected.statistic, expected.pvalue], rtol=1e-12)
    a[3], b[7] = np.nan, np.nan
    known = np.setdiff1d(np.arange(40), [3, 7])
    assert_allclose(stats.spearman(a, b), stats.spearman(a[known], b[known]), rtol=0)


def test_rank_correlation_of_what_does_not_vary_is_nan():
    for a, b in (
        ([1, 1, 1, 1], [1, 2, 3, 4]),
        ([1, 2, 3], [5, 5, 5]),
        ([1], [2]),
        ([], []),
        ([1, 2, np.nan], [3, 3, 4]),
    ):
        assert np.isnan(stats.spearman(a, b)).all()
    assert stats.spearman([1, 2], [4, 3]).rho == pytest.approx(-1)
    assert np.isnan(stats.spearman([1, 2], [4, 3], least=3).rho)


def test_rank_correlations_of_rows():
    a, b = rng(0).normal(size=(6, 15)).round(1), rng(1).normal(size=(6, 15)).round(1)
    a[2] = 1.0
    expected = [stats.spearman(x, y).rho for x, y in zip(a, b, strict=True)]
    assert_allclose(stats.spearman_rows(a, b), expected, rtol=1e-12)
    assert np.isnan(expected[2])


def test_nothing_else_resamples_or_ranks():
    """One bootstrap and one Spearman; `relevance.agreement` ranks once for its permutations."""
    by_hand = re.compile(r"rng\.multinomial|\)\.multinomial|spearmanr|corrcoef\(.*rank|\.rank\(\).*corr")
    files = [path for package in ("interp", "probes", "circuits") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if by_hand.search(path.read_text(encoding="utf-8"))}
    assert found == {"interp/results/stats.py"}


@pytest.mark.parametrize("n", [30, 64])
def test_bootstrap_interval_covers_and_se_is_right(n):
    values = rng(n).exponential(1.0, size=(n, 400))
    found = stats.bootstrap_mean(values, seed=0)
    covered = ((found.low <= 1) & (found.high >= 1)).mean()
    assert 0.86 <= covered <= 0.97
    assert_allclose(found.mean, values.mean(0), rtol=1e-12)
    assert_allclose(found.se, values.std(0, ddof=1) / np.sqrt(n), rtol=1e-12)
    assert found.n == n
    width = stats.bootstrap_mean(rng(n).normal(size=(200, 200)), seed=0)  # that of a normal interval of 95 %
    assert_allclose(((width.high - width.low) / width.se).mean(), 2 * 1.96, rtol=0.02)
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


def test_three_units_are_enough_for_a_test():
    stats.enough_units(3)
    with pytest.raises(TaskError, match="2 prompts are too few for a test over prompts; at least 3"):
        stats.enough_units(2)
