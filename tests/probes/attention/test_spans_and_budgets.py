"""Funnels, chunks and spans: closed forms, dense oracles, planted heads, and masks that are really put on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from probe_cases import blind, column, eager, named, variant
from tiny_models import CONFIGS, build, tiny
from transformers import GPT2Config

import interp
from interp.batch import Batch
from interp.edits import KnockOut, Replace
from interp.errors import NotApplicable, SchemaError
from interp.measurement.checks.backend import random_module
from interp.tokens.losses import token_losses
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import Retrieval
from interp.zoo.relu_llama import ReluLlamaConfig, ReluLlamaForCausalLM
from probes.attention._chunk_selection import chunk_masks
from probes.attention._funnel import pyramid
from probes.attention._span_profile import beyond_span, needed_span, span_changes


@pytest.fixture(scope="module")
def relu():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    return interp.load(ReluLlamaForCausalLM(ReluLlamaConfig(vocab_size=64, hidden_size=32, **sizes)).eval())


def funnel_model():
    """Two layers, the first uniform and the second sharp."""
    module = build("llama", seed=1, scale=1.0)
    layers = module.model.layers
    for gain, layer in zip((0.0, 120.0), layers, strict=True):
        layer.self_attn.q_proj.weight.data.mul_(gain)
    return interp.load(module)


def test_budgets_are_in_an_arithmetic_progression():
    assert_array_equal(pyramid(8, 4, 4.0), [14, 10, 6, 2])
    assert_array_equal(pyramid(8, 4, 1.0), [8, 8, 8, 8])
    assert_array_equal(pyramid(5, 1, 4.0), [5])
    for n in range(1, 9):
        budgets = pyramid(7, n, 3.0)
        assert budgets.sum() == 7 * n
        assert (np.diff(budgets) <= 0).all()
        assert budgets.min() >= 1


def test_a_planted_funnel(prompts):
    found = interp.analyze(funnel_model(), "funnel", prompts=prompts, budget=4, n_rows=3)
    coverage, entropy = variant(found, "coverage"), variant(found, "entropy")
    assert coverage["value"]["A1"] > coverage["value"]["A0"] + 0.2
    assert list(coverage.index[coverage["label"].astype(bool)]) == ["A1"]
    assert entropy["value"]["A0"] == pytest.approx(1, abs=1e-5)
    assert entropy["value"]["A1"] < 0.8
    curve = found.table[found.table["variant"] == "curve"]
    for _, own in curve.groupby("component"):
        assert (np.diff(own.sort_values("position")["value"]) > 0).all()
    assert_allclose(curve[curve["component"] == "A0"]["value"], curve[curve["component"] == "A0"]["null"], rtol=1e-5)
    assert_array_equal(column(found, "budget"), [7, 1])


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_coverage_is_that_of_dense_rows(name, prompts):
    model, batch = tiny(name), Batch.of(prompts)
    found = interp.analyze(model, "funnel", prompts=prompts, budget=5, n_rows=4, steepness=5.0)
    rows = np.sort(eager(model, batch)[..., -4:, :], axis=-1)[..., ::-1]  # layer prompt head row key
    assert_allclose(column(found, "coverage"), rows[..., :5].sum(-1).mean((1, 2, 3)), rtol=1e-5)
    pyramids = [rows[0, ..., :9].sum(-1).mean(), rows[1, ..., :1].sum(-1).mean()]
    assert_allclose(column(found, "pyramid"), pyramids, rtol=1e-5)
    seen = np.minimum(np.arange(37, 41), model.info.windows[0] or 99)
    nats = -(rows * np.log(np.maximum(rows, 1e-30))).sum(-1)
    assert_allclose(column(found, "entropy"), (nats / np.log(seen)).mean((1, 2, 3)), rtol=1e-5)
    assert_allclose(column(found, "coverage", "null"), (5 / seen).mean(), rtol=1e-12)


def test_depth_is_a_correlation_of_three_layers_or_more(prompts):
    module = random_module(GPT2Config(**{**CONFIGS["gpt2"][1], "n_layer": 3}), seed=1, scale=1.0)
    for gain, block in zip((0.0, 20.0, 100.0), module.transformer.h, strict=True):
        block.attn.c_attn.weight.data[:, :64].mul_(gain)
        block.attn.c_attn.bias.data[:64].mul_(gain)
    found = interp.analyze(interp.load(module), "funnel", prompts=prompts)
    assert (np.diff(column(found, "entropy")) < 0).all()
    assert column(found, "depth")[0] < -0.5
    assert np.isnan(column(interp.analyze(tiny("llama"), "funnel", prompts=prompts), "depth")).all()
    with pytest.raises(SchemaError, match="steepness 0.5"):
        interp.analyze(tiny("llama"), "funnel", steepness=0.5)


def test_chunks_lie_between_the_first_token_and_the_last_chunk():
    batch = Batch.of([list(range(1, 15)), list(range(1, 12))])
    masks = chunk_masks(batch, 3)
    assert masks.shape == (2, 3, 14)
    assert [row.nonzero()[:, 0].tolist() for row in masks[0]] == [[8, 9, 10], [5, 6, 7], [2, 3, 4]]
    assert [row.nonzero()[:, 0].tolist() for row in masks[1]] == [[5, 6, 7], [2, 3, 4], []]


def test_chunk_scores_are_those_of_dense_patterns_and_mean_keys(prompts):
    model, batch = tiny("llama"), Batch.of(prompts)
    found = interp.analyze(model, "chunk_selection", prompts=prompts, chunk=6, kept=2)
    pattern = eager(model, batch)[..., -1, :]  # layer prompt head key
    masks = chunk_masks(batch, 6)[0].numpy()
    values = {name: np.zeros(pattern.shape[:3]) for name in ("selected", "oracle", "hit", "gain")}
    for layer in range(2):
        acts = model.run(batch, capture=[f"L{layer}.q", f"L{layer}.k"])
        q, k = (acts[f"L{layer}.{kind}"].double().numpy() for kind in "qk")
        for b in range(4):
            for h in range(8):
                mass = [pattern[layer, b, h, m].sum() for m in masks]
                fit = [q[b, -1, h] @ k[b, m, h // 4].mean(0) for m in masks]
                best = np.argsort(fit)[-2:]
                at = layer, b, h
                values["selected"][at] = sum(mass[c] for c in best)
                values["oracle"][at] = sum(sorted(mass)[-2:])
                values["hit"][at] = int(np.argmax(mass)) in best
                values["gain"][at] = values["selected"][at] - 2 / len(masks) * sum(mass)
    for name, value in values.items():
        assert_allclose(column(found, name), value.mean(1).ravel(), rtol=1e-4, atol=1e-6, err_msg=name)
    assert_allclose(column(found, "hit", "null"), 2 / len(masks))


def test_the_chunk_of_a_planted_needle_is_chosen():
    made = factory.plant([Retrieval()], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    tokens = made.task("retrieval", seed=1, n=24).tokens
    found = interp.analyze(model, "chunk_selection", prompts=tokens, chunk=3, kept=1)
    (head,) = named(made, "retrieval")
    rows = variant(found, "gain")
    assert list(rows.index[rows["label"].astype(bool)]) == [head]
    with pytest.raises(NotApplicable, match="chunks kept of"):
        interp.analyze(model, "chunk_selection", prompts=tokens, kept=60)


def test_far_pairs():
    batch = Batch.of([[1, 2, 3, 4, 5]])
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[3, 1] = expected[4, 1] = expected[4, 2] = True
    assert torch.equal(beyond_span(batch, 2, 1)[0], expected)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_a_change_is_the_slope_towards_the_masked_row(name, prompts):
    model, batch = tiny(name), Batch.of(prompts[:2])
    change, mass, chance = span_changes(model, batch, [3, 9], sinks=1)
    assert change.shape == (2, 2, 2, 8)

    def loss(edits=()):
        logits = model.run(batch, edits=edits).logits
        return token_losses(logits.double(), batch.ids, batch.mask).mean(1)

    site, pairs, step = "L1H3.pattern", beyond_span(batch, 9, 1), 1e-2
    z = model.run(batch, capture=["L1H3.z"])["L1H3.z"]
    masked = model.run(batch, capture=["L1H3.z"], edits=[KnockOut(site, pairs=pairs, renormalise=True)])["L1H3.z"]
    up, down = (loss([Replace("L1H3.z", z + s * step * (masked - z))]) for s in (1, -1))
    assert_allclose(change[:, 1, 1, 3], ((up - down) / (2 * step)).numpy(), rtol=0.02, atol=2e-5)
    pattern = eager(model, batch)[1, :, 3] if name == "llama" else None
    if pattern is not None:
        far = beyond_span(batch, 3, 1).numpy()
        assert_allclose(mass[:, 1, 3], (pattern * far).sum(-1).mean(-1), rtol=1e-5)
        assert_allclose(chance[:, 1, 3], [np.mean([max(0, i - 3) / (i + 1) for i in range(40)])] * 2, rtol=1e-6)


def test_the_induction_head_needs_far_keys_and_the_previous_token_head_none(planted):
    made, model = planted
    found = interp.analyze(model, "span_profile", n_prompts=6, n_random=2, seed=1)
    rows, span = variant(found, "beyond"), variant(found, "span")["value"]
    (far,), (near,) = named(made, "induction"), named(made, "previous_token")
    assert list(rows.index[rows["label"].astype(bool)]) == [far]
    assert span[near] == 2
    assert span[far] > 16
    done = found.interventions.iloc[0]
    assert done["set_id"] == f"last 2 keys: {far}"
    assert done["edited"] - done["clean"] > 0.5
    assert abs(done["random_mean"] - done["clean"]) < 0.1


def test_the_span_that_is_needed():
    change = np.array([[0.5, 0.0, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5]])[:, None]
    assert_array_equal(needed_span(change, [2, 4], 0.01, 40), [[4, 40, 2, 40]])


def test_uniform_attention_is_not_far_sighted(prompts):
    found = interp.analyze(blind(), "span_profile", prompts=prompts)
    assert_allclose(column(found, "mass"), column(found, "mass", "null"), rtol=1e-5)


@pytest.mark.parametrize("name", ["funnel", "span_profile", "parallel_encoding"])
def test_rows_that_do_not_sum_to_one_are_refused(name, relu):
    with pytest.raises(NotApplicable, match="not all softmax"):
        interp.analyze(relu, name)
