"""What is particular to a bridge: its own hooks, its processed weights, what it keeps."""

import copy

import pytest
import torch
import transformers
from agreement import on
from tiny_models import build, encoder, ragged
from tolerance import assert_equal_to_rounding

import interp
from interp.attention import Offset
from interp.edits import RotaryPlane
from interp.errors import ModelLoadError


def test_a_bridge_keeps_its_own_hooks(bridge_of):
    bridge, seen = bridge_of("gpt2"), []

    def double(x, hook):
        seen.append(hook.name)
        return 2 * x

    bridge.add_hook("blocks.1.hook_mlp_out", double)
    model, tokens = interp.load(bridge), ragged(8, "unpadded")
    seen.clear()
    run = model.run(tokens, capture=["L1.mlp_out"])
    assert len(seen) == 1
    assert_equal_to_rounding(run.logits, bridge(tokens.ids))
    assert len(bridge.blocks[1].mlp.hook_out.fwd_hooks) == 1


def test_a_bridge_in_half_precision_is_as_before_once_its_weights_are_read():
    """Its modules stand under several names each; what is read in float32 goes back to what it was."""
    model, tokens = interp.load(build("llama").to(torch.bfloat16), backend="lens"), ragged(8, "unpadded")
    before, held = model.run(tokens).logits, {id(p) for p in model.torch_module.parameters()}
    model.weights().rotation(0, 2)
    assert {id(p) for p in model.torch_module.parameters()} == held
    assert torch.equal(model.run(tokens).logits, before)
    turned = model.run(tokens, edits=[RotaryPlane("pattern", 0)]).logits
    assert (turned - before).abs().max() > 0.1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_half_precision_weights_are_read_wider_and_left_as_they_are(name):
    module, tokens = build(name).bfloat16(), ragged(8, "unpadded")
    wanted = interp.load(copy.deepcopy(module)).weights()[1]
    model = interp.load(module, backend="lens")
    before = model.run(tokens).logits
    own, weights = {n: (p, p.dtype) for n, p in model.torch_module.named_parameters()}, model.weights()
    for x in ("w_q", "w_k", "w_v", "w_o"):
        assert torch.equal(getattr(weights[1], x), getattr(wanted, x))
    weights.source.turns(1, range(3))
    weights.mlp(1)
    after = {n: (p, p.dtype) for n, p in model.torch_module.named_parameters()}
    assert all(p is own[n][0] and dtype == own[n][1] for n, (p, dtype) in after.items())
    assert torch.equal(model.run(tokens).logits, before)


def test_what_was_done_to_the_weights_is_recorded(bridge_of):
    bridge, tokens = bridge_of("gpt2"), ragged(8, "unpadded")
    before = interp.load(bridge)
    assert not any(before.info.weight_processing.values())
    bridge.enable_compatibility_mode(disable_warnings=True)
    model = interp.load(bridge)
    assert model.info.weight_processing["processed"]
    run = model.run(tokens, capture=["embed", "attn_out", "mlp_out", "L1.resid_post"])
    total = run["embed"] + run.stack("attn_out").sum(0) + run.stack("mlp_out").sum(0)
    assert_equal_to_rounding(total, run["L1.resid_post"])
    assert_equal_to_rounding(run.logits, bridge(tokens.ids))
    recorded = model.info.as_dict()
    assert recorded["attention_method"] == "dense (lens)"
    assert recorded["weight_processing"]["processed"]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "bloom"])
def test_no_pattern_is_kept_after_a_run(name):
    model = on("lens", name)
    model.run(ragged(8, "unpadded"))
    assert [getattr(a, "_pattern", None) for a in model.parts.attention.values()] == [None] * model.info.n_layers


def test_a_fused_method_is_refused():
    with pytest.raises(interp.InterpError, match="computes attention densely, not 'fused'; use 'auto'"):
        on("lens", "gpt2").attention(ragged(8, "unpadded"), {"p": Offset(1)}, method="fused")


def test_a_bridge_that_computes_something_else_is_refused():
    with pytest.raises(ModelLoadError, match="bridge of LlamaForCausalLM gives other logits than the model"):
        interp.load(encoder(), backend="lens")  # whose bridge masks later tokens


def test_a_bridge_whose_tokens_see_later_ones_is_refused():
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, intermediate_size=32, attn_implementation="eager")
    module = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    bridge = build_bridge_from_module(module, "BertForMaskedLM", hf_config=module.config)
    with pytest.raises(ModelLoadError, match="tokens see later ones"):
        interp.load(bridge)
