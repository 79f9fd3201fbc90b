"""Models of TransformerLens's own make (`TransformerBridge.boot_native`), as a `HookedDecoder` on their parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import ModelLoadError
from interp.loading.hooked.config import HookedConfig
from interp.loading.hooked.decoder import HookedDecoder
from interp.loading.hooked.options import NORMS
from interp.loading.hooked.parts import ACTIVATIONS
from interp.loading.hooked.read import special_attention
from interp.numerics import evaluating

WRAPPED = "._original_component"
NAMES = {
    "tok_embed": "embed",
    "pos": "pos_embed",
    "layers": "blocks",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "fc_in": "in_proj",
    "fc_out": "out_proj",
    "gate": "gate_proj",
    "in": "in_proj",
    "out": "out_proj",
    "ln_out": "ln_final",
    "head": "unembed",
}
"""Parts of a native model by the names that the decoder has for them; the others are the same."""
AGREEMENT = 1e-4  # of the logits' standard deviation: what the two may differ by


def is_native(source: Any) -> bool:
    """Whether an object is a bridge around a module of TransformerLens's own, which transformers knows nothing of."""
    if not any(kind.__module__.partition(".")[0] == "transformer_lens" for kind in type(source).__mro__):
        return False
    return type(getattr(source, "original_model", None)).__module__.partition(".")[0] == "transformer_lens"


def native_decoder(bridge: Any) -> HookedDecoder:
    """A decoder that shares the bridge's parameters; hooks of the bridge do not fire in it.

    Raises:
        ModelLoadError: the native model is of another make, or does not give the same logits (processed weights, say).
    """
    native = bridge.original_model
    try:
        config = _config(bridge.cfg)
        model: Any = HookedDecoder._from_config(config, **special_attention(config))
        state = {_name(name): parameter for name, parameter in native.named_parameters()}
        expected = dict(model.named_parameters())
        for name, parameter in expected.items():
            if name not in state and (name.endswith("bias") or "ln" in name):
                state[name] = parameter.detach().to(next(native.parameters()).device, next(native.parameters()).dtype)
                if name.endswith("bias"):
                    state[name] = torch.zeros_like(state[name])
        model.load_state_dict(state, strict=True, assign=True)
    except (KeyError, AttributeError, TypeError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(f"a {type(native).__name__} of TransformerLens cannot be read: {first}") from error
    _check(native, model)
    return model.eval()


def _name(name: str) -> str:
    return ".".join(NAMES.get(part, part) for part in name.replace(WRAPPED, "").split("."))


def _config(cfg: Any) -> HookedConfig:
    """What a native model computes: it reads fewer options than TransformerLens has, and rotates neighbours."""
    kind = (cfg.normalization_type or "").upper() or None
    norm, gains = {name and name.upper(): value for name, value in NORMS.items()}[kind]
    activation = (cfg.act_fn or "gelu").lower()
    bare = activation.removesuffix("_ln")
    if not cfg.attn_only and bare not in ACTIVATIONS:
        raise KeyError(f"activation {activation!r}")
    rotary = (cfg.positional_embedding_type or "standard").lower() == "rotary"
    if rotary and getattr(cfg, "rope_scaling", None):
        raise KeyError("rope_scaling")
    scaled = cfg.use_attn_scale and cfg.attn_scale > 0
    config = HookedConfig(
        vocab_size=cfg.d_vocab,
        output_size=cfg.d_vocab_out if cfg.d_vocab_out > 0 else cfg.d_vocab,
        hidden_size=cfg.d_model,
        intermediate_size=0 if cfg.attn_only else cfg.d_mlp,
        num_hidden_layers=cfg.n_layers,
        num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_key_value_heads or cfg.n_heads,
        head_dim=cfg.d_head,
        max_position_embeddings=cfg.n_ctx,
        norm=norm,
        norm_gains=gains,
        norm_eps=cfg.eps,
        final_norm="RMS" if cfg.final_rms else norm,
        positions="rotary" if rotary else "standard",
        rotary_dim=(cfg.d_head if cfg.rotary_dim is None else cfg.rotary_dim) if rotary else 0,
        rotary_base=float(cfg.rotary_base),
        rotary_pairs=True,
        scales=[1.0 / (cfg.attn_scale if scaled else cfg.d_head**0.5)] * cfg.n_layers,
        score_cap=cfg.attn_scores_soft_cap if cfg.attn_scores_soft_cap > 0 else None,
        logit_cap=cfg.output_logits_soft_cap if cfg.output_logits_soft_cap > 0 else None,
        is_causal=cfg.attention_dir == "causal",
        use_cache=cfg.attention_dir == "causal",
        gated=bool(cfg.gated_mlp) and not cfg.attn_only,
        activation=None if cfg.attn_only else bare,
        norm_neurons=None if cfg.attn_only or bare == activation else "LN",
    )
    config._name_or_path = str(getattr(cfg, "model_name", None) or "native")
    return config


def _check(native: nn.Module, model: HookedDecoder) -> None:
    """Refuse a decoder that does not give the native model's logits."""
    config = model.config
    n = min(8, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, n), generator=torch.Generator().manual_seed(0))
    ids = ids.to(next(native.parameters()).device)
    with torch.no_grad(), evaluating(native), evaluating(model):
        want: Tensor = native(ids)
        got: Tensor = model(ids, use_cache=False).logits
    error, spread = float((got - want).abs().max()), float(want.std())
    if not error <= AGREEMENT * max(spread, 1e-6):
        raise ModelLoadError(
            f"a {type(native).__name__} of TransformerLens gives other logits than its config says, by {error:.2g} at "
            f"a standard deviation of {spread:.2g}; load it before its weights are processed"
        )
