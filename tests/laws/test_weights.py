"""Weights, norms and rotary alone, read off a model, give the q, k, v and writes of its forward pass."""

from __future__ import annotations

import contextlib

import pytest
import torch
import transformers
from tiny_models import (
    _BASE,
    _GROUPED,
    ARCHITECTURES,
    D_MODEL,
    D_VOCAB,
    N_HEADS,
    N_LAYERS,
    build,
    ragged,
    subject,
    tiny,
)
from torch.testing import assert_close

import interp
from interp.decompose.embeddings import VARIANTS, effective_embedding
from interp.errors import BackendError, SiteError, TaskError
from interp.measurement.checks.laws import reading
from interp.measurement.checks.laws.subject import Subject

N = 12
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 175, "rope_theta": 1e4}
NOPE = {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2}
EXTRA = {
    "gemma3": ("Gemma3TextConfig", {**_GROUPED, "head_dim": 16, "sliding_window": 17, "query_pre_attn_scalar": 16}),
    "cohere": ("CohereConfig", {**_GROUPED, "use_qk_norm": True}),
    "stablelm": ("StableLmConfig", {**_GROUPED, "qk_layernorm": True}),
    "olmoe": ("OlmoeConfig", {**_GROUPED, "num_experts": 2, "num_experts_per_tok": 1}),
    "smollm3": ("SmolLM3Config", {**_GROUPED, **NOPE}),
    "llama_yarn": ("LlamaConfig", {**_GROUPED, "rope_parameters": YARN}),
    "persimmon": ("PersimmonConfig", {**_BASE, "qk_layernorm": True}),
    "hunyuan": ("HunYuanDenseV1Config", {**_GROUPED, "head_dim": 8}),
}

SEVERAL_MODULES = ("opt",)
"""Layers that hold the MLP's projections themselves: no one module takes its input and gives its output."""


@contextlib.contextmanager
def kept(module, *, out=False):
    """First tensor that goes in (or comes out)."""
    seen = []

    def hook(module, args, kwargs, output):
        gave = output[0] if isinstance(output, tuple) else output
        seen.append(gave if out else (args[0] if args else kwargs["hidden_states"]))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def extra(name):
    config_class, options = EXTRA[name]
    config = getattr(transformers, config_class)(**options)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for path, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in path:
                parameter.mul_(6.0)
            elif name != "hunyuan" or "self_attn" not in path:  # its norms come after rotary: see below
                parameter.add_(0.3 * torch.randn_like(parameter))
    return interp.load(model)


def run(model, tokens):
    """q, k, v, z per layer, the residual that enters each layer and what attention adds to it."""
    parts = model.anatomy.attention
    with contextlib.ExitStack() as stack:
        enters = [stack.enter_context(kept(p.block)) for p in parts]
        adds = [stack.enter_context(kept(p.norm_after or p.output, out=True)) for p in parts]
        acts = model.run(tokens, capture=["q", "k", "v", "z"]).acts
    ordered = sorted(acts, key=lambda site: site.first)
    by_kind = {kind: [acts[site] for site in ordered if site.kind == kind] for kind in "qkvz"}
    return by_kind, [e[0] for e in enters], [a[0] for a in adds]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_give_q_k_v_and_writes(name):
    asked = subject(name, ragged(N, "unpadded", lengths=(N, N)))
    reading.weights_reproduce_a_run(asked)
    reading.writes_reproduce_a_run(asked)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *EXTRA])
def test_the_mlp_alone_writes_what_it_writes_in_the_model(name):
    model = tiny(name) if name in ARCHITECTURES else extra(name)
    batch = ragged(N, "unpadded")
    for layer in range(model.info.n_layers):
        acts = model.run(batch, capture=[f"L{layer}.mlp_in", f"L{layer}.mlp_out"]).acts
        read, wrote = (next(x for site, x in acts.items() if site.kind == kind) for kind in ("mlp_in", "mlp_out"))
        found = model.reads(layer).mlp_of(read)
        if name in SEVERAL_MODULES:
            assert found is None
        else:
            assert_close(found, wrote)


@pytest.mark.parametrize("name", EXTRA)
def test_weights_of_unusual_attention(name):
    """Norms per head, over the projection, with each head's own gains, after rotary; no rotary; yarn."""
    model = extra(name)
    reading.weights_reproduce_a_run(Subject(model, model.torch_module, ragged(N, "unpadded", lengths=(N, N))))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_qk_gives_the_scores(name):
    """q_i . k_j = x_i QK(i - j) x_j, biases added by an input that is one throughout, norms' divisors put back."""
    model = tiny(name)
    weights, tokens = model.weights(), ragged(N, "unpadded", lengths=(N,))
    acts, enters, _ = run(model, tokens)
    layer = weights.layers[-1]
    w = weights[layer]
    x = (enters[-1] if w.norm is None else w.norm(enters[-1]))[0]
    q0, k0 = (torch.einsum("pm,hmd->phd", x, m) for m in (w.w_q, w.w_k))
    i, j = 9, 4
    for head in (0, N_HEADS - 1):
        kv = head // w.group
        dot = acts["q"][-1][0, i, head] @ acts["k"][-1][0, j, kv]
        turn = weights.rotation(layer, i - j)
        a = q0[i] + w.b_q if w.q_norm is None else w.q_norm(q0[i] + w.b_q)
        b = k0[j] + w.b_k if w.k_norm is None else w.k_norm(k0[j] + w.b_k)
        assert_close(a[head] @ turn @ b[kv], dot, rtol=1e-4, atol=1e-4 * float(dot.abs()) + 1e-4)
        a, b = (y if n is None else n.linear(y) for n, y in ((w.q_norm, q0[i]), (w.k_norm, k0[j])))  # what QK keeps
        bilinear = a[head] @ turn @ b[kv]
        qk = weights.qk(layer, head, offset=i - j)
        assert qk.shape == (D_MODEL, D_MODEL)
        assert_close(x[i] @ qk.dense() @ x[j], bilinear, rtol=1e-4, atol=1e-3 * float(bilinear.abs()) + 1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ov_is_what_a_head_adds(name):
    model = tiny(name)
    weights = model.weights()
    acts, enters, _ = run(model, ragged(N, "unpadded", lengths=(N,)))
    for layer in weights.layers:
        w = weights[layer]
        x = enters[layer] if w.norm is None else w.norm(enters[layer])
        for head in (1, N_HEADS - 1):
            v = acts["v"][layer][:, :, head // w.group] - w.b_v[head // w.group]
            assert_close(x @ weights.ov(layer, head).dense(), v @ w.w_o[head], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folding_leaves_only_the_divisor(name):
    weights = tiny(name).weights()
    x = 3 * torch.randn(20, D_MODEL) + 0.5
    for layer in weights.layers:
        w, folded = weights[layer], weights[layer].folded()
        assert folded.norm is None
        assert folded.norm_after is None
        given = x if w.norm is None else w.norm(x)
        bare = x if w.norm is None else x / w.norm.divisor(x)
        for kind in "qkv":
            plain, ours = (
                torch.einsum("pm,hmd->phd", a, getattr(b, f"w_{kind}")) + getattr(b, f"b_{kind}")
                for a, b in ((given, w), (bare, folded))
            )
            assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        z = torch.randn(20, N_HEADS, w.w_o.shape[1])
        written, ours = (torch.einsum("phd,hdm->pm", z, b.w_o) + b.b_o for b in (w, folded))
        if w.norm_after is not None:
            divisor = w.norm_after.divisor(written)
            written = w.norm_after(written)
            ours = (torch.einsum("phd,hdm->pm", z, folded.w_o) + folded.b_o - w.norm_after.bias) / divisor
            ours = ours + w.norm_after.bias
        assert_close(ours, written, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_and_logits(name):
    model = tiny(name)
    weights = model.weights()
    norm, unembed = model.anatomy.final_norm, model.anatomy.unembed
    with kept(norm) as last, kept(unembed, out=True) as logits:
        model.run(ragged(N, "unpadded", lengths=(N,)))
    assert_close(weights.final_norm(last[0]) @ weights.w_u + weights.b_u, logits[0], rtol=1e-4, atol=1e-4)
    bare = last[0] / weights.final_norm.divisor(last[0])
    folded = weights.unembed(bare, fold_norm=True) + weights.b_u + weights.final_norm.bias @ weights.w_u
    assert_close(folded, logits[0], rtol=1e-4, atol=2e-4)
    assert weights.w_e.shape == (D_VOCAB, D_MODEL)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_learned_positions_turn_nothing(name):
    weights = tiny(name).weights()
    for offset in (1, 100):
        assert_close(weights.rotation(0, offset), torch.eye(8), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi", "gpt_oss"])
def test_rotary_is_a_rotation(name):
    """Rotary turns: T(o) T(o)' = 1, T(1)^o = T(o), T(0) = 1; what rotary leaves alone comes out alone."""
    weights = tiny(name).weights()
    one, five = (weights.rotation(1, offset) for offset in (1, 5))
    eye = torch.eye(len(one))
    assert_close(five @ five.T, eye, atol=1e-4, rtol=0)
    assert_close(torch.linalg.matrix_power(one, 5), five, atol=1e-4, rtol=0)
    assert_close(weights.rotation(1, 0), eye, atol=1e-5, rtol=0)
    assert (one - eye).abs().max() > 0.5


def test_layers_without_rotary_are_found():
    weights = extra("smollm3").weights()
    turned = [bool((weights.rotation(layer, 5) - torch.eye(8)).abs().max() > 1e-3) for layer in weights.layers]
    assert turned == [True, False]


@pytest.mark.parametrize(
    ("name", "whole", "after_rotary"),
    [
        ("qwen3", False, False),
        ("olmo2", True, False),
        ("olmoe", True, False),
        ("gemma3", False, False),
        ("hunyuan", False, True),
    ],
)
def test_norms_inside_attention_are_found(name, whole, after_rotary):
    model = tiny(name) if name in ARCHITECTURES else extra(name)
    for layer in range(N_LAYERS):
        w = model.weights()[layer]
        for norm in (w.q_norm, w.k_norm):
            assert (norm.whole, norm.after_rotary, norm.centred) == (whole, after_rotary, False)
        assert w.v_norm is None


def test_a_norm_with_gains_after_rotary_has_no_score_by_offset():
    model = extra("hunyuan")
    with torch.no_grad():
        model.torch_module.model.layers[0].self_attn.query_layernorm.weight[0] += 1
    with pytest.raises(BackendError, match="layer 0: a norm with unequal gains comes after rotary"):
        model.weights().qk(0, 0, offset=3)


def test_scores_that_depend_on_the_position_are_refused():
    """Queries that grow with their position (as in Llama-4's temperature)."""
    model = interp.load(build("gpt2"))
    module = model.torch_module.transformer.h[1].attn.c_attn
    positions = []
    model.torch_module.transformer.wpe.register_forward_hook(lambda m, args, out: positions.append(args[0]))
    module.register_forward_hook(lambda m, args, out: out * (1 + 0.1 * positions[-1].to(out)).view(1, -1, 1))
    weights = model.weights()
    with pytest.raises(BackendError, match=r"layer 1: the score of positions \(3, 0\) differs from that of \(10, 7\)"):
        weights.rotation(1, 3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi", "qwen3", "olmo2", "gpt_oss"])
def test_half_precision_is_read_in_float32(name):
    """The matrices of a bf16 model are its stored numbers, whatever the biases beside them.

    But for what the model itself rounds at position 0: yarn's factor, in GPT-OSS.
    """
    model = build(name).bfloat16()
    wide = build(name)
    wide.load_state_dict(model.state_dict())
    half, full = interp.load(model).weights(), interp.load(wide).weights()
    for layer in range(N_LAYERS):
        a, b = half[layer], full[layer]
        for key in ("w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o"):
            assert getattr(a, key).dtype == torch.float32
            rounded = name == "gpt_oss" and key[-1] in "qk"
            assert_close(getattr(a, key), getattr(b, key), rtol=5e-3 if rounded else 1e-5, atol=1e-5)
        if a.q_norm is not None:
            assert_close(a.q_norm.gain, b.q_norm.gain, rtol=1e-4, atol=1e-4)
        assert_close(half.rotation(layer, 5), full.rotation(layer, 5), rtol=0, atol=1e-2)
    assert_close(half.w_u, full.w_u, rtol=0, atol=0)
    assert_close(half.w_e, full.w_e, rtol=0, atol=0)


EMBEDDED = ["gpt2", "llama", "gpt_neox", "gemma2", "opt", "olmo2", "gpt_oss"]


@pytest.mark.parametrize("name", EMBEDDED)
def test_effective_embeddings(name):
    """Each token alone, as its own prompt gives it; through the MLP alone when what attention adds is nothing."""
    model = tiny(name)
    tokens = torch.tensor([5, 9, 33])
    assert VARIANTS == ("full", "mlp", "embed")
    for bos in (None, 2):
        full, mlp, embed = (effective_embedding(model, tokens=tokens, variant=v, bos=bos, per_pass=2) for v in VARIANTS)
        assert full.shape == mlp.shape == embed.shape == (3, D_MODEL)
        for i, token in enumerate(tokens.tolist()):
            prompt = torch.tensor([[token] if bos is None else [bos, token]])
            block = model.torch_module.get_decoder().get_submodule(layers_path(model))[0]
            with kept(block) as enters, kept(block, out=True) as leaves:
                model.run(prompt)
            assert_close(full[i], leaves[0][0, -1], rtol=1e-4, atol=1e-4)
            assert_close(embed[i], enters[0][0, -1], rtol=1e-4, atol=1e-4)
    silenced = build(name)
    with torch.no_grad():
        part = interp.load(silenced).anatomy.attention[0]
        for parameter in (part.norm_after or part.output).parameters():
            parameter.fill_(-1.0 if name == "gemma2" else 0.0)  # Gemma's gain is one more than its weight
    quiet = effective_embedding(interp.load(silenced), tokens=tokens, variant="full")
    assert_close(effective_embedding(model, tokens=tokens), quiet, rtol=1e-4, atol=1e-4)


def layers_path(model):
    """Name of the list of layers inside the decoder."""
    return next(name for name, m in model.torch_module.get_decoder().named_modules() if m is model.anatomy.blocks)


def test_effective_embedding_of_the_whole_vocabulary_goes_into_a_circuit():
    model = tiny("llama")
    embedding = effective_embedding(model)
    assert embedding.shape == (D_VOCAB, D_MODEL)
    weights = model.weights()
    circuit = weights.full_ov(1, 3, embedding=embedding, fold_norm=False, centre=False)
    want = embedding @ weights.ov(1, 3).dense() @ weights.w_u
    assert_close(circuit.dense(), want, rtol=1e-4, atol=1e-3 * float(want.abs().max()))


def test_effective_embedding_refuses_what_is_not_there():
    model = tiny("llama")
    with pytest.raises(SiteError, match="unknown variant 'mpl'; did you mean 'mlp'"):
        effective_embedding(model, variant="mpl")
    with pytest.raises(SiteError, match="layer 2 is out of range"):
        effective_embedding(model, layer=2)
    with pytest.raises(TaskError, match="no tokens"):
        effective_embedding(model, tokens=[])


def test_the_model_is_left_as_it_was():
    model = build("olmo2").train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    loaded = interp.load(model)
    loaded.weights().qk(1, 0, offset=3)
    assert model.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert model.config._attn_implementation == "eager"
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_layers_are_read_when_asked_for_and_forgotten_beyond_the_bound():
    weights = tiny("llama").weights()
    weights.keep = weights[0].nbytes
    assert list(weights._layer_cache) == [0]
    first = weights[0]
    assert weights[0] is first
    weights[1].w_q  # noqa: B018
    assert list(weights._layer_cache) == [1]
    assert_close(weights[0].w_q, first.w_q, rtol=0, atol=0)


def test_errors_say_what_is_there():
    weights = tiny("gpt2").weights()
    with pytest.raises(SiteError, match=r"layer 7 has no attention weights; layers with attention: \(0, 1\)"):
        weights[7]
    with pytest.raises(SiteError, match="L0H8: head 8 is out of range; there are 8 heads"):
        weights.ov(0, 8)
    with pytest.raises(SiteError, match="offset -1: expected 0 to 699"):
        weights.qk(0, 0, offset=-1)
    with pytest.raises(SiteError, match="offset 700"):
        weights.rotation(0, 700)
    assert weights.rotation(0, 699).shape == (8, 8)
