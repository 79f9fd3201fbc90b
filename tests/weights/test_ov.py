"""OV circuits of all heads, norms folded in, and their copying ratio: those of the dense matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import MOST, N_HEADS, N_LAYERS, build, tiny
from torch.testing import assert_close

import interp
from interp.errors import BackendError
from interp.weights.ov import OV, copying_ratio


@pytest.fixture(params=MOST)
def model(request):
    return tiny(request.param)


def ov(*signs, d_vocab=30, d_model=20, d_head=6):
    """One layer whose heads map embeddings through s A A^T, read out by the embeddings themselves."""
    embed = torch.randn(d_vocab, d_model)
    inward = torch.randn(1, len(signs), d_model, d_head)
    outward = inward.mT * torch.tensor(signs)[None, :, None, None]
    return OV(inward, outward, embed, embed.T.clone(), (0,))


def test_copying_ratio_of_planted_heads():
    assert_close(copying_ratio(ov(1.0, -1.0, 3.0)), torch.tensor([[1.0, -1.0, 1.0]]), atol=1e-4, rtol=0)


def test_copying_ratio_of_a_head_that_does_nothing():
    assert_close(copying_ratio(ov(0.0)), torch.zeros(1, 1), atol=0, rtol=0)


def dense_ratio(circuits):
    """By definition: the eigenvalues of the d_vocab x d_vocab matrix, its columns centred over the vocabulary."""
    e, v, o, u = (x.double() for x in (circuits.w_e, circuits.w_v, circuits.w_o, circuits.w_u))
    full = e @ v @ o @ (u - u.mean(1, keepdim=True))
    spectrum = torch.linalg.eigvals(full)
    return (spectrum.real.sum(-1) / spectrum.abs().sum(-1)).float()


def test_copying_ratio_is_that_of_the_dense_matrix(model):
    circuits = model.ov_circuits()
    ratio = copying_ratio(circuits)
    assert ratio.shape == (N_LAYERS, N_HEADS)
    assert_close(ratio, dense_ratio(circuits), atol=1e-4, rtol=0)
    assert ratio.std() > 0.02


def centring(norm):
    """Matrix that takes off the mean of a row, where the norm does."""
    return torch.eye(64) - (1 / 64 if norm.centred else 0)


def test_copying_ratio_reads_and_writes_through_the_norms(model):
    """Of the dense W_E C G W_V W_O C' G' W_U: what a layer norm takes off is neither read nor written."""
    weights, ratio = model.weights(), copying_ratio(model.ov_circuits())
    final = weights.final_norm
    out = centring(final) @ torch.diag(final.gain) @ weights.w_u
    for layer in weights.layers:
        before, after = weights[layer].norm, weights[layer].norm_after
        reads, writes = (torch.eye(64) if n is None else centring(n) @ torch.diag(n.gain) for n in (before, after))
        for head in range(N_HEADS):
            full = weights.w_e @ reads @ weights.ov(layer, head).dense() @ writes @ (out - out.mean(1, keepdim=True))
            spectrum = torch.linalg.eigvals(full.double())
            want = (spectrum.real.sum() / spectrum.abs().sum()).float()
            assert_close(ratio[layer, head], want, atol=1e-4, rtol=0)


def test_copying_ratio_is_blind_to_what_a_layer_norm_takes_off():
    """A number added to every channel of every embedding is nothing to GPT-2's heads."""
    module = build("gpt2")
    want = copying_ratio(interp.load(module).ov_circuits())
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())
    module.transformer.wte.weight.data += 5.0
    assert_close(copying_ratio(interp.load(module).ov_circuits()), want, atol=1e-4, rtol=0)


def test_circuits_of_heads_of_different_width_are_filled_up():
    """Zeros beside W_V and W_O leave every product, and so the ratio, as it is."""
    weights = tiny("llama").weights()
    want, layer = copying_ratio(weights.ov_circuits()), weights[1]
    for name, axis in (("w_v", 2), ("b_v", 1), ("w_o", 1)):
        wide = torch.cat([getattr(layer, name), torch.zeros_like(getattr(layer, name))], dim=axis)
        layer = replace(layer, **{name: wide})
    weights._layer_cache[1] = layer
    circuits = weights.ov_circuits()
    assert circuits.w_v.shape[-1] == 16
    assert_close(copying_ratio(circuits), want, atol=1e-5, rtol=0)


def test_copying_ratio_refuses_embeddings_of_another_width():
    narrow = OV(torch.ones(1, 1, 6, 2), torch.ones(1, 1, 2, 6), torch.ones(9, 4), torch.ones(6, 9), (0,))
    with pytest.raises(BackendError, match="embeddings are 4 wide and the stream 6"):
        copying_ratio(narrow)


def test_copying_ratio_ignores_a_shift_of_all_logits():
    plain = ov(1.0, -1.0)
    shifted = OV(plain.w_v, plain.w_o, plain.w_e, plain.w_u + torch.randn(20, 1) * 5, plain.layers)
    assert_close(copying_ratio(shifted), copying_ratio(plain), atol=1e-4, rtol=0)


def test_circuits_at_once_are_those_of_the_layers(model):
    circuits, weights = model.ov_circuits(), model.weights()
    for layer in weights.layers:
        before, after = weights[layer].norm, weights[layer].norm_after
        eye = torch.eye(64)
        reads, writes = (eye if n is None else centring(n) @ torch.diag(n.gain) for n in (before, after))
        for head in range(N_HEADS):
            ov = reads @ weights.ov(layer, head).dense() @ writes
            assert_close(circuits.w_v[layer, head] @ circuits.w_o[layer, head], ov, rtol=1e-4, atol=1e-4)
