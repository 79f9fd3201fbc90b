"""Maps of components and of layers by positions; square maps of pairs; embeddings without axes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny

from interp.decompose import attribute, decompose, logit_lens, score_parts
from interp.errors import SchemaError
from interp.patching.nodes import NodeScores
from interp.plots import component_map, embedding, layer_map, pair_map
from interp.sites import Site
from interp.weights.composition import composition

IDS = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return tiny("gpt2")


def test_components_stand_at_their_layer_and_kind_and_parts_of_one_are_summed():
    rows = [("embed", None, None, 1.0), ("pos", None, None, 0.5), ("head", 0, 1, 2.0), ("source", 0, 1, 3.0)]
    rows += [("mlp", 1, None, -4.0), ("bias", 1, None, 0.25), ("bias", None, None, 8.0), ("attn", 1, None, 7.0)]
    table = pd.DataFrame(rows, columns=["kind", "layer", "head", "value"])
    heat = component_map(table).data[0]
    assert (list(heat.y), list(heat.x)) == (["start", "0", "1", "end"], ["1", "attention", "MLP", "other"])
    expected = [[np.nan] * 3 + [1.5], [5.0] + [np.nan] * 3, [np.nan, 7.0, -4.0, 0.25], [np.nan] * 3 + [8.0]]
    assert_allclose(np.array(heat.z), expected)
    assert heat.colorbar.title.text == "logit"
    with pytest.raises(SchemaError, match="no rows"):
        component_map(table[:0])


def test_an_attribution_is_drawn_whole(model):
    found = attribute(model, IDS, 5)
    for prompt, logit in ((None, found.logit.mean()), (1, found.logit[1])):
        heat = found.plot(prompt=prompt).data[0]
        assert np.nansum(np.array(heat.z, dtype=float)) == pytest.approx(float(logit), abs=1e-4)
    assert_allclose(np.array(found.plot(prompt=1).data[0].z)[1, :8], found.heads[0, :, 1], atol=1e-6)
    assert model.info.name in found.plot().layout.title.text.replace("\u00a0", " ")
    with pytest.raises(SchemaError, match="prompt 7: there are 0 to 1"):
        found.plot(prompt=7)


def test_a_decomposition_is_drawn_by_shares_that_sum_to_one(model):
    heat = decompose(model, IDS).plot().data[0]
    assert np.nansum(np.array(heat.z, dtype=float)) == pytest.approx(1, abs=1e-5)
    assert heat.colorbar.title.text == "share"


def test_a_lens_is_drawn_over_layers_and_the_positions_of_one_prompt(model):
    lens = logit_lens(model, IDS, answer=5)
    heat, words = lens.plot(prompt=1).data
    assert_allclose(np.array(heat.z), lens.p[:, 1])
    assert list(words.text)[:6] == [str(i) for i in lens.top_ids[0, 1, :, 0].tolist()]
    assert_allclose(np.array(lens.plot("kl").data[0].z), lens.kl[:, 0])
    assert lens.plot("rank").data[0].colorbar.title.text == "rank"
    assert_allclose(np.array(logit_lens(model, IDS).plot().data[0].z), logit_lens(model, IDS).top_p[:, 0, :, 0])
    assert list(lens.plot().layout.xaxis.ticktext) == [str(i) for i in IDS[0].tolist()]
    with pytest.raises(SchemaError, match="no reading 'klm'; did you mean 'kl'"):
        lens.plot("klm")
    with pytest.raises(SchemaError, match="prompt 2"):
        lens.plot(prompt=2)


def test_only_real_positions_are_drawn(model):
    padded = model.batch([[5, 6, 7], [8, 9]])
    assert np.array(logit_lens(model, padded).plot(prompt=1).data[0].z).shape == (model.info.n_layers, 2)


def test_words_are_cut_to_their_cells_and_left_out_where_there_are_many():
    words = [["extraordinarily"] * 20]
    heat, text = layer_map(np.zeros((1, 20)), [0], ["a"] * 20, unit="probability", words=words).data
    assert text.text[0] == "extr…"
    assert heat.customdata[0][0] == "a → extraordinarily"
    assert len(layer_map(np.zeros((1, 30)), [0], ["a"] * 30, unit="nats", words=[["b"] * 30]).data) == 1
    with pytest.raises(SchemaError, match="for 1 layers and 2 tokens"):
        layer_map(np.zeros((1, 3)), [0], ["a", "b"], unit="nats")


def test_maps_of_pairs_are_square_with_named_axes(model):
    figures = [
        composition(model.weights(), "k").plot(),
        score_parts(model, IDS, "L1H0").plot(),
        pair_map(np.eye(3), ["a", "b", "c"], down="writer", across="reader"),
    ]
    for figure in figures:
        assert np.array(figure.data[0].z).shape[0] == np.array(figure.data[0].z).shape[1]
        assert (figure.layout.yaxis.scaleanchor, figure.layout.yaxis.scaleratio) == ("x", 1)
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text
    assert figures[2].layout.yaxis.title.text == "writer"


def test_composition_is_drawn_above_its_baseline(model):
    found = composition(model.weights(), "q")
    n = found.score.shape[0] * found.score.shape[1]
    assert_allclose(np.array(found.plot().data[0].z), (found.score - found.baseline).reshape(n, n), atol=1e-6)


def test_parts_of_a_score_are_drawn_as_their_mean(model):
    found = score_parts(model, IDS, "L1H0")
    z = np.array(found.plot().data[0].z)
    assert_allclose(z, found.values[..., found.mask].mean(-1), atol=1e-6)


def test_node_scores_are_a_panel_for_each_kind_of_node():
    sites = (Site("z", 0, head=0), Site("z", 0, head=1), Site("mlp_out", 0))
    provenance = {"metric": "logit_diff", "model": {"name": "mine"}, "data": {"n_prompts": 2}}
    prompts = np.array([[1.0, -2.0, 0.5], [3.0, -2.0, 0.5]])
    figure = NodeScores(sites, ("L0H0", "L0H1", "M0"), prompts, provenance).plot()
    heads, mlps = figure.data
    assert_allclose(np.array(heads.z), [[2.0, -2.0]])
    assert_allclose(np.array(mlps.y), [0.5])
    assert figure.layout.title.text.replace("\u00a0", " ").startswith("mine · node attribution · 2 prompts")


def test_an_embedding_names_the_outermost_and_has_no_axes():
    points = np.random.default_rng(0).normal(size=(60, 2))
    heads, names = embedding(points, [f"L0H{i}" for i in range(60)], named=5).data
    told = [i for i, name in enumerate(names.text) if name]
    assert 0 < len(told) <= 5
    distance = np.linalg.norm(points - points.mean(0), axis=1)
    assert distance[told].min() > np.median(distance)
    assert len(heads.text) == 60
    figure = embedding(points, [str(i) for i in range(60)])
    assert (figure.layout.xaxis.visible, figure.layout.yaxis.visible) == (False, False)
