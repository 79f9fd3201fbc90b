"""The matrices read off a model are the ones it computes with, on every architecture."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny_models import ARCHITECTURES, N_HEADS, N_LAYERS, build, ragged, tiny
from tolerance import assert_equal_to_rounding
from torch import nn
from torch.testing import assert_close

import interp
from interp.backends.hf.read_norms import gain, read_norm
from interp.backends.hf.read_weights import output_matrix, value_matrices
from interp.sites import Site


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny(request.param)


@contextlib.contextmanager
def watching(module):
    """First tensor that goes in and what comes out, of the last call."""
    seen = {}

    def hook(module, args, kwargs, output):
        seen["in"] = args[0] if args else kwargs["hidden_states"]
        seen["out"] = output[0] if isinstance(output, tuple) else output

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def bare_norm(norm, x):
    """A norm without its gain and bias."""
    eps = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
    if isinstance(norm, nn.LayerNorm):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def differences(x):
    """Each token less the first: constants, such as a bias, are gone."""
    return x - x[:, :1]


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_heads_add_up_to_what_the_output_projection_gives(model, layer):
    part = model.anatomy.attention[layer]
    with watching(part.output) as seen:
        z = model.run(ragged(12, "unpadded"), capture=["z"]).acts[Site("z", layer)]
    bias = getattr(part.output, "bias", None)
    written = torch.einsum("bphd,hdm->bpm", z, output_matrix(part))
    assert_close(written if bias is None else written + bias, seen["out"], atol=1e-4, rtol=1e-4)
    assert written.abs().max() > 0.1


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_values_are_the_attention_input_times_w_v(model, layer):
    part = model.anatomy.attention[layer]
    matrix = value_matrices(model.torch_module, model.anatomy.attention)[layer]
    assert matrix.shape == (model.info.n_kv_heads, model.info.d_model, part.d_value)
    with watching(part.module) as seen:
        v = model.run(ragged(12, "unpadded"), capture=["v"]).acts[Site("v", layer)]
    ours = torch.einsum("bpm,hmd->bphd", differences(seen["in"]), matrix)
    assert_close(ours, differences(v), atol=1e-4, rtol=1e-4)
    assert differences(v).abs().max() > 0.1


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_gains_are_folded_into_w_v(model, layer):
    """x / scale times the folded W_V gives the values of every query head's group, but for a constant."""
    part, ov = model.anatomy.attention[layer], model.ov_circuits()
    with watching(part.norm_before or part.module) as seen:
        v = model.run(ragged(12, "unpadded"), capture=["v"]).acts[Site("v", layer)]
    x = seen["in"] if part.norm_before is None else bare_norm(part.norm_before, seen["in"])
    group = N_HEADS // model.info.n_kv_heads
    ours = torch.einsum("bpm,hmd->bphd", differences(x), ov.w_v[layer])
    assert_close(ours, differences(v).repeat_interleave(group, dim=2), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_gains_are_folded_into_w_o(model, layer):
    part, ov = model.anatomy.attention[layer], model.ov_circuits()
    with watching(part.output) as before, watching(part.norm_after or part.output) as after:
        z = model.run(ragged(12, "unpadded"), capture=["z"]).acts[Site("z", layer)]
    ours = torch.einsum("bphd,hdm->bpm", z, ov.w_o[layer])
    if part.norm_after is not None:
        raw = before["out"]
        ours = ours * (bare_norm(part.norm_after, raw) / raw).mean(-1, keepdim=True)
    want = after["out"] if part.norm_after is not None or part.output.bias is None else after["out"] - part.output.bias
    assert_close(ours, want, atol=1e-3, rtol=1e-3)


def test_the_unembedding_gives_the_logits(model):
    """The final norm's gain is folded in; biases and a soft-cap on the logits are not part of it."""
    ov, norm = model.ov_circuits(), model.anatomy.final_norm
    assert norm is not None
    with watching(norm) as final, watching(model.anatomy.unembed) as unembed:
        model.run(ragged(12, "unpadded"))
    ours = differences(bare_norm(norm, final["in"])) @ ov.w_u
    assert_close(ours, differences(unembed["out"]), atol=5e-4, rtol=1e-4)
    assert_close(ov.w_e, model.torch_module.get_input_embeddings()(torch.arange(64)).detach(), atol=0, rtol=0)


NORMS = {"gemma2": (True, True), "olmo2": (False, True)}


def test_norms_around_attention_are_found(model):
    name = next(n for n in ARCHITECTURES if tiny(n) is model)
    for part in model.anatomy.attention:
        assert (part.norm_before is not None, part.norm_after is not None) == NORMS.get(name, (True, False))


def random_norms():
    yield "none", None, torch.ones(16)
    layer = nn.LayerNorm(16)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    yield "LayerNorm", layer, layer.weight.detach()
    rms = nn.RMSNorm(16, eps=1e-6)
    nn.init.normal_(rms.weight)
    yield "RMSNorm", rms, rms.weight.detach()


@pytest.mark.parametrize(
    ("name", "norm", "expected"), list(random_norms()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_the_gain_of_a_norm(name, norm, expected):
    assert_close(gain(norm, 16), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "llama", "gpt2"])
def test_the_gain_of_a_models_norm(name):
    norm = tiny(name).anatomy.attention[1].norm_before
    assert_close(gain(norm, 64), norm.weight.detach() + (name == "gemma2"), atol=1e-4, rtol=1e-3)


def test_a_short_context_does_not_change_the_matrices():
    """Bases are fed in chunks no longer than the context."""
    import transformers

    config = transformers.LlamaConfig(**{**build("llama").config.to_dict(), "max_position_embeddings": 10})
    model = interp.load(transformers.LlamaForCausalLM(config))
    matrices = value_matrices(model.torch_module, model.anatomy.attention)
    for layer, matrix in matrices.items():
        weight = model.torch_module.model.layers[layer].self_attn.v_proj.weight.detach()
        assert_equal_to_rounding(matrix, weight.unflatten(0, (2, -1)).mT)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("width", [16, 15])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-3])
def test_a_norm_is_read_whole(kind, width, eps):
    norm = kind(width, eps=eps)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    read = read_norm(norm, width)
    x = torch.randn(50, width) * torch.logspace(-3, 2, 50)[:, None]
    assert read.centred == (kind is nn.LayerNorm)
    assert_close(read.eps, eps, rtol=1e-3, atol=0)
    assert_close(read(x), norm(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fold_norm", [True, False])
def test_full_circuits_through_the_vocabulary(model, fold_norm):
    """W_E W_V W_O W_U, its copying ratio and its largest entries are those of the dense matrix."""
    weights = model.weights()
    full = weights.full_ov(1, 2, fold_norm=fold_norm)
    w_u = weights.w_u
    if fold_norm:
        w_u = weights.unembed(torch.eye(64), fold_norm=True)
    dense = weights.w_e.double() @ weights.ov(1, 2, fold_norm=fold_norm).dense().double() @ w_u.double()
    dense = dense - dense.mean(-1, keepdim=True)
    assert_close(full.dense().double(), dense, rtol=1e-3, atol=1e-5 * float(dense.abs().max()))
    spectrum = torch.linalg.eigvals(dense)
    want = (spectrum.real.sum() / spectrum.abs().sum()).float()
    assert_close(full.positivity(), want, rtol=0, atol=1e-3)
    assert_close(full.topk(3)[1], dense.topk(3).indices)
