"""Head analyses against truth: nothing in a random model, what was planted in a planted one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose
from tiny_models import build, tiny

import interp
from interp import zoo
from interp.measurement.registry import analyses
from interp.zoo.planted import factory

ANALYSES = ("duplicate_token", "induction", "previous_token", "sink")
BOS = 0


@pytest.fixture(scope="module")
def random_gpt2():
    """144 heads as GPT-2 starts out."""
    torch.manual_seed(0)
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 96, "vocab_size": 200, "n_positions": 160}
    config = transformers.GPT2Config(**sizes, bos_token_id=BOS, eos_token_id=None)
    return interp.load(transformers.GPT2LMHeadModel(config).eval())


@pytest.fixture(scope="module")
def planted():
    return interp.load("zoo:planted-induction")


def headline(result, name, *, variant=None):
    variant = variant or analyses()[name].headline
    rows = result.table[(result.table["analysis"] == name) & (result.table["variant"] == variant)]
    return rows.set_index("component")


@pytest.mark.parametrize("bos", ["forced", "none"])
@pytest.mark.parametrize("name", ANALYSES)
def test_no_head_of_a_random_model_is_labelled(random_gpt2, name, bos):
    found = headline(interp.analyze(random_gpt2, name, n_prompts=16, bos=bos, seed=1), name)
    assert len(found) == 144
    assert not found["label"].any()
    assert found["q"].min() > 0.01
    assert_allclose(found["value"].mean(), found["null"].mean(), atol=0.01)


@pytest.mark.parametrize("bos", ["forced", "none"])
@pytest.mark.parametrize("lengths", [(18, 20), (48, 50)])
def test_the_null_of_induction_is_the_closed_form(random_gpt2, lengths, bos):
    found = interp.analyze(random_gpt2, "induction", n_prompts=24, lengths=lengths, n_lengths=3, bos=bos, seed=2)
    drawn = found.provenance["data"]["lengths"]
    assert len(drawn) == 3
    assert max(drawn) <= lengths[1]
    start = bos == "forced"
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, 200))])
    expected = np.mean([(harmonic[2 * t + start] - harmonic[t + start]) / t for t in drawn])
    rows = headline(found, "induction")
    assert_allclose(rows["null"], expected, rtol=1e-9)
    assert_allclose(rows["value"].mean(), expected, atol=0.002)
    # a BOS is no key in the contest: row i has i + 1 - start
    contest = np.mean([(harmonic[2 * t] - harmonic[t]) / t for t in drawn])
    assert_allclose(headline(found, "induction", variant="argmax_hit")["null"], contest, rtol=1e-9)


def test_nothing_to_ablate_in_a_random_model(random_gpt2):
    found = interp.analyze(random_gpt2, "induction", n_prompts=8, n_lengths=4)
    assert len(found.interventions) == 0
    assert_allclose(headline(found, "induction", variant="prefix_matching_normalised")["value"].mean(), 0, atol=0.005)
    assert abs(headline(found, "induction", variant="copying_ratio")["value"].mean()) < 0.1


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gpt_oss", "mistral"])
@pytest.mark.parametrize("name", ANALYSES)
def test_both_methods_give_the_same_table(name, architecture):
    tables = [
        interp.analyze(tiny(architecture), name, n_prompts=6, method=method, seed=0).table
        for method in ("fused", "naive")
    ]
    same = ["variant", "component", "unit", "n", "label"]
    assert tables[0][same].equals(tables[1][same])
    for column in ("value", "ci_low", "ci_high", "se", "null", "p", "q"):
        fused, naive = (t[column].to_numpy(float) for t in tables)
        assert_allclose(fused, naive, atol=1e-4, rtol=0, err_msg=column)


@pytest.mark.parametrize("name", ["previous_token", "induction"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_planted_head_is_found_and_no_other(planted, name, seed):
    ((layer, head),) = zoo.truth("planted-induction").roles[name]
    options = {"causal": False} if name == "induction" else {}
    found = headline(interp.analyze(planted, name, n_prompts=32, seed=seed, **options), name)
    here = found.index == f"L{layer}H{head}"
    assert found[here]["value"].item() >= 0.95
    assert found[here]["q"].item() < 0.01
    assert found[here]["ci_low"].item() > 0.9
    assert found[here]["label"].item()
    assert found[~here]["value"].max() <= 0.1
    assert found[~here]["q"].min() >= 0.01
    assert not found[~here]["label"].any()


@pytest.mark.parametrize("name", ["duplicate_token", "sink"])
def test_other_roles_are_not_found_in_the_planted_model(planted, name):
    found = headline(interp.analyze(planted, name, n_prompts=32), name)
    assert not found["label"].any()
    assert found["q"].min() >= 0.01


def test_what_the_planted_induction_head_needs_and_does(planted):
    truth = zoo.truth("planted-induction")
    ((layer, head),) = truth.roles["induction"]
    name = f"L{layer}H{head}"
    found = interp.analyze(planted, "induction", n_prompts=32, n_lengths=4, n_random=5, seed=0)
    value = {v: headline(found, "induction", variant=v)["value"][name] for v in found.table["variant"].unique()}
    assert value["argmax_hit"] == 1
    assert value["copying_ratio"] > 0.9
    rows = headline(found, "induction")
    scaled = (rows["value"] - rows["null"]) / (1 - rows["null"])  # lengths differ a little in their null
    assert_allclose(headline(found, "induction", variant="prefix_matching_normalised")["value"], scaled, atol=5e-3)
    assert value["previous_token_dependence"] > 0.9
    previous = ["L{}H{}".format(*place) for place in truth.roles["previous_token"]]
    assert found.provenance["data"]["previous_token_heads"] == previous
    sets = found.interventions
    assert set(sets["k"]) == {1}
    accuracy = sets[sets["metric"] == "second_copy_accuracy"]
    assert (accuracy["clean"] > 0.99).all()
    assert (accuracy["edited"] < 0.2).all()
    assert (accuracy["random_mean"] > 0.95).all()
    assert set(sets["n_random"]) == {5}


def test_a_head_that_looks_like_induction_and_takes_back_what_it_sees_is_no_induction_head():
    made = factory.plant([factory.Induction()], architecture="llama", seed=0)
    ((layer, head),) = made.truth.roles["induction"]
    attention = made.model.model.layers[layer].self_attn
    with torch.no_grad():
        attention.o_proj.weight[:, head * attention.head_dim : (head + 1) * attention.head_dim] *= -1
    model = interp.load(made.model, tokenizer=made.tokenizer)
    found = interp.analyze(model, "induction", n_prompts=16, n_lengths=4)
    row = headline(found, "induction").loc[f"L{layer}H{head}"]
    assert row["value"] > 0.9
    assert row["q"] < 0.01
    assert not row["label"]


def test_a_positional_shortcut_is_not_induction():
    """A head that looks back the one distance it was trained on scores 0.9 on a test with that one length."""
    found = headline(interp.analyze(interp.load("zoo:positional-shortcut"), "induction", n_prompts=64), "induction")
    assert not found["label"].any()
    assert found["value"].max() < 0.3


def test_a_head_that_carries_no_values_has_no_value_norm_ratio():
    module = build("llama")
    module.model.layers[0].self_attn.v_proj.weight.data.zero_()
    found = interp.analyze(interp.load(module), "sink", n_prompts=8, length=24)
    ratio = headline(found, "sink", variant="value_norm_ratio")
    assert ratio.loc[ratio["layer"] == 0, "value"].isna().all()
    assert ratio.loc[ratio["layer"] == 1, "value"].between(0.1, 10).all()
