"""Which layer attention belongs to, and where its z and its writes stand: by the modules, never by the model's type."""

import pytest
import torch
import transformers
from torch.testing import assert_close

import interp
from interp.attention import KeyMass
from interp.batch import Batch
from interp.decompose import decompose
from interp.edits import Ablate, KnockOut, Replace
from interp.errors import BackendError, ModelLoadError, SiteError
from interp.measurement.checks.backend import random_module
from interp.measurement.checks.laws.reading import paired_activations
from interp.measurement.checks.laws.subject import Subject, close

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_dt_rank": 4}
IDS = torch.arange(5, 17)[None]


def module(kind, **options):
    return random_module(getattr(transformers, f"{kind}Config")(**{**SIZES, **options}), scale=4.0)


def bart():
    options = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    return module("Bart", **options, is_decoder=True, pad_token_id=1, is_encoder_decoder=False)


def roberta():
    return module("Roberta", num_hidden_layers=2, is_decoder=True, pad_token_id=1)


def zamba():
    kinds = ["linear_attention", "hybrid"] * 2
    sizes = {"num_hidden_layers": 4, "num_key_value_heads": 2, "attention_hidden_size": 64, "attention_head_dim": 16}
    return module("Zamba", **sizes, **MAMBA, layers_block_type=kinds, n_mamba_heads=2, pad_token_id=0)


def jamba():
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
    return module("Jamba", **sizes, **MAMBA, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False)


def bitnet():
    return module("BitNet", num_hidden_layers=2, num_key_value_heads=2)


def head_out_is_attention(model, layers):
    run = model.run(IDS, capture=["head_out", "attn_out"])
    for i in layers:
        rest = run[f"L{i}.attn_out"] - run[f"L{i}.head_out"].sum(2)
        assert_close(rest, rest[:, :1].expand_as(rest), atol=1e-4, rtol=1e-4)


def test_blocks_that_share_their_attention_each_have_a_layer():
    source = zamba()
    model = interp.load(source)
    assert model.info.attention_layers == (1, 3)
    run = model.run(IDS, capture=["z", "pattern"])
    assert not torch.allclose(run["L1.z"], run["L3.z"])
    logits = [model.run(IDS, edits=[Ablate(f"L{i}H0.z")]).logits for i in (1, 3)]
    assert not torch.allclose(logits[0], logits[1])
    answers = model.attention(IDS, {"first": KeyMass(torch.arange(12)[None] == 0)})
    assert_close(answers["first"], run.stack("pattern")[..., 0], atol=1e-5, rtol=1e-4)
    with pytest.raises(BackendError, match="reads something else than the layer's stream"):
        model.weights()[1]
    assert model.run(IDS, capture=["L1.norm_scale"])["L1.norm_scale"].shape == (1, 12, 1)
    assert "head_out" in model.reads(1).missing and model.reads(1).attn is None


def test_attention_that_is_run_several_times_in_a_pass_is_refused():
    source = module("Llama", num_hidden_layers=2)
    source.model.layers[1] = source.model.layers[0]
    with pytest.raises(ModelLoadError, match="run more than once in a pass"):
        interp.load(source)


@pytest.mark.parametrize("make", [bart, roberta])
def test_post_norm_layers_have_both_writes_and_no_sum(make):
    source = make()
    model = interp.load(source)
    with torch.no_grad():
        assert_close(model.run(IDS).logits, source(IDS).logits, atol=1e-4, rtol=1e-4)
    head_out_is_attention(model, (0, 1))
    run = model.run(IDS, capture=["attn_out", "mlp_out", "mlp_in", "resid_pre", "resid_post"])
    read = model.reads(1).mlp(run["L1.resid_pre"] + run["L1.attn_out"])
    assert_close(read, run["L1.mlp_in"], atol=1e-4, rtol=1e-4)
    sums = run["L1.mlp_in"] + run["L1.mlp_out"]
    sums = (sums - sums.mean(-1, keepdim=True)) / (sums.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    similar = torch.nn.functional.cosine_similarity(sums, run["L1.resid_post"], dim=-1)
    assert float(similar.min()) > 0.9  # but for the gains of the last norm
    with pytest.raises(SiteError, match="post-norm"):
        model.run(IDS, capture=["L0.resid_mid"])
    assert "post-norm" in model.writes(0).missing["attn_out"] and model.writes(0).attn is None


def test_layers_without_attention_have_an_mlp():
    source = jamba()
    model = interp.load(source)
    run = model.run(IDS, capture=["mlp_out", "resid_post"])
    seen = []
    handle = source.model.layers[0].feed_forward.register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        source(IDS)
    handle.remove()
    out = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert_close(run["L0.mlp_out"], out.view_as(run["L0.mlp_out"]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.run(IDS, edits=[Ablate("L0.mlp_out", "zero")]).logits, run.logits)


def test_edits_of_attention_stand_while_layers_without_attention_have_a_state():
    """Token by token, with the cache that such a model needs, is the whole run anew for each token."""
    model, batch = interp.load(jamba()), Batch.of([[3, 4, 5, 6, 7, 8], [9, 4, 6, 7]], side="left")
    runs = []
    for edits in ([], [KnockOut("L1.pattern", keys=-1, renormalise=False), Replace("L1.pattern", 3.0, positions=-2)]):
        cached, anew = (model.generate(batch, edits=edits, max_new_tokens=8, use_cache=c) for c in (True, False))
        assert torch.equal(cached, anew)
        runs.append(cached)
    assert not torch.equal(*runs)


def test_z_in_front_of_a_norm_is_seen_and_changed_inside_attention():
    source = bitnet()
    model = interp.load(source)
    run = model.run(IDS, capture=["pattern", "v", "z"])
    values = run["L0.v"].repeat_interleave(2, 2)
    assert_close(torch.einsum("bhqk,bkhd->bqhd", run["L0.pattern"], values), run["L0.z"], atol=1e-5, rtol=1e-4)
    head_out_is_attention(model, (0, 1))
    assert "changes z before its output projection" in model.reads(0).missing["head_out"]
    assert model.writes(0).attn is None and decompose(model, IDS, position=None).error < 1e-5
    edits = [Replace("L1H2.z", torch.zeros(1, 12, 8))]
    projection = source.model.layers[1].self_attn.attn_sub_norm
    handle = projection.register_forward_pre_hook(lambda m, args: (args[0] * (torch.arange(32) // 8 != 2),))
    with torch.no_grad():
        by_hand = source(IDS).logits
    handle.remove()
    assert_close(model.run(IDS, edits=edits).logits, by_hand, atol=1e-4, rtol=1e-4)
    with model.editing(edits), torch.no_grad():
        assert_close(source(IDS).logits, by_hand, atol=1e-4, rtol=1e-4)


def test_heads_that_are_mixed_before_the_projection_have_no_writes():
    source = module("DiffLlama", num_hidden_layers=2, num_key_value_heads=2)
    model = interp.load(source)
    for kind, why in (("z", "several pieces"), ("head_out", "mixes the z of its heads")):
        with pytest.raises(SiteError, match=why):
            model.run(IDS, capture=[kind])
    assert model.run(IDS, capture=["attn_out"]).stack("attn_out").shape == (2, 1, 12, 32)


def test_norms_without_parameters():
    model = interp.load(module("Olmo", num_hidden_layers=2))
    w, run = model.weights()[1], model.run(IDS, capture=["resid_pre", "v", "norm_scale", "L1.norm_scale"])
    v = torch.einsum("bpm,hmd->bphd", w.norm(run["L1.resid_pre"]), w.w_v) + w.b_v
    assert_close(v, run["L1.v"], atol=1e-4, rtol=1e-4)
    assert w.norm.centred and run["norm_scale"].shape == (1, 12, 1)


def test_key_value_heads_of_layers_that_differ_are_those_of_the_layer_with_most():
    source = module("Llama", num_hidden_layers=2, num_key_value_heads=2)
    part = source.model.layers[1].self_attn
    part.num_key_value_groups = 4
    with torch.no_grad():
        for projection in (part.k_proj, part.v_proj):
            projection.weight = torch.nn.Parameter(projection.weight[:8])
            projection.out_features = 8
    model = interp.load(source)
    assert model.info.n_kv_heads == 2
    run, w = model.run(IDS, capture=["pattern", "v", "z", "resid_pre"]), model.weights()[1]
    assert torch.equal(run["L1.v"][:, :, 0], run["L1.v"][:, :, 1])
    values = run["L1.v"].repeat_interleave(2, 2)
    assert_close(torch.einsum("bhqk,bkhd->bqhd", run["L1.pattern"], values), run["L1.z"], atol=1e-5, rtol=1e-4)
    assert_close(torch.einsum("bpm,hmd->bphd", w.norm(run["L1.resid_pre"]), w.w_v), run["L1.v"], atol=1e-4, rtol=1e-4)


def test_what_a_model_does_with_its_mask_is_refused_by_name():
    with pytest.raises(ModelLoadError, match="computes with the attention mask itself"):
        interp.load(module("Doge", num_hidden_layers=2, num_key_value_heads=2))


def test_several_streams_at_once_are_refused_and_the_rest_runs():
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
    sizes |= {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 16, "laurel_rank": 8, "pad_token_id": 0}
    source = module("Gemma3nText", **sizes, num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0])
    model = interp.load(source)
    for kind in ("embed", "resid_pre", "L1.resid_post"):
        with pytest.raises(SiteError, match="several residual streams"):
            model.run(IDS, capture=[kind])
    with pytest.raises(SiteError, match="several residual streams"):
        model.run(IDS, start=(1, torch.zeros(1, 12, 32)))
    assert model.run(Batch.of(IDS), capture=["pattern"]).stack("pattern").shape == (2, 1, 4, 12, 12)


MLA = {"q_lora_rank": 16, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}


@pytest.mark.parametrize("kind", ["DeepseekV3", "MiniCPM3"])
def test_latent_attention(kind):
    """q and k are wider than v; norms stand on latents, and divide those channels of heads that are made of them."""
    more = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
    more = {**more, "first_k_dense_replace": 1} if kind == "DeepseekV3" else {"scale_depth": 0.7}
    source = module(kind, num_hidden_layers=2, num_key_value_heads=4, **MLA, **more)
    model = interp.load(source)
    pairs = paired_activations(Subject(model, source, Batch.of(IDS)))
    for what, (ours, theirs) in pairs.items():
        close(ours, theirs, what, share=1e-4)
    assert {f"L1.{kind}" for kind in ("q", "k", "v", "attn_out")} <= set(pairs)
    head_out_is_attention(model, (0, 1))
    weights = model.weights()
    assert weights[0].k_norm.divided.tolist() == [True] * 8 + [False] * 4
    with pytest.raises(BackendError, match="divides a part of each head's channels"):
        weights.qk(0, 1)


def test_a_residual_multiplier_is_in_the_output_matrix():
    source = module("Granite", num_hidden_layers=2, num_key_value_heads=2, residual_multiplier=0.4)
    model = interp.load(source)
    run, w = model.run(IDS, capture=["z", "attn_out"]), model.weights()[1]
    assert_close(torch.einsum("bphd,hdm->bpm", run["L1.z"], w.w_o) + w.b_o, run["L1.attn_out"], atol=1e-4, rtol=1e-4)
