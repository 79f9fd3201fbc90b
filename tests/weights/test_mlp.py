"""What neurons read and write, positions, and matrices of all layers, are what the model computes with."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import N_LAYERS, SPANNING, build, ragged, tiny
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close
from transformers.activations import ACT2FN

import interp
from interp.errors import BackendError, SiteError
from interp.measurement.checks.backend import random_module

DENSE = [name for name in SPANNING if name != "gpt_oss"]


def fused():
    """Gate and W_in in one module, half and half."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.Phi3Config(**sizes, intermediate_size=48, pad_token_id=None, bos_token_id=None)
    return interp.load(random_module(config))


def neurons_of(model, mlp, x):
    config = model.torch_module.config
    names = ("hidden_act", "activation_function", "hidden_activation")
    activation = ACT2FN[next(getattr(config, name) for name in names if getattr(config, name, None))]
    read = x @ mlp.w_in + mlp.b_in
    return activation(read) if mlp.w_gate is None else activation(x @ mlp.w_gate + mlp.b_gate) * read


@pytest.mark.parametrize("name", [*DENSE, "fused", "opt-lens", "gemma2-lens"])
def test_neurons_are_what_the_matrices_say(name):
    if name.endswith("-lens"):
        model = interp.load(build(name.removesuffix("-lens")), backend="lens")
    else:
        model = fused() if name == "fused" else tiny(name)
    batch = ragged(12, "unpadded")
    run = model.run(batch, capture=["mlp_in", "mlp_post", "mlp_out"])
    last = model.info.n_layers - 1
    mlp = model.weights().mlp(last)
    a = neurons_of(model, mlp, run[f"L{last}.mlp_in"])
    assert_equal_to_rounding(a, run[f"L{last}.mlp_post"])
    out = a @ mlp.w_out + mlp.b_out
    assert_equal_to_rounding(out if mlp.norm_after is None else mlp.norm_after(out), run[f"L{last}.mlp_out"])


def test_norms_are_folded_into_what_neurons_read():
    model = tiny("gpt2")
    run = model.run(ragged(12, "unpadded"), capture=["resid_mid", "mlp_post"])
    mlp = model.weights().mlp(1)
    x = run["L1.resid_mid"]
    assert_equal_to_rounding(neurons_of(model, mlp.folded(), x / mlp.norm.divisor(x)), run["L1.mlp_post"])
    assert_equal_to_rounding(tiny("gemma2").weights().mlp(1).folded().w_out, tiny("gemma2").writes(1).mlp.matrix(96))


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_positions_are_what_is_added_to_tokens(name):
    model, ids = tiny(name), torch.randint(3, 64, (2, 40))
    weights = model.weights()
    assert weights.w_pos.shape == (700, 64)
    assert_equal_to_rounding(weights.w_e[ids] + weights.w_pos[:40], model.run(ids, capture=["embed"])["embed"])
    circuit = weights.full_qk(0, 3, embedding=weights.w_pos)  # over positions
    w = weights[0].folded()
    w_q, w_k = w.w_q[3], w.w_k[3]
    assert_equal_to_rounding(circuit[5, 2], weights.w_pos[5] @ w_q @ w_k.T @ weights.w_pos[2])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_full_qk_circuit_is_that_of_the_dense_matrices(name):
    weights = tiny(name).weights()
    full = weights.full_qk(1, 2, offset=3)
    dense = weights.w_e @ weights.qk(1, 2, offset=3, fold_norm=True).dense() @ weights.w_e.T
    assert full.shape == (64, 64)
    assert_close(full.dense(), dense, rtol=1e-4, atol=1e-5 * float(dense.abs().max()))


def test_matrices_of_all_layers_are_those_of_each():
    weights = tiny("llama").weights()
    for name, kind in (("w_q", 8), ("w_k", 2), ("w_v", 2), ("w_o", 8)):
        stacked = getattr(weights, name)
        assert stacked.shape[:2] == (N_LAYERS, kind)
        assert torch.equal(stacked[1], getattr(weights[1], name))
    for name in ("w_in", "w_gate", "w_out"):
        assert torch.equal(getattr(weights, name)[0], getattr(weights.mlp(0), name))


def test_what_a_model_does_not_have_is_refused():
    with pytest.raises(BackendError, match="no positions are added"):
        _ = tiny("llama").weights().w_pos
    with pytest.raises(BackendError, match="its MLP has no gate"):
        _ = tiny("gpt2").weights().w_gate
    with pytest.raises(BackendError, match="no W_in and W_out: .*mixture of experts"):
        tiny("gpt_oss").weights().mlp(0)
    with pytest.raises(SiteError, match="layer 7 is out of range"):
        tiny("gpt2").weights().mlp(7)
