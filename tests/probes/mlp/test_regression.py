"""Component regression: planted coefficients come back, and what the data do not say is not claimed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mlp_written import HALF, WIDTH, amplifier, linear_mlp, prompts

from interp.errors import SchemaError
from probes.mlp import mlp_regression, regress


def planted(n, *, seed=0, noise=0.5, twin=None):
    """y = 2 x_0 - x_1 + c, twelve candidates in 64 dimensions; the third may be all but a copy of the first."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12, 64))
    if twin is not None:
        x[:, 2] = twin * x[:, 0] + np.sqrt(1 - twin**2) * x[:, 2]
    c = 3 * rng.normal(size=64)
    return x, 2 * x[:, 0] - x[:, 1] + c + noise * rng.normal(size=(n, 64)), c


TRUTH = np.array([2.0, -1.0, *[0.0] * 10])


@pytest.mark.parametrize(("n", "error"), [(50, 0.03), (200, 0.015), (1000, 0.005)])
def test_planted_coefficients_come_back(n, error):
    x, y, c = planted(n)
    fit = regress(x, y, draws=8)
    assert np.abs(fit.beta - TRUTH).max() <= error
    assert ((fit.low <= TRUTH) & (fit.high >= TRUTH)).sum() >= 10  # 95 % intervals of twelve
    assert fit.intercept @ c / np.linalg.norm(fit.intercept) / np.linalg.norm(c) > 0.999
    assert fit.r2 == pytest.approx(5 / 5.25, abs=0.01)
    assert fit.held_out == pytest.approx(fit.r2, abs=2 / n)
    np.testing.assert_allclose(fit.null_r2.mean(), 12 / (64 * n), rtol=0.6)
    assert (fit.null_held_out < 0.001).all()
    assert fit.condition == pytest.approx(1, abs=0.2)


def test_two_components_alike_say_so():
    x, y, _ = planted(200, twin=0.99)
    fit, alone = regress(x, y, draws=5), regress(*planted(200)[:2], draws=5)
    np.testing.assert_allclose(fit.vif[[0, 2]], 1 / (1 - 0.99**2), rtol=0.1)
    np.testing.assert_allclose(fit.vif[[1, *range(3, 12)]], 1, atol=0.02)
    assert fit.condition == pytest.approx(np.sqrt(1.99 / 0.01), rel=0.1)
    wide, narrow = fit.high - fit.low, alone.high - alone.low
    assert (wide[[0, 2]] > 5 * narrow[[0, 2]]).all()
    assert ((fit.low <= TRUTH) & (fit.high >= TRUTH))[[0, 2]].all()
    x[:, 2] = x[:, 0]
    same = regress(x, y, draws=5)
    assert np.isnan(same.beta[[0, 2]]).all()
    assert np.abs(same.beta - TRUTH)[[1, *range(3, 12)]].max() < 0.02


def test_a_constant_component_is_in_the_intercept():
    x, y, c = planted(60)
    x[:, 4] = x[0, 4]
    fit = regress(x, y + 5 * x[:, 4], draws=5)
    assert np.isnan(fit.beta[4])
    assert np.isnan(fit.vif[4])
    np.testing.assert_allclose(fit.intercept, c + 5 * x[0, 4], atol=0.4)


def test_whole_templates_are_held_out():
    """What holds of one template alone explains prompts of it, and nothing of the other."""
    x, y, _ = planted(80, noise=0.0)
    y[:40] -= 4 * x[:40, 0]  # the coefficient is -2 there and 2 here
    groups = [0] * 40 + [1] * 40
    assert regress(x, y, groups=groups, draws=5).held_out < -0.5
    assert regress(x, y, draws=5).held_out > 0.1


@pytest.fixture(scope="module")
def regression():
    return mlp_regression(amplifier(), task=prompts(amplifier(), 48), n_draws=10)


def test_what_an_mlp_amplifies_and_erases(regression):
    table = regression.table.assign(component=regression.table["component"].str.removesuffix(" -> M0"))
    beta = table[table["variant"] == "beta"].set_index("component")
    np.testing.assert_allclose(beta.loc[["L0H0", "L0H1", "L0H2", "L0H3"], "value"], [2, -1, 0, 0], atol=1e-4)
    roles = beta["role"].dropna().to_dict()
    assert roles == {"L0H0": "amplified", "L0H1": "erased"}
    whole = regression.table.set_index("variant")["value"]
    assert whole["r2"] == pytest.approx(1, abs=1e-6)
    assert whole["held_out_r2"] == pytest.approx(1, abs=1e-6)
    share = table[table["variant"] == "share"].set_index("component")["value"]
    assert share["L0H0"] + share["L0H1"] == pytest.approx(1, abs=0.1)  # they hardly go together


def test_the_intercept_points_where_the_answers_are():
    plain = linear_mlp(torch.zeros(WIDTH))
    w_u = plain.weights().w_u
    constant = 0.2 * (w_u[:, [9, 11]].mean(1) - w_u.mean(1))
    model = linear_mlp(torch.cat([torch.zeros(HALF), torch.ones(HALF)]), constant)
    task = prompts(model, 24)
    task.answers[:12], task.answers[12:] = 9, 11
    rows = mlp_regression(model, task=task, n_draws=5).table.set_index("variant").loc["intercept"]
    assert rows["value"] == pytest.approx(1, abs=1e-4)
    assert abs(rows["null"]) < 0.3
    assert rows["p"] < 1e-3


def test_the_rest_of_the_stream_as_one():
    table = mlp_regression(amplifier(), task=prompts(amplifier(), 32), regressors="layer", n_draws=5).table
    beta = table[table["variant"] == "beta"].set_index("component")["value"]
    assert list(beta.index) == [f"{name} -> M0" for name in ("L0", "L0H0", "L0H1", "L0H2", "L0H3")]
    np.testing.assert_allclose(beta[["L0H0 -> M0", "L0H1 -> M0"]], [2, -1], atol=1e-4)
    with pytest.raises(SchemaError, match="components or layer|unknown regressors"):
        mlp_regression(amplifier(), regressors="heads")
