"""The matrices read off a model are the ones it computes with, on every architecture."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from tiny_models import ARCHITECTURES, N_HEADS, N_LAYERS, build, ragged, tiny
from tolerance import assert_equal_to_rounding
from torch import nn
from torch.testing import assert_close

import interp
from interp.backends.hf.read_norms import gain, read_norm
from interp.backends.hf.read_weights import output_matrix, value_matrices
from interp.errors import BackendError, SiteError
from interp.sites import Site
from interp.weights.composition import HOW, composition, turn_spread
from interp.weights.factored import FactoredMatrix
from interp.weights.weights import OV, copying_ratio


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


SHAPES = {
    "tall": (30, 4, 20),
    "wide": (20, 4, 30),
    "square": (25, 6, 25),
    "over-full": (5, 8, 5),
    "batch": (3, 12, 4, 12),
}


@pytest.fixture(params=SHAPES)
def factored(request):
    *batch, m, r, n = SHAPES[request.param]
    return FactoredMatrix(torch.randn(*batch, m, r), torch.randn(*batch, r, n))


def test_a_factored_matrix_is_its_product(factored):
    dense = factored.left @ factored.right
    assert factored.shape == dense.shape
    assert_equal_to_rounding(factored.dense(), dense)
    assert_equal_to_rounding(factored.T.dense(), dense.mT)
    assert_equal_to_rounding(factored.row(3), dense[..., 3, :])
    assert_equal_to_rounding(factored.row(-1), dense[..., -1, :])
    assert_equal_to_rounding(factored.rows(1, 4), dense[..., 1:4, :])
    assert_equal_to_rounding(factored.diagonal(), dense.diagonal(dim1=-2, dim2=-1))
    assert_close(factored.norm(), torch.linalg.matrix_norm(dense), rtol=1e-4, atol=1e-4)
    assert_equal_to_rounding((2 * factored).dense(), 2 * dense)


def test_spectra_of_a_factored_matrix_are_those_of_its_product(factored):
    dense = factored.dense()
    u, s, vh = factored.svd()
    k = s.shape[-1]
    assert k <= min(*dense.shape[-2:], factored.rank)
    want = torch.linalg.svdvals(dense)
    assert_close(s, want[..., :k], rtol=1e-4, atol=1e-4)
    assert_close(factored.singular_values()[..., :k], want[..., :k], rtol=1e-4, atol=1e-4)
    assert_close(u @ (s[..., None] * vh), dense, rtol=1e-4, atol=1e-4)
    assert_close(u.mT @ u, torch.eye(k).expand(*s.shape[:-1], k, k), rtol=0, atol=1e-4)
    if dense.shape[-1] != dense.shape[-2]:
        with pytest.raises(BackendError, match="only square matrices"):
            factored.eigenvalues()
        with pytest.raises(BackendError, match="trace of a"):
            factored.trace()
        return
    ours, full = factored.eigenvalues(), torch.linalg.eigvals(dense.double())
    for power in (1, 2, 3):  # power sums say that the nonzero eigenvalues are the same, in whatever order
        size = float(ours.abs().max() ** power)
        assert_close(ours.pow(power).sum(-1), full.pow(power).sum(-1), rtol=1e-3, atol=1e-3 * size)
    assert_close(factored.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-4, atol=1e-4)


def test_products_of_factored_matrices():
    a, b = FactoredMatrix(torch.randn(9, 2), torch.randn(2, 8)), FactoredMatrix(torch.randn(8, 3), torch.randn(3, 7))
    x, y = torch.randn(8, 5), torch.randn(6, 9)
    assert_equal_to_rounding((a @ b).dense(), a.dense() @ b.dense())
    assert_equal_to_rounding((b.T @ a.T).dense(), b.dense().T @ a.dense().T)
    assert (a @ b).rank == (b.T @ a.T).rank == 2
    assert_equal_to_rounding((a @ x).dense(), a.dense() @ x)
    assert_equal_to_rounding((y @ a).dense(), y @ a.dense())


def test_heads_of_a_batch():
    matrix = FactoredMatrix(torch.randn(4, 6, 2), torch.randn(2, 5))
    assert matrix.shape == (4, 6, 5)
    assert_equal_to_rounding(matrix[2].dense(), matrix.dense()[2])
    with pytest.raises(BackendError, match="has no batch to index"):
        matrix[2][0]


@pytest.mark.parametrize("block", [1, 70, 10**6])
@pytest.mark.parametrize("largest", [True, False])
def test_top_entries_of_each_row_in_blocks(block, largest):
    matrix = FactoredMatrix(torch.randn(13, 4), torch.randn(4, 29))
    values, columns = matrix.topk(5, largest=largest, block=block)
    want = matrix.dense().topk(5, largest=largest)
    assert_equal_to_rounding(values, want.values)
    assert_close(columns, want.indices)


def test_factored_matrices_refuse():
    with pytest.raises(BackendError, match="do not meet"):
        FactoredMatrix(torch.randn(4, 3), torch.randn(2, 4))
    matrix = FactoredMatrix(torch.randn(20_000, 1), torch.randn(1, 20_000))
    with pytest.raises(BackendError, match="20000 x 20000 matrix takes 1.5 GiB; use rows"):
        matrix.dense()
    with pytest.raises(BackendError, match="top 0 of each row"):
        matrix.topk(0)


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


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("how", HOW)
def test_composition_is_that_of_the_dense_matrices(name, how):
    model = tiny(name)
    weights = model.weights()
    found = composition(weights, how, offset=2)
    assert found.score.shape == (N_LAYERS, N_HEADS, N_LAYERS, N_HEADS)
    for a, b in ((0, 0), (3, 7), (6, 2)):
        writer = weights.ov(0, a, fold_norm=True).dense()
        reader = {
            "q": weights.qk(1, b, offset=2, fold_norm=True).dense(),
            "k": weights.qk(1, b, offset=2, fold_norm=True).dense().T,
            "v": weights.ov(1, b, fold_norm=True).dense(),
        }[how]
        want = (writer @ reader).norm() / (writer.norm() * reader.norm())
        assert_close(found.score[0, a, 1, b], want, rtol=1e-4, atol=1e-5)
    assert found.score[1].isnan().all()
    assert found.score[:, :, 0].isnan().all()
    assert found.z[0, :, 1].isfinite().all()
    assert found.baseline == 64**-0.5


def test_the_null_of_composition_is_that_of_random_rotations():
    d, draws = 12, 4000
    a, b = torch.randn(d, 3, dtype=torch.double), torch.randn(d, 4, dtype=torch.double) * torch.tensor([3.0, 1, 1, 1])
    turns = torch.linalg.qr(torch.randn(draws, d, d, dtype=torch.double))
    turns = turns.Q * turns.R.diagonal(dim1=1, dim2=2).sign()[:, None]
    share = torch.linalg.matrix_norm(a.T @ turns @ b).square() / (a.norm() * b.norm()) ** 2
    purity = [(torch.linalg.svdvals(m) ** 4).sum() / m.norm() ** 4 for m in (a, b)]
    assert_close(float(share.mean()), 1 / d, rtol=0.03, atol=0)
    assert_close(float(share.std()), float(turn_spread(*purity, d)), rtol=0.05, atol=0)


def test_planted_composition_stands_out():
    """A head whose queries read what an earlier head writes, and no other pair."""
    model = tiny("gpt2")
    weights = model.weights()
    first, second = weights[0], weights[1]
    plain = composition(weights, "q", fold_norm=False)
    second.w_q[5] = first.w_o[2].T @ torch.randn(8, 8)
    found = composition(weights, "q", fold_norm=False)
    assert found.score[0, 2, 1, 5] > 0.9 * found.score[0, :, 1].max() > 2.5 * found.baseline
    assert found.z[0, 2, 1, 5] > 10
    assert plain.z[0, :, 1].abs().max() < 6


def test_composition_refuses_an_unknown_kind():
    model = tiny("gpt2")
    with pytest.raises(SiteError, match="unknown composition 'o'; valid choices: k, q, v"):
        composition(model.weights(), "o")


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


def test_circuits_at_once_are_those_of_the_layers(model):
    circuits, weights = model.ov_circuits(), model.weights()
    for layer in weights.layers:
        before, after = weights[layer].norm, weights[layer].norm_after
        eye = torch.eye(64)
        reads, writes = (eye if n is None else centring(n) @ torch.diag(n.gain) for n in (before, after))
        for head in range(N_HEADS):
            ov = reads @ weights.ov(layer, head).dense() @ writes
            assert_close(circuits.w_v[layer, head] @ circuits.w_o[layer, head], ov, rtol=1e-4, atol=1e-4)
