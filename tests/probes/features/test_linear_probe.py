"""Probes read what is there, random labels say what they would read anyway, and their directions act."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression, Ridge
from tiny_models import tiny
from torch.testing import assert_close

from interp.errors import SchemaError, SiteError, TaskError
from interp.sites import Site
from probes.features import linear_probe
from probes.features.probe import Recipe, explained_share, fit, split

WORDS = (10, 11, 12, 13, 14, 15)


@pytest.fixture(scope="module")
def ids():
    """The last word is one of six, the others anything."""
    rows = torch.randint(20, 64, (60, 5), generator=torch.Generator().manual_seed(0))
    rows[:, -1] = torch.tensor(WORDS).repeat(10)
    return rows


def planted(n=400, d=6, seed=0):
    """Activations with a label along the channels 1 and 4, and noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, d)) * np.array([1, 2, 1, 3, 0.5, 1]) + 5
    x[:, 1] += 4 * y
    x[:, 4] -= 2 * y
    return x, y


def test_a_word_is_read_off_at_its_own_place_and_random_labels_of_words_are_memorised(ids):
    labels = np.where(ids[:, -1] > 12, "late", "early")
    here, there = linear_probe(tiny("gpt2"), ids, labels, site="L0.resid_pre", position=(-1, -3)).rows.to_dict(
        "records"
    )
    assert here["value"] == 1.0
    assert here["p"] < 0.01 < there["p"]
    assert abs(here["null"] - 0.5) < 0.25
    assert here["selectivity"] == here["value"] - here["null"]
    assert here["ci_low"] <= here["value"] <= here["ci_high"]
    assert here["n"] == 18
    by_word = linear_probe(tiny("gpt2"), ids, labels, site="L0.resid_pre", types=ids[:, -1].tolist()).rows.iloc[0]
    assert by_word["value"] == by_word["null"] == 1.0  # a probe that can learn any label of six words shows nothing
    assert by_word["selectivity"] == 0.0


def test_weights_are_those_of_scikit_learn_on_standardised_channels():
    x, y = planted()
    probe = fit(x, y, Recipe(), site=Site("resid_pre", 0), position=-1, seed=0)
    z = (x - x.mean(0)) / x.std(0)
    model = LogisticRegression(max_iter=2000).fit(z, y)
    assert_allclose(probe.scores(torch.from_numpy(x))[:, 0].numpy(), model.decision_function(z), atol=1e-4, rtol=1e-4)
    assert (probe.predict(torch.from_numpy(x)) == model.predict(z)).all()
    number = fit(x, y.astype(float), Recipe(strength=2.0), site=Site("resid_pre", 0), position=-1, seed=0)
    ridge = Ridge(alpha=2.0).fit(z, y.astype(float)).predict(z)
    assert_allclose(number.predict(torch.from_numpy(x)), ridge, atol=1e-5, rtol=1e-5)


def test_sparse_probes_choose_the_channels_that_hold_the_label():
    x, y = planted()
    place = {"site": Site("resid_pre", 0), "position": -1, "seed": 0}
    assert fit(x, y, Recipe(features=2), **place).features == (1, 4)
    assert set(fit(x, y, Recipe("l1", 50.0), **place).features) == {1, 4}
    assert set(fit(x, y.astype(float), Recipe("l1", 0.1), **place).features) == {1, 4}
    z = (x - x.mean(0)) / x.std(0)
    between = sum((y == c).mean() * z[y == c].mean(0) ** 2 for c in (0, 1))
    assert_allclose(explained_share(z, y), between)
    assert_allclose(explained_share(z, y.astype(float)), between, atol=1e-9, rtol=1e-9)  # eta^2 of two classes is r^2


def test_r_squared_is_about_the_mean_of_what_was_fitted_on(ids):
    model = tiny("gpt2")
    numbers = ids[:, -1].double()
    result = linear_probe(model, ids, numbers, site="L0.resid_pre", seed=3)
    test = split(np.arange(len(ids)), 0.3, seed=3)
    x = model.run(ids, capture=["L0.resid_pre"])["L0.resid_pre"][:, -1].double().numpy()
    y, guess = numbers.numpy(), result.best.predict(torch.from_numpy(x))
    expected = 1 - ((y - guess)[test] ** 2).sum() / ((y - y[~test].mean())[test] ** 2).sum()
    assert result.rows["value"].iloc[0] == pytest.approx(expected)
    assert result.rows["variant"].iloc[0] == "r2"
    assert result.rows["chance"].iloc[0] == 0


def test_every_token_is_an_example_and_a_prompt_stays_on_one_side(ids):
    rows = [row[: 3 + i % 3].tolist() for i, row in enumerate(ids[:30])]
    labels = [[token > 40 for token in row] for row in rows]
    found = linear_probe(tiny("llama"), rows, labels, site="L0.resid_pre", position=None)
    assert found.rows["n"].iloc[0] == 9
    assert found.best.position is None
    assert found.rows["train"].iloc[0] == 1.0
    groups = np.repeat(np.arange(10), 3)
    sides = split(groups, 0.3, seed=1).reshape(10, 3)
    assert (sides == sides[:, :1]).all()
    assert sides[:, 0].sum() == 3


@pytest.mark.parametrize("site", ["L0.resid_post", "L0H2.z"])
def test_what_is_ablated_is_not_read_any_more_and_what_is_added_is(ids, site):
    model = tiny("llama")
    probe = linear_probe(model, ids, ids[:, -1] % 3, site=site, batch_size=25)[site]
    raw = model.run(ids, capture=[site])[site]
    gone = model.run(ids, capture=[site], edits=probe.ablate())[site]
    assert_close(probe.scores(gone), probe.scores(probe.mean).expand(*gone.shape[:2], -1), atol=1e-4, rtol=1e-4)
    rows = probe.weights
    other = torch.randn(rows.shape[1])
    other -= torch.linalg.lstsq(rows.mT, other[:, None]).solution[:, 0] @ rows
    assert_close(gone @ other, raw @ other, atol=1e-4, rtol=1e-4)  # nothing else is touched
    more = model.run(ids, capture=[site], edits=probe.add(2.0, 1))[site]
    assert_close(more - raw, (2 * probe.direction(1)).expand_as(raw), atol=1e-5, rtol=1e-4)
    assert probe.direction(1) @ (rows[1] - rows.mean(0)) > 0
    if site == "L0H2.z":
        whole, changed = (model.run(ids, capture=["L0.z"], edits=e)["L0.z"] for e in ([], probe.ablate()))
        assert_close(whole[:, :, [0, 1, 3]], changed[:, :, [0, 1, 3]], atol=0, rtol=0)


def test_one_probe_per_layer_and_head_with_its_figure_and_provenance(ids):
    model = tiny("gpt2")
    heads = linear_probe(model, ids, ids[:, -1] % 2, site="z", n_controls=5)
    assert len(heads.probes) == len(heads.rows) == 2 * 8
    assert heads.plot().data[0].type == "heatmap"
    assert heads.provenance["method"] == "linear-probe"
    assert heads["L1H3.z"].site == Site("z", 1, head=3)
    layers = linear_probe(model, ids, ids[:, -1] % 2, position=(-1, -2))
    assert len(layers.plot().data) == 4
    assert len(repr(layers)) < 200
    with pytest.raises(SiteError, match="2 probes"):
        layers["L0.resid_post"]


def test_refusals(ids):
    model = tiny("gpt2")
    with pytest.raises(TaskError, match="60 prompts"):
        linear_probe(model, ids, [0, 1])
    with pytest.raises(TaskError, match="one label alone"):
        linear_probe(model, ids, [0] * 60)
    with pytest.raises(TaskError, match="too few"):
        linear_probe(model, ids, ids[:, 0], n_controls=2)
    with pytest.raises(SiteError, match="a vector per token"):
        linear_probe(model, ids, ids[:, 0], site="L0.pattern")
    with pytest.raises(SchemaError, match="one side empty"):
        linear_probe(model, ids, ids[:, 0] % 2, held_out=0)
    with pytest.raises(SchemaError, match="penalty"):
        linear_probe(model, ids, ids[:, 0] % 2, penalty="l3")
    with pytest.raises(TaskError, match="3 labels apart"):
        linear_probe(model, ids, ids[:, -1] % 3, site="L0.resid_pre").best.direction()
