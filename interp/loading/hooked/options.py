"""Options of a HookedTransformer's config, by TransformerLens's names and defaults, as a `HookedConfig`.

What changes the forward pass is read or refused by name; what does not (`NO_MATTER`) is passed over; what is neither is
unknown, and refused too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from interp.errors import ModelLoadError, nearest
from interp.loading.hooked.config import HookedConfig
from interp.loading.hooked.parts import ACTIVATIONS

DEFAULTS: dict[str, Any] = {
    "n_layers": None,
    "d_model": None,
    "n_ctx": None,
    "d_head": None,
    "n_heads": -1,
    "n_key_value_heads": None,
    "d_mlp": None,
    "d_vocab": None,
    "d_vocab_out": -1,
    "act_fn": None,
    "attn_only": False,
    "gated_mlp": False,
    "eps": 1e-5,
    "normalization_type": "LN",
    "final_rms": False,
    "use_normalization_before_and_after": False,
    "post_embedding_ln": False,
    "positional_embedding_type": "standard",
    "rotary_dim": None,
    "rotary_base": 10000,
    "rotary_adjacent_pairs": False,
    "attention_dir": "causal",
    "use_attn_scale": True,
    "attn_scale": -1.0,
    "scale_attn_by_inverse_layer_idx": False,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "attn_coeff": 1.0,
    "parallel_attn_mlp": False,
    "use_local_attn": False,
    "window_size": None,
    "attn_types": None,
}
"""Options that are read, and what they are where a config leaves them out (None: they must be there, or depend)."""

OLD_NAMES = {"normalization": "normalization_type", "n_kv_heads": "n_key_value_heads"}

COMPANIONS = ("yarn_",)
"""Beginnings of options that are read only where another one (`use_yarn_rope`), refused by name, is switched on."""
UNSUPPORTED: dict[str, Any] = {
    "num_experts": None,
    "experts_per_token": None,
    "use_qk_norm": False,
    "use_NTK_by_parts_rope": False,
    "use_yarn_rope": False,
    "rope_scaling": None,
    "rotary_base_local": None,
    "rotary_scaling_factor": 1.0,
    "relative_attention_max_distance": None,
    "relative_attention_num_buckets": None,
    "decoder_start_token_id": None,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "rmsnorm_uses_offset": False,
}
"""Options that are not carried out, and the values (None always among them) under which they do nothing."""

NO_MATTER = frozenset(
    """
    model_name original_architecture from_checkpoint checkpoint_index checkpoint_label_type checkpoint_value
    tokenizer_name tokenizer_prepends_bos default_prepend_bos trust_remote_code dtype device n_devices
    use_attn_in use_attn_result use_split_qkv_input use_hook_tokens use_hook_mlp_in ungroup_grouped_query_attention
    init_mode init_weights initializer_range seed n_params tie_word_embeddings layer_norm_folding uses_rms_norm
    NTK_by_parts_low_freq_factor NTK_by_parts_high_freq_factor NTK_by_parts_factor NTK_original_ctx_len
    experts_per_token architecture architectures model_type torch_dtype transformers_version shortformer_pos
    format task tokens run_id source program description name version
    """.split()
)
"""Options that say nothing of the forward pass (or, `shortformer_pos`, are read under another name)."""

NORMS = {None: (None, True), "LN": ("LN", True), "LNPre": ("LN", False), "RMS": ("RMS", True), "RMSPre": ("RMS", False)}
POSITIONS = ("standard", "shortformer", "rotary", "none")


def read_options(options: Mapping[str, Any]) -> HookedConfig:
    """The decoder's config.

    Raises:
        ModelLoadError: an option that is missing, unknown, or has a value that cannot be carried out; names it.
    """
    o = _complete(options)
    causal = _choice(o, "attention_dir", ("causal", "bidirectional")) == "causal"
    n_heads = o["d_model"] // o["d_head"] if o["n_heads"] in (-1, None) else o["n_heads"]
    kv_heads = n_heads if o["n_key_value_heads"] is None else o["n_key_value_heads"]
    if n_heads % kv_heads:
        raise ModelLoadError(f"n_heads {n_heads} is no multiple of n_key_value_heads {kv_heads}")
    norm, gains = NORMS[_choice(o, "normalization_type", tuple(NORMS))]
    return HookedConfig(
        vocab_size=o["d_vocab"],
        output_size=o["d_vocab"] if o["d_vocab_out"] in (-1, None) else o["d_vocab_out"],
        hidden_size=o["d_model"],
        intermediate_size=0 if o["attn_only"] else 4 * o["d_model"] if o["d_mlp"] in (-1, None) else o["d_mlp"],
        num_hidden_layers=o["n_layers"],
        num_attention_heads=n_heads,
        num_key_value_heads=kv_heads,
        head_dim=o["d_head"],
        max_position_embeddings=o["n_ctx"],
        norm=norm,
        norm_gains=gains,
        norm_eps=float(o["eps"]),
        final_norm="RMS" if o["final_rms"] else norm,
        norm_after=o["use_normalization_before_and_after"],
        norm_embedding=o["post_embedding_ln"],
        scales=_scales(o),
        score_cap=_cap(o, "attn_scores_soft_cap"),
        logit_cap=_cap(o, "output_logits_soft_cap"),
        share=float(o["attn_coeff"]),
        is_causal=causal,
        use_cache=causal,
        parallel=o["parallel_attn_mlp"],
        **_positions(o),
        **_windows(o, causal=causal),
        **_neurons(o),
    )


def _complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option that is read, defaults filled in."""
    renamed = {OLD_NAMES.get(name, name): value for name, value in options.items()}
    if renamed.get("shortformer_pos"):
        renamed["positional_embedding_type"] = "shortformer"
    for name, value in renamed.items():
        if name in DEFAULTS or name in NO_MATTER or name.startswith(COMPANIONS):
            continue
        if name not in UNSUPPORTED and (value is None or value is False):
            continue  # switched off: an option of a later release, which says nothing of this model
        if name not in UNSUPPORTED:
            raise ModelLoadError(
                f"unknown option {name!r} = {value!r} of a HookedTransformer's config; {nearest(name, DEFAULTS)} Take "
                "it out if it says nothing of the forward pass"
            )
        if value is not None and value != UNSUPPORTED[name]:
            raise ModelLoadError(f"option {name!r} = {value!r} of a HookedTransformer's config cannot be carried out")
    known = {name: renamed.get(name, default) for name, default in DEFAULTS.items()}
    known["positional_embedding_type"] = known["positional_embedding_type"] or "none"
    if known["d_head"] is None and isinstance(known["n_heads"], int) and known["n_heads"] > 0 and known["d_model"]:
        known["d_head"] = known["d_model"] // known["n_heads"]
    for name in ("n_layers", "d_model", "n_ctx", "d_head", "d_vocab"):
        if not isinstance(known[name], int) or isinstance(known[name], bool) or known[name] < 1:
            raise ModelLoadError(f"option {name!r} = {known[name]!r} of a HookedTransformer's config: a size is needed")
    for name, default in DEFAULTS.items():
        if isinstance(default, bool) and not isinstance(known[name], bool):
            raise ModelLoadError(f"option {name!r} = {known[name]!r} of a HookedTransformer's config: true or false")
    return known


def _choice(o: Mapping[str, Any], name: str, valid: tuple[str | None, ...]) -> Any:
    if o[name] not in valid:
        raise ModelLoadError(
            f"option {name!r} = {o[name]!r} of a HookedTransformer's config; {nearest(str(o[name]), map(str, valid))}"
        )
    return o[name]


def _scales(o: Mapping[str, Any]) -> list[float]:
    """What each layer multiplies scores with: 1 / attn_scale, over the layer's number where that is asked for."""
    divisor = 1.0
    if o["use_attn_scale"]:
        value = o["attn_scale"]
        root = isinstance(value, str) and re.fullmatch(r"sqrt\(d_head\)(=.*)?", value.replace(" ", ""))
        if root or (isinstance(value, int | float) and value <= 0):
            divisor = math.sqrt(o["d_head"])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            divisor = float(value)
        else:
            raise ModelLoadError(
                f"option 'attn_scale' = {value!r} of a HookedTransformer's config: the number that scores are divided "
                'by is needed, or "sqrt(d_head)"'
            )
    by_layer = o["scale_attn_by_inverse_layer_idx"]
    return [1.0 / (divisor * (layer + 1 if by_layer else 1)) for layer in range(o["n_layers"])]


def _cap(o: Mapping[str, Any], name: str) -> float | None:
    return float(o[name]) if o[name] is not None and o[name] > 0 else None


def _positions(o: Mapping[str, Any]) -> dict[str, Any]:
    kind = _choice(o, "positional_embedding_type", POSITIONS)
    if kind != "rotary":
        return {"positions": kind}
    turning = o["d_head"] if o["rotary_dim"] is None else o["rotary_dim"]
    if turning % 2 or not 0 < turning <= o["d_head"]:
        raise ModelLoadError(f"option 'rotary_dim' = {turning}: an even number up to d_head = {o['d_head']} is needed")
    return {
        "positions": kind,
        "rotary_dim": turning,
        "rotary_base": float(o["rotary_base"]),
        "rotary_pairs": o["rotary_adjacent_pairs"],
    }


def _windows(o: Mapping[str, Any], *, causal: bool) -> dict[str, Any]:
    """Local attention: layer i sees `window_size` keys, its own among them, where attn_types[i] is "local"."""
    if not o["use_local_attn"]:
        return {}
    kinds, width = o["attn_types"], o["window_size"]
    if not isinstance(kinds, list | tuple) or len(kinds) != o["n_layers"] or set(kinds) - {"global", "local"}:
        raise ModelLoadError(f'option \'attn_types\' = {kinds!r}: "global" or "local" for each of the layers is needed')
    if not isinstance(width, int) or width < 1:
        raise ModelLoadError(
            f"option 'window_size' = {width!r}: the number of keys that local attention sees is needed"
        )
    if not causal:
        raise ModelLoadError(
            "options 'use_local_attn' and attention_dir = 'bidirectional' together cannot be carried out"
        )
    return {
        "sliding_window": width,
        "layer_types": ["sliding_attention" if kind == "local" else "full_attention" for kind in kinds],
    }


def _neurons(o: Mapping[str, Any]) -> dict[str, Any]:
    """Activation of the MLP, and the norm behind it."""
    if o["attn_only"]:
        return {}
    name = o["act_fn"]
    bare = name.removesuffix("_ln") if isinstance(name, str) else name
    if bare not in ACTIVATIONS:
        valid = ", ".join([*ACTIVATIONS, "solu_ln"])
        raise ModelLoadError(f"option 'act_fn' = {name!r} of a HookedTransformer's config; valid choices: {valid}")
    behind = None if bare == name else "LN" if o["normalization_type"] == "LN" else "LNPre"
    return {"activation": bare, "gated": o["gated_mlp"], "norm_neurons": behind}
