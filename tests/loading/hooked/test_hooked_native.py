"""Bridges of TransformerLens's own make, `TransformerBridge.boot_native`, come in on their own parameters."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_equal_to_rounding

import interp
from interp.errors import ModelLoadError

SIZES = {"d_model": 16, "d_head": 4, "n_layers": 2, "n_ctx": 12, "n_heads": 4, "d_vocab": 20, "d_mlp": 24}
VARIANTS = {
    "plain": {},
    "attention only, no norms": {"attn_only": True, "normalization_type": None},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 2},
    "both ways": {"attention_dir": "bidirectional"},
    "grouped, gated": {"n_key_value_heads": 2, "gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS"},
    "solu_ln": {"act_fn": "solu_ln"},
    "caps": {"attn_scores_soft_cap": 1.0, "output_logits_soft_cap": 0.5, "normalization_type": "LNPre"},
    "scale": {"attn_scale": 3.0, "final_rms": True, "d_vocab_out": 9},
}


@pytest.fixture
def native():
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    def boot(variant):
        options = {**SIZES, "act_fn": "relu", "architecture": "TransformerLensNative", **VARIANTS[variant]}
        bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**options))
        with torch.no_grad():
            for p in bridge.original_model.parameters():
                p.add_(0.3 * torch.randn_like(p))
        return bridge

    return boot


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_bridges_and_parameters_shared(native, variant):
    bridge, ids = native(variant), torch.arange(18).view(2, 9)
    model = interp.load(bridge)
    with torch.no_grad():
        assert_equal_to_rounding(model.run(ids).logits, bridge.original_model(ids), depth=64)
        for p in bridge.original_model.parameters():
            p.mul_(1.1)
        assert_equal_to_rounding(model.run(ids).logits, bridge.original_model(ids), depth=64)
    assert model.backend == "hf"


def test_what_is_not_as_the_config_says_is_refused(native):
    bridge = native("plain")
    bridge.cfg.attention_dir = "bidirectional"
    with pytest.raises(ModelLoadError, match="gives other logits than its config says"):
        interp.load(bridge)
    bridge.cfg.attn_only = True
    with pytest.raises(ModelLoadError, match="NativeModel of TransformerLens cannot be read"):
        interp.load(bridge)


def test_the_lens_backend_has_no_way_for_it(native):
    with pytest.raises(ModelLoadError, match="TransformerLens cannot bridge HookedDecoder"):
        interp.load(native("plain"), backend="lens")
