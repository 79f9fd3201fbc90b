"""Attention scores by pairs of sources, beside the model's own scores and runs with a feature taken out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dictionaries_made import random_dictionary, transcoders
from numpy.testing import assert_allclose
from tiny_models import SPANNING, build, tiny

import interp
from circuits.features.attribute import attribution_graph
from circuits.features.score_pairs import score_pairs
from interp.dictionaries import Dictionaries, Dictionary, ablate_features
from interp.edits import Scale
from interp.errors import NotApplicable, SchemaError, SiteError
from interp.results.stats import spearman

IDS = [5, 6, 7, 8, 9, 5]


@pytest.mark.parametrize("name", SPANNING)
def test_pairs_sum_to_the_score_and_name_the_nodes_of_the_graph(name):
    model, d = tiny(name), transcoders()
    run = model.run([IDS], capture=["L1.q", "L1.k"])
    q, k = (run[site][0].double() for site in ("L1.q", "L1.k"))
    group = q.shape[1] // k.shape[1]
    pairs = score_pairs(model, IDS, "L1H2", d, query=4, key=3, k=7)
    expected = model.weights()[1].scale * float(q[4, 2] @ k[3, 2 // group])
    assert pairs.error < 1e-5 and abs(float(pairs.values.sum()) - expected) < 1e-5 * max(1, abs(expected))
    assert len(pairs.table) == 7 and 0 < pairs.kept < 1
    sizes = pairs.values.abs().flatten().double()
    assert pairs.kept == pytest.approx(float(sizes.topk(7).values.sum() / sizes.sum()), rel=1e-4)
    kinds = {source.split(":")[0] for source in pairs.key_sources}
    assert {"feature", "error", "embedding", "rest", "bias", "L0H1@3"} <= kinds


def test_a_feature_taken_out_changes_the_score_by_its_pairs():
    """In the model itself: what follows beside the pairs is the divisor of the norm, by which it is made up for."""
    model = tiny("llama")
    d = Dictionaries((random_dictionary("L0.mlp_in", "L0.mlp_out", n=40),))
    query, key, head = 5, 3, 1
    pairs = score_pairs(model, attribution_graph(model, IDS, d, max_features=5), f"L1H{head}", d, query=query, key=key)
    sites = ["L1.scores", "L1.norm_scale"]
    clean = model.run([IDS], capture=sites)
    mine = pairs.by_source("key")
    features = [name for name in mine.index if name.startswith("feature")]
    real, held = [], []
    for name in features:
        number = int(name.split(":")[2].split("@")[0])
        out = model.run([IDS], capture=sites, edits=[ablate_features(d, number, positions=key)])
        score = float(out["L1.scores"][0, head, query, key])
        real.append(score - pairs.score)
        held.append(score * float(out["L1.norm_scale"][0, key] / clean["L1.norm_scale"][0, key]) - pairs.score)
    predicted = -mine[features].to_numpy()
    assert len(features) > 10 and np.abs(predicted).max() > 0.05
    assert_allclose(held, predicted, atol=1e-4)
    assert spearman(predicted, real).rho > 0.9
    rolled = [spearman(np.roll(predicted, shift), real).rho for shift in range(3, len(predicted) - 3)]
    assert abs(np.mean(rolled)) < 0.2
    best = pairs.table[pairs.table["key_source"].str.startswith("feature")].iloc[0]
    row, column = pairs.query_sources.index(best.query_source), pairs.key_sources.index(best.key_source)
    assert float(pairs.values[row, column]) == pytest.approx(best.value, rel=1e-5)


def test_a_planted_pair_is_the_score():
    """Two neurons, each of one token, write along what a head matches best: the score is that of these two."""
    module = build("opt")
    first, second = module.model.decoder.layers[0], interp.load(module).weights()[1]
    u, _, v = torch.linalg.svd(second.w_q[0] @ second.w_k[0].mT)
    x = interp.load(module).run([IDS], capture=["L0.mlp_in"])["L0.mlp_in"][0]
    with torch.no_grad():
        first.fc1.weight[:2], first.fc1.bias[:2] = torch.linalg.pinv(x)[:, [4, 2]].mT, -0.5
        first.fc2.weight[:, :2] = 100 * torch.stack([u[:, 0] - u[:, 0].mean(), v[0] - v[0].mean()]).mT
    w = [first.fc1.weight.mT, first.fc2.weight.mT, first.fc1.bias, first.fc2.bias]
    d = Dictionary(*(p.detach() for p in w)).at("L0.mlp_in", "L0.mlp_out")
    pairs = score_pairs(interp.load(module), IDS, "L1H0", d, query=4, key=2)
    best = pairs.table.iloc[0]
    assert (best.query_source, best.key_source) == ("feature:L0.mlp_in:0@4", "feature:L0.mlp_in:1@2")
    assert best.value == pytest.approx(pairs.score, rel=0.2) and pairs.kept > 0.8
    assert abs(score_pairs(interp.load(module), IDS, "L1H0", d, query=3, key=1).score) < 0.2 * best.value


def test_neurons_stand_for_mlps_without_a_dictionary_and_scores_follow_edits():
    model = tiny("gpt2")
    pairs = score_pairs(model, IDS, "L1H0")
    assert (pairs.query, pairs.key) == (5, 0) and pairs.error < 1e-5
    errors = [size for name, size in pairs.by_source().items() if name.startswith("error")]
    assert np.abs(errors).max(initial=0.0) < 1e-5 and any(name.startswith("feature") for name in pairs.key_sources)
    half = score_pairs(model, IDS, "L1H0", transcoders(), edits=[Scale("L0.attn_out", 0.5)])
    with model.editing([Scale("L0.attn_out", 0.5)]):
        run = model.run([IDS], capture=["L1.scores"])
    assert half.score == pytest.approx(float(run["L1.scores"][0, 0, 5, 0]), abs=1e-5)
    first = score_pairs(model, IDS, "L0H3", transcoders(), query=2)
    assert first.query_sources == ("embedding:embed:7@2", "rest", "bias")


def test_refusals():
    model, d = tiny("gpt2"), transcoders()
    for options, error, why in (
        ({"query": 9}, SiteError, "query 9"),
        ({"query": 1, "key": 2}, SiteError, "does not see"),
        ({"k": 0}, SchemaError, "at least 1"),
    ):
        with pytest.raises(error, match=why):
            score_pairs(model, IDS, "L1H0", d, **options)
    with pytest.raises(SiteError, match="out of range"):
        score_pairs(model, IDS, "L7H0", d)
    with pytest.raises(NotApplicable, match="those of MLPs"):
        score_pairs(model, IDS, "L1H0", random_dictionary("L0.resid_post"))
    with pytest.raises(SchemaError, match="side"):
        score_pairs(model, IDS, "L1H0", d).by_source("both")
