"""Attention as science: what uniform attention, no attention and tiny maps give by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from probe_cases import LENGTH, blind, column, variant
from tiny_models import WINDOW, tiny
from tolerance import assert_equal_to_rounding

import interp
from interp.errors import TaskError
from interp.measurement.prompts import T0
from interp.results.stats import LEAST_P, p_above
from probes.attention import temporal_context
from probes.relevance import divergence_map, flow, rollout
from probes.relevance._divergence import jensen_shannon
from probes.relevance._flow import max_flows, rolled_out


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_uniform_attention_has_the_closed_forms(architecture, prompts):
    model = blind(architecture)
    batch = model.batch(prompts)
    seen = np.arange(1, LENGTH + 1) if architecture == "llama" else np.minimum(np.arange(1, LENGTH + 1), WINDOW)
    found = interp.analyze(model, "entropy", prompts=prompts)
    assert_allclose(column(found, "focus"), 0, atol=1e-5)
    assert_allclose(column(found, "focus_without_first"), 0, atol=1e-4)
    assert_allclose(column(found, "nats"), np.log(seen[T0:]).mean(), atol=1e-4)
    assert_allclose(column(found, "nats", "null"), np.log(seen[T0:]).mean(), atol=1e-9)
    assert not variant(found, "focus")["label"].any()

    profile = interp.analyze(model, "offset_profile", prompts=prompts, furthest=8)
    assert_equal_to_rounding(column(profile, "profile"), (1 / seen[8:]).mean())
    assert_equal_to_rounding(column(profile, "profile"), column(profile, "profile", "null"))
    assert_allclose(column(profile, "beyond"), column(profile, "beyond", "null"), atol=1e-5)

    alike = divergence_map(model, prompts=prompts, n_rows=5)
    nats = math.log(LENGTH)  # a divergence is a difference of entropies
    assert_equal_to_rounding(alike.value, 0, scale=nats)
    assert_equal_to_rounding(alike.null, 0, scale=nats)
    assert (alike.q == 1).all()

    for method in (rollout, flow):
        map_ = method(model, batch, rows=[-1, 12])
        assert_allclose(map_.value, map_.null, atol=1e-5)
        assert_allclose(np.nansum(map_.value, -1), 1, atol=1e-5)


def test_no_attention_moves_nothing(prompts):
    """With the residual alone, rollout and flow are the identity."""
    for method in (rollout, flow):
        found = method(tiny("llama"), prompts, rows=[7], residual=1.0)
        expected = np.zeros((4, LENGTH))
        expected[:, 7] = 1
        assert_allclose(np.nan_to_num(found.value[:, 0]), expected, atol=1e-12)
        assert np.isnan(found.value[:, 0, 8:]).all()


def test_rollout_and_flow_of_three_tokens_by_hand():
    first = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    second = np.array([[1, 0, 0], [0.2, 0.8, 0], [0.3, 0.3, 0.4]])
    assert_allclose(rolled_out(np.stack([first, second]))[2], [0.3 + 0.15 + 0.1, 0.15 + 0.1, 0.2], atol=1e-12)
    # to token 0: 0.3 by itself, 0.3 through token 1 (which passes on 0.5), 0.25 of 0.4 through token 2
    expected = np.array([0.3 + 0.3 + 0.25, 0.3 + 0.25, 0.4])
    assert_allclose(max_flows(np.stack([first, second]), 2), expected / expected.sum(), atol=1e-6)


def test_divergence_of_equal_and_of_disjoint_rows():
    p = np.eye(4)[None, :2].repeat(2, 0)
    p[1] = np.eye(4)[2:]
    assert_allclose(jensen_shannon(p, p), [[0, math.log(2)], [math.log(2), 0]], atol=1e-12)


def test_the_temporal_context_curve_is_its_series():
    for beta_enc, beta_rec, gamma in np.random.default_rng(0).uniform(0.2, 1, (5, 3)):
        rho, drift = math.sqrt(1 - beta_enc**2), math.sqrt(1 - beta_rec**2)

        def match(lag, rho=rho, beta=beta_enc, gamma=gamma):
            return (1 - gamma) * beta * rho ** (lag - 1) * (lag >= 1) + gamma * rho ** abs(lag)

        series = [sum(drift**k * match(lag + k) for k in range(3000)) for lag in range(-5, 6)]
        assert_allclose(temporal_context.crp(*map(np.array, (beta_enc, beta_rec, gamma)), 5), series, rtol=1e-9)


def test_the_fit_returns_what_a_curve_was_made_of():
    made = temporal_context.crp(np.array([0.43]), np.array([0.71]), np.array([0.37]), 5)
    found = temporal_context.fit(3 * made + 1)
    assert_allclose([found.beta_enc[0], found.beta_rec[0], found.gamma[0]], [0.43, 0.71, 0.37], atol=2e-3)
    assert found.distance[0] < 1e-6
    assert temporal_context.distance(made)[0] < 0.02
    assert np.isnan(temporal_context.fit(np.ones((1, 11))).distance).all()


def test_a_single_peak_fits_the_temporal_context_model_only_at_lags_zero_and_one():
    """What misleads in cmr_distance: a pure stripe, without any of the graded flanks of memory, fits perfectly."""
    found = temporal_context.fit(np.eye(11))
    assert_allclose(found.distance[5:7], 0, atol=1e-9)
    assert (np.delete(found.distance, [5, 6]) > 0.7).all()
    assert_allclose(found.gamma[5:7], [1, 0])
    noise = temporal_context.distance(np.random.default_rng(0).normal(size=(500, 11)))
    assert 0.02 < (noise < 0.5).mean() < 0.2


def test_p_above():
    same = np.full((5, 2), 0.3)
    same[:, 1] = np.nan
    assert_allclose(p_above(same, margin=0.2), [0.5**5, np.nan])  # the sign test's
    assert_allclose(p_above(same, margin=0.3), [1, np.nan])
    sure = np.random.default_rng(0).normal(1e9, 1, size=(30, 1))
    assert p_above(sure) == LEAST_P
    with pytest.raises(TaskError, match="at least 3"):
        p_above(same[:2])
