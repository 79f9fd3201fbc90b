"""Spectra over cycles, singular directions on the vocabulary, and the texts on which a unit is active."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny
from torch.testing import assert_close

import interp
from interp.errors import NotApplicable, SchemaError, SiteError
from interp.measurement.fourier import fourier_basis
from probes.features import fourier_spectrum, singular_tokens, top_examples


@pytest.mark.parametrize("n", [9, 10])
def test_the_basis_is_orthonormal_and_shares_are_those_of_the_fast_transform(n):
    assert_close(fourier_basis(n) @ fourier_basis(n).T, torch.eye(n), atol=1e-6, rtol=0)
    rows = torch.randn(n, 4) + 3
    spectrum = fourier_spectrum(rows, n_shuffles=20)
    power = np.abs(np.fft.rfft(rows.double().numpy(), axis=0)) ** 2
    power[1 : n - n // 2] *= 2  # each stands for two, but for the highest of an even cycle
    expected = power[1:].sum(1) / power[1:].sum()
    assert_allclose(spectrum.rows["value"].to_numpy(), expected, atol=1e-6, rtol=1e-6)
    assert_close(spectrum.basis.T @ spectrum.coefficients, rows, atol=1e-5, rtol=1e-5)


def test_a_planted_frequency_stands_out_of_random_orders():
    t = torch.arange(12) * 2 * torch.pi / 12
    wave = torch.outer((3 * t).cos(), torch.randn(8)) + torch.outer((3 * t).sin(), torch.randn(8))
    spectrum = fourier_spectrum(wave + 0.3 * torch.randn(12, 8) + 5)
    best = spectrum.rows.loc[spectrum.rows["value"].idxmax()]
    assert best["frequency"] == 3
    assert best["q"] < 0.05
    assert best["value"] > best["null_high"] > best["null"]
    assert best["ci_low"] <= best["value"] <= best["ci_high"]
    assert spectrum.rows.loc[spectrum.rows["frequency"] != 3, "p"].min() > 0.05
    # in random order n - 1 dimensions are shared out evenly, two for each frequency and one for the highest
    assert_allclose(spectrum.rows["null"].to_numpy(), np.array([2, 2, 2, 2, 2, 1]) / 11, atol=0.03, rtol=0)
    assert spectrum.directions(3).shape == (2, 8)
    assert len(spectrum.plot().data) == 2
    with pytest.raises(SchemaError, match="frequency 7"):
        spectrum.directions(7)
    with pytest.raises(SchemaError, match="all the same"):
        fourier_spectrum(torch.ones(5, 2))


def test_singular_directions_of_a_planted_copying_head_are_words_read_and_written():
    model = interp.load("zoo:planted-induction")
    table = singular_tokens(model, "L1H7", k=4, top=3)
    first = table[(table["side"] == "writes") & (table["value"] > 4)]
    assert len(first) == 4  # one end of each direction
    assert (first["p"] < 0.02).all()
    both = table[table["value"] > 4].groupby("direction")
    assert both["side"].nunique().eq(2).all()
    for _, rows in both:
        assert rows["tokens"].str[0].nunique() == 1  # the word that is read is the one that is written
        assert rows["sign"].nunique() == 1
    assert set(singular_tokens(model, "M0", k=2)["side"]) == {"writes"}


def test_projections_are_those_of_the_product():
    model = tiny("gpt2")
    table = singular_tokens(model, "L1H3", k=1, top=4)
    row = table[(table["side"] == "writes") & (table["sign"] == 1)].iloc[0]
    _, s, vh = torch.linalg.svd(model.weights().ov(1, 3, fold_norm=True).dense())
    logits = model.weights().unembed(vh[:1], fold_norm=True)[0]
    z = (logits - logits.mean()) / logits.std()
    ends = {
        tuple((sign * z).topk(4).indices.tolist()): float((sign * z).topk(4).values.square().mean().sqrt())
        for sign in (1, -1)
    }
    assert ends[tuple(row["tokens"])] == pytest.approx(row["value"], rel=1e-4)
    assert row["singular_value"] == pytest.approx(float(s[0]), rel=1e-4)
    assert row["share"] == pytest.approx(float(s[0] ** 2 / s.square().sum()), rel=1e-4)
    with pytest.raises(NotApplicable, match="M0"):
        singular_tokens(tiny("gpt_oss"), "M0")


@pytest.fixture(scope="module")
def corpus():
    return [torch.randint(3, 64, (5 + i % 4,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(23)]


def test_the_largest_are_those_of_the_whole_corpus(corpus):
    model = tiny("gpt2")
    run = [model.run([row], capture=["L1.mlp_post"])["L1.mlp_post"][0] for row in corpus]
    every = sorted(((float(x[at, 7]), i, at) for i, x in enumerate(run) for at in range(1, len(x))), reverse=True)
    found = top_examples(model, iter(corpus), "L1.mlp_post", 7, k=5, per_prompt=9, skip=1, batch_size=4, context=(2, 1))
    top = found.rows[found.rows["sample"] == "top"]
    assert_allclose(top["value"].to_numpy(), np.array([v for v, _, _ in every[:5]]), atol=1e-5, rtol=1e-4)
    assert list(zip(top["prompt"], top["position"], strict=True)) == [(i, at) for _, i, at in every[:5]]
    values = np.array([v for v, _, _ in every])
    assert (found.mean, found.sd, found.n) == (
        pytest.approx(values.mean(), abs=1e-5),
        pytest.approx(values.std(), abs=1e-5),
        len(values),
    )
    assert found.share == (values > 0).mean()
    first = top.iloc[0]
    row, at = corpus[first["prompt"]], first["position"]
    assert first["token"] == row[at]
    assert first["before"] == " ".join(map(str, row[max(0, at - 2) : at]))
    assert first["after"] == " ".join(map(str, row[at + 1 : at + 2]))
    assert first["z"] == pytest.approx((first["value"] - values.mean()) / values.std(), rel=1e-4)
    assert found.plot().data[0].type == "heatmap"


def test_directions_functions_and_the_other_end(corpus):
    model = tiny("llama")
    d = torch.randn(64)
    by_direction = top_examples(model, corpus, "L0.resid_post", d, k=3, largest=False)
    by_function = top_examples(model, corpus, "L0.resid_post", lambda x: -(x @ d), k=3)
    low, high = (f.rows[f.rows["sample"] == "top"] for f in (by_direction, by_function))
    assert_allclose(low["value"].to_numpy(), -high["value"].to_numpy(), atol=1e-4, rtol=1e-4)
    assert low["prompt"].is_unique  # one of each prompt
    sample = by_direction.rows[by_direction.rows["sample"] == "random"]
    assert len(sample) == 3
    with pytest.raises(SiteError, match="one head"):
        top_examples(model, corpus, "L0.z", 1)
    with pytest.raises(SiteError, match="no unit 64"):
        top_examples(model, corpus, "L0.resid_post", 64)
    with pytest.raises(SchemaError, match="no tokens"):
        top_examples(model, iter([]), "L0.resid_post", 1)


def test_each_token_is_as_likely_to_be_in_the_sample():
    model = tiny("gpt2")
    rows = torch.randint(3, 64, (10, 4))
    seen = np.zeros((10, 4))
    for seed in range(30):
        sample = top_examples(model, rows, "L0.resid_pre", 0, k=20, seed=seed, batch_size=10).rows
        sample = sample[sample["sample"] == "random"]
        np.add.at(seen, (sample["prompt"].to_numpy(), sample["position"].to_numpy()), 1)
    assert seen.sum() == 600
    assert abs(seen[:5].sum() - 300) < 40  # late ones are not favoured, nor early ones
