"""What is captured is what flows: next to hooks written by hand, and by the arithmetic of the residual stream."""

from __future__ import annotations

import contextlib

import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES, N_HEADS, N_LAYERS, ragged, subject, tiny
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

import interp
from interp.backends.hf.read_norms import read_norm
from interp.edits import Add, Scale
from interp.errors import SiteError
from interp.measurement.checks.laws import attending, places, running
from interp.sites import KINDS, UNLAYERED

PARALLEL, ADDED, POST = ("gpt_neox", "phi"), ("gpt2", "opt"), ("gemma2", "olmo2")
REASONS = {
    "resid_mid": "parallel residual",
    "mlp_up": "has no gate",
    "pos_embed": "no module's output is added",
    "router_logits": "no mixture of experts",
    "attn_out_norm_scale": "no norm behind its attention",
    "mlp_out_norm_scale": "no norm behind its MLP",
    "mlp_norm_scale": "no norm before its MLP",
}


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


def absent(name):
    """Kinds that an architecture lacks."""
    lacking = {"resid_mid"} if name in PARALLEL else set()
    lacking |= {"mlp_pre", "mlp_up", "mlp_post"} if name == "gpt_oss" else {"router_logits"}
    lacking |= set() if name in ADDED else {"pos_embed"}
    lacking |= {"mlp_up"} if name in (*ADDED, *PARALLEL) else set()
    lacking |= set() if name in POST else {"attn_out_norm_scale", "mlp_out_norm_scale"}
    return lacking | ({"mlp_norm_scale"} if name == "olmo2" else set())


@contextlib.contextmanager
def seen(module, *paths):
    """What modules take (`path<`) and give (`path>`), by hooks of one's own."""
    found, handles = {}, []
    for path in paths:
        part = module.get_submodule(path[:-1])
        if path.endswith("<"):
            hook = lambda m, args, kwargs, path=path: found.update({path: (*args, *kwargs.values())[0]})  # noqa: E731
            handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            hook = lambda m, args, out, path=path: found.update({path: out[0] if isinstance(out, tuple) else out})  # noqa: E731
            handles.append(part.register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


BY_HAND = {
    "gpt2": {
        "resid_pre": "transformer.h.1<",
        "resid_mid": "transformer.h.1.ln_2<",
        "resid_post": "transformer.h.1>",
        "attn_in": "transformer.h.1.attn<",
        "mlp_pre": "transformer.h.1.mlp.c_fc>",
        "attn_out": "transformer.h.1.attn>",
        "mlp_in": "transformer.h.1.mlp.c_fc<",
        "mlp_post": "transformer.h.1.mlp.c_proj<",
        "mlp_out": "transformer.h.1.mlp>",
        "z": "transformer.h.1.attn.c_proj<",
    },
    "llama": {
        "resid_pre": "model.layers.1<",
        "resid_mid": "model.layers.1.post_attention_layernorm<",
        "resid_post": "model.layers.1>",
        "attn_in": "model.layers.1.self_attn.k_proj<",
        "mlp_pre": "model.layers.1.mlp.gate_proj>",
        "mlp_up": "model.layers.1.mlp.up_proj>",
        "attn_out": "model.layers.1.self_attn.o_proj>",
        "mlp_in": "model.layers.1.mlp.up_proj<",
        "mlp_post": "model.layers.1.mlp.down_proj<",
        "mlp_out": "model.layers.1.mlp.down_proj>",
        "z": "model.layers.1.self_attn.o_proj<",
    },
    "gemma2": {
        "attn_out": "model.layers.1.post_attention_layernorm>",
        "resid_mid": "model.layers.1.pre_feedforward_layernorm<",
        "mlp_out": "model.layers.1.post_feedforward_layernorm>",
        "mlp_post": "model.layers.1.mlp.down_proj<",
    },
    "gpt_neox": {
        "attn_out": "gpt_neox.layers.1.attention.dense>",
        "mlp_out": "gpt_neox.layers.1.mlp>",
        "mlp_in": "gpt_neox.layers.1.post_attention_layernorm>",
        "attn_in": "gpt_neox.layers.1.input_layernorm>",
        "mlp_pre": "gpt_neox.layers.1.mlp.dense_h_to_4h>",
    },
    "opt": {
        "mlp_pre": "model.decoder.layers.1.fc1>",
        "mlp_post": "model.decoder.layers.1.fc2<",
        "mlp_out": "model.decoder.layers.1.fc2>",
    },
    "gpt_oss": {
        "mlp_out": "model.layers.1.mlp>",
        "mlp_in": "model.layers.1.mlp<",
        "router_logits": "model.layers.1.mlp.router>",
    },
    "olmo2": {"attn_out": "model.layers.1.post_attention_layernorm>", "resid_mid": "model.layers.1.mlp<"},
    "phi": {"attn_out": "model.layers.1.self_attn.dense>", "mlp_out": "model.layers.1.mlp>"},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_captures_are_what_modules_take_and_give(name):
    model, batch = tiny(name), ragged(9, "unpadded")
    with seen(model.torch_module, *BY_HAND[name].values()) as found:
        run = model.run(batch, capture=[f"L1.{kind}" for kind in BY_HAND[name]])
    for kind, path in BY_HAND[name].items():
        given = run[f"L1.{kind}"]
        assert_close(given, found[path].reshape(given.shape), atol=0, rtol=0, msg=kind)


def test_what_stands_outside_the_layers():
    model, batch = tiny("gpt2"), ragged(9, "left", lengths=(9, 6))
    paths = {"token_embed": "transformer.wte>", "pos_embed": "transformer.wpe>", "unembed_in": "lm_head<"}
    with seen(model.torch_module, *paths.values()) as found:
        run = model.run(batch, capture=[*paths, "embed"])
    for kind, path in paths.items():
        assert_close(run[kind], found[path], atol=0, rtol=0)
    assert_close(run["token_embed"] + run["pos_embed"], run["embed"], atol=0, rtol=0)
    moved = model.run(batch, edits=[Scale("token_embed", 0.5), Scale("pos_embed", 0.5)]).logits
    assert_equal_to_rounding(moved, model.run(batch, edits=[Scale("embed", 0.5)]).logits)
    assert_equal_to_rounding(model.run(batch, edits=[Scale("unembed_in", 2.0)]).logits, 2 * model.run(batch).logits)


def test_scores_are_what_the_softmax_takes(name):
    """softmax(scores) is the pattern, where no sink takes a part; a key that is not visible has -inf."""
    model, batch = tiny(name), ragged(30, "left", lengths=(30, 21))
    run = model.run(batch, capture=["scores", "pattern"])
    for i in range(N_LAYERS):
        scores, pattern = (run[f"L{i}.{kind}"].transpose(1, 2)[batch.mask] for kind in ("scores", "pattern"))
        own = scores.softmax(-1)
        assert_equal_to_rounding(own if name != "gpt_oss" else pattern / pattern.sum(-1, keepdim=True), own)
        assert_equal_to_rounding(pattern / pattern.sum(-1, keepdim=True), own)
        assert torch.equal(scores.isinf(), pattern == 0)


def test_pre_activations_of_one_projection_for_both():
    config = transformers.Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model, batch = interp.load(transformers.AutoModelForCausalLM.from_config(config).eval()), torch.arange(8)[None]
    with seen(model.torch_module, "model.layers.1.mlp.gate_up_proj>") as found:
        run = model.run(batch, capture=["mlp_pre", "mlp_up", "mlp_post"])
    gate, up = found["model.layers.1.mlp.gate_up_proj>"].chunk(2, dim=-1)
    assert_close(run["L1.mlp_pre"], gate, atol=0, rtol=0)
    assert_close(run["L1.mlp_up"], up, atol=0, rtol=0)
    edited = model.run(batch, capture=["L1.mlp_post"], edits=[Add("L1.mlp_up", torch.ones(()))])["L1.mlp_post"]
    assert_equal_to_rounding(edited - run["L1.mlp_post"], torch.nn.functional.silu(gate))


def test_router_logits_that_are_given_beside_a_choice_cannot_be_changed():
    with pytest.raises(SiteError, match="chosen its experts"):
        tiny("gpt_oss").run([5, 6], edits=[Scale("L1.router_logits", 2.0)])


def test_modules_by_their_names():
    model, batch = tiny("gpt2"), ragged(9, "left", lengths=(9, 6))
    given, taken = "module:transformer.h.1.mlp.act", "module:transformer.h.1.mlp.act:input"
    run = model.run(batch, capture=[given, taken, f"{taken}@0", "L1.mlp_pre", "L1.mlp_post"])
    assert_close(run[given], run["L1.mlp_post"], atol=0, rtol=0)
    assert_close(run[taken], run["L1.mlp_pre"], atol=0, rtol=0)
    assert_close(run[f"{taken}@0"], run[taken][[0, 1], [0, 3]], atol=0, rtol=0)
    edited = model.run(batch, edits=[Scale(given, 0.5), Scale(f"{taken}@-1", 0.5)]).logits
    assert_close(edited, model.run(batch, edits=[Scale("L1.mlp_pre@-1", 0.5), Scale("L1.mlp_post", 0.5)]).logits)
    for site, why in (
        ("module:transformer.h.1.mlb", "did you mean 'transformer.h.1.mlp'"),
        ("module:transformer.h.1.attn.nothing.at.all.alike", "did you mean|named_modules"),
        ("module:transformer.h", "did not come by|did you mean"),
    ):
        with pytest.raises(interp.InterpError, match=why):
            model.run(batch, capture=[site])
    with pytest.raises(SiteError, match="int64"):
        model.run(batch, edits=[Scale("module:transformer.wte:input", 2)])


@pytest.mark.parametrize("name", ["gpt_neox", "gpt_oss", "olmo2"])
def test_all_is_what_each_kind_gives_by_itself(name):
    model, batch = tiny(name), ragged(9, "unpadded")
    run = model.run(batch, capture="all")
    kinds = subject(name, batch).kinds()
    layers = {f"L{i}.norm_scale" for i in range(N_LAYERS)} if name != "olmo2" else set()
    each = model.run(batch, capture=[*kinds, *layers])
    assert set(run.acts) == set(each.acts)
    for site, x in each.acts.items():
        assert_close(run[site], x, atol=0, rtol=0)
    part = model.run(batch, capture={"all": lambda x: x.sum()}, start=(1, run["L1.resid_pre"]), stop=1)
    assert {s.first for s in part.acts} == {1} and all(x.ndim == 0 for x in part.acts.values())


def test_every_site_is_there_but_those_an_architecture_lacks(name):
    asked = subject(name, ragged(9, "unpadded"))
    assert set(asked.kinds()) == set(KINDS) - absent(name)
    places.captures_have_the_declared_shapes(asked)


@pytest.mark.parametrize("side", ["unpadded", "left"])
def test_the_residual_is_the_sum_of_what_is_added(name, side):
    places.the_residual_is_the_sum_of_what_is_added(subject(name, ragged(9, side)))


def test_heads_and_a_bias_are_attention(name):
    """attn_out less its heads is the same at every token, but for the frozen divisor of a norm behind attention."""
    model, batch = tiny(name), ragged(9, "unpadded")
    run = model.run(batch, capture=["head_out", "attn_out", "z"])
    for i in range(N_LAYERS):
        part = model.anatomy.part(i)
        rest = run[f"L{i}.attn_out"] - run[f"L{i}.head_out"].sum(2)
        bias = part.output(torch.zeros(1, N_HEADS * part.d_value)).detach()[0]
        if part.norm_after is None:
            expected = bias.expand_as(rest)
        else:
            norm = read_norm(part.norm_after, model.info.d_model)
            assert not norm.centred and not bias.any()
            expected = torch.zeros_like(rest)
        assert_close(rest, expected, atol=2e-5, rtol=1e-4)


def test_a_pattern_mixes_values_into_z(name):
    attending.a_pattern_mixes_values_into_z(subject(name, ragged(9, "unpadded")))


def test_the_divisor_of_a_norm(name):
    """gain * (x - mean) / divisor + bias is what the norm gives."""
    model, batch = tiny(name), ragged(9, "unpadded")
    places = {"norm_scale": model.anatomy.final_norm}
    for i in range(N_LAYERS):
        part, stream = model.anatomy.part(i), model.anatomy.stream[i]
        places |= {f"L{i}.norm_scale": part.norm_before, f"L{i}.mlp_norm_scale": stream.mlp_norm}
        places |= {f"L{i}.attn_out_norm_scale": part.norm_after, f"L{i}.mlp_out_norm_scale": stream.mlp_norm_after}
    places = {site: norm for site, norm in places.items() if norm is not None}
    assert len(places) == 1 + N_LAYERS * {"gemma2": 4, "olmo2": 2}.get(name, 2)
    paths = {id(m): p for p, m in model.torch_module.named_modules()}
    for site, norm in places.items():
        path = paths[id(norm)]
        with seen(model.torch_module, path + "<", path + ">") as found:
            divisor = model.run(batch, capture=[site])[site]
        read = read_norm(norm, model.info.d_model)
        expected = read.linear(found[path + "<"].reshape(*batch.ids.shape, -1)) / divisor + read.bias
        assert divisor.shape == (*batch.ids.shape, 1)
        assert_close(found[path + ">"].reshape(expected.shape), expected, atol=1e-4, rtol=1e-4)


def test_padding_and_batching_change_nothing(name):
    running.padding_and_batching_change_nothing(subject(name, ragged(11, "unpadded", lengths=(11, 11, 11))))


def test_heads_and_positions_are_narrowed(name):
    model, batch = tiny(name), ragged(11, "left", lengths=(11, 6))
    whole = model.run(batch, capture=["L1.z", "L1.pattern", "L1.resid_post"])
    part = model.run(batch, capture=["L1H3.z", "L1H3.z@-1", "L1H3.pattern", "L1.pattern@2", "L1.resid_post@0"])
    assert_close(part["L1H3.z"], whole["L1.z"][:, :, 3], atol=0, rtol=0)
    assert_close(part["L1H3.z@-1"], whole["L1.z"][:, -1, 3], atol=0, rtol=0)
    assert_equal_to_rounding(part["L1H3.pattern"], whole["L1.pattern"][:, 3])
    assert_equal_to_rounding(part["L1.pattern@2"][1], whole["L1.pattern"][1, :, 7])
    assert_close(part["L1.resid_post@0"], whole["L1.resid_post"][[0, 1], [0, 5]], atol=0, rtol=0)


def test_a_reducer_runs_inside():
    model, batch = tiny("llama"), ragged(9, "unpadded")
    whole = model.run(batch, capture=["resid_post", "L0H2.pattern"])
    run = model.run(batch, capture={"resid_post": lambda x: x.mean(1), "L0H2.pattern": lambda p: p[..., 0], "z": None})
    assert_equal_to_rounding(run.stack("resid_post"), whole.stack("resid_post").mean(2))
    assert_close(run["L0H2.pattern"], whole["L0H2.pattern"][..., 0], atol=0, rtol=0)
    assert run.stack("z").shape[:2] == (N_LAYERS, len(batch.ids))


def test_what_an_architecture_lacks_is_refused_with_the_reason(name):
    for kind in absent(name):
        site = kind if kind in UNLAYERED else f"L1.{kind}"
        reason = (
            "mixture of experts" if name == "gpt_oss" and kind == "mlp_up" else REASONS.get(kind, "mixture of experts")
        )
        with pytest.raises(SiteError, match=rf"{site}: .*{reason}"):
            tiny(name).run([5, 6], capture=[site])
    if name == "olmo2":
        with pytest.raises(SiteError, match=r"L0\.norm_scale: layer 0 has no norm before attention"):
            tiny(name).run([5, 6], capture=["L0.norm_scale"])


def test_a_residual_multiplier_is_part_of_what_is_added():
    config = transformers.GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, residual_multiplier=0.22, embedding_multiplier=12.0,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = interp.load(transformers.AutoModelForCausalLM.from_config(config).eval())
    run = model.run(
        torch.arange(8)[None], capture=["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out"]
    )
    assert model.anatomy.stream[0].attn_scale == 0.22
    assert_equal_to_rounding(run["L1.resid_pre"] + run["L1.attn_out"], run["L1.resid_mid"])
    assert_equal_to_rounding(run["L1.resid_mid"] + run["L1.mlp_out"], run["L1.resid_post"])
    assert_equal_to_rounding(run["L1.head_out"].sum(2), run["L1.attn_out"])


def test_native_attention_and_ours_agree():
    """Captures of the stream leave the model its own attention; those inside attention use ours."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model, ids = interp.load(module), torch.arange(20)[None]
    plain = model.run(ids, capture=["z", "resid_post"])
    ours = model.run(ids, capture=["z", "resid_post", "q"])
    for site, x in plain.acts.items():
        assert_equal_to_rounding(ours.acts[site], x)
    assert_equal_to_rounding(ours.logits, plain.logits)
    with torch.no_grad():
        assert_close(plain.logits, module(ids, use_cache=False).logits, atol=0, rtol=0)
