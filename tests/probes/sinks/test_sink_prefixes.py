"""Token or position: heads that keep to either, behind every beginning."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import blind, column, eager, resting, variant

import interp
from interp.errors import NotApplicable
from probes.sinks._sink_prefixes import prefixed

QUICK = {"n_prompts": 10, "length": 40, "seed": 1}


@pytest.fixture(scope="module")
def of_token():
    return interp.analyze(resting(token=0), "sink_prefixes", **QUICK)


def test_a_head_that_keeps_to_the_token(of_token):
    rows = variant(of_token, "token")
    assert list(rows.index[rows["label"].astype(bool)]) == ["L0H0"]
    assert rows["follows"]["L0H0"] == "token"
    assert set(rows["follows"].drop("L0H0")) == {"neither"}
    assert variant(of_token, "inside")["value"]["L0H0"] > 0.5
    assert variant(of_token, "inside")["position"]["L0H0"] == 10
    for start in ("none", "random"):
        assert variant(of_token, f"start_{start}")["value"]["L0H0"] < 0.2
    assert 0.2 < variant(of_token, "several_first")["value"]["L0H0"] < 0.5


def test_the_difference_is_that_of_dense_patterns_of_the_same_tokens(of_token):
    model = resting(token=0)
    batches, inside = prefixed(model, 0, n=10, length=40, seed=1)
    assert inside == 10
    assert torch.equal(batches["bos"].ids[:, 1:], batches["random"].ids[:, 1:])
    assert not (batches["random"].ids == 0).any()
    assert {name: (b.ids == 0).sum(1).unique().tolist() for name, b in batches.items()} == {
        "none": [0],
        "bos": [1],
        "random": [0],
        "several": [4],
        "inside": [1],
    }
    first = {name: eager(model, batch)[..., 0].mean((1, 3)).ravel() for name, batch in batches.items()}
    assert_allclose(column(of_token, "token"), first["bos"] - first["random"], atol=1e-5)
    assert_allclose(column(of_token, "start_several"), first["several"], atol=1e-5)
    each = [eager(model, batches["several"])[..., i:, i].mean((1, 3)).ravel() for i in range(4)]
    assert_allclose(column(of_token, "several_first"), each[0] / sum(each), atol=1e-5)
    second = eager(model, batches["bos"])[..., 1:, 1].mean((1, 3)).ravel()
    assert_allclose(column(of_token, "second_bos"), second, atol=1e-5)


def test_a_head_that_keeps_to_the_position():
    found = interp.analyze(resting(position=0), "sink_prefixes", **QUICK)
    rows = variant(found, "token")
    assert not rows["label"].any()
    assert rows["follows"]["L0H0"] == "position"
    assert variant(found, "several_first")["value"]["L0H0"] > 0.7
    assert variant(found, "inside")["value"]["L0H0"] < 0.2
    assert (variant(found, "start_none")["value"] > 0.5).sum() == 1


def test_a_model_without_bos_is_asked_about_a_token_of_the_caller_s():
    with pytest.raises(NotApplicable, match="no BOS token whose place could be changed; give one as `token`"):
        interp.analyze(blind(), "sink_prefixes", **QUICK)
    found = interp.analyze(blind(), "sink_prefixes", token=3, **QUICK)
    assert_allclose(column(found, "token"), 0, atol=1e-6)
    assert found.provenance["data"]["token"] == 3
