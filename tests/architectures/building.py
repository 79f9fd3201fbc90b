"""Tiny random models of causal classes: default configurations, made small by the names of their fields.

`SIZES` says what a field of a name is set to wherever it stands, `_per_layer` what becomes of lists with an entry per
layer (each kind of layer stays, once), `FAMILIES` what a few families need besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_NUMBERS: dict[int, str] = {
    64: "vocab_size text_vocab_size vocab_size_per_layer_input max_position_embeddings n_positions n_ctx seq_length "
    "max_sequence_length max_seq_len max_source_positions max_target_positions original_max_position_embeddings "
    "context_length model_max_length encoder_hash_byte_group_vocab ngram_vocab_size_base",
    48: "intermediate_size ffn_dim n_inner d_ff encoder_ffn_dim decoder_ffn_dim moe_intermediate_size ffn_hidden_size "
    "shared_expert_intermediate_size moe_shared_expert_intermediate_size shared_intermediate_size d_inner "
    "expert_ffn_hidden_size intermediate_size_mlp dense_intermediate_size feed_forward_size "
    "shared_experts_intermediate_size",
    32: "hidden_size d_model n_embd dim dim_model emb_dim embedding_size d_embed word_embed_proj_dim lru_width "
    "hidden_size_global embedding_dim adapter_rank",
    16: "q_lora_rank kv_lora_rank index_head_dim o_lora_rank time_step_rank input_embedding_size "
    "attention_head_dim linear_head_dim laurel_rank hidden_size_per_layer_input hc_lowrank ple_embed_dim mamba_dt_rank "
    "router_hidden_size",
    8: "head_dim d_kv qk_nope_head_dim qk_rope_head_dim global_head_dim swa_head_dim d_head attention_head_size "
    "linear_key_head_dim linear_value_head_dim mamba_d_state ssm_state_size state_size mamba_head_dim chunk_size "
    "mamba_chunk_size sliding_window sliding_window_size attention_chunk_size attention_window_size block_size "
    "window_size index_topk local_attention_window_len kv_channels mamba_d_head lsh_attn_chunk_length "
    "local_attn_chunk_length v_head_dim",
    4: "num_attention_heads n_head n_heads num_heads num_local_experts num_experts n_routed_experts moe_num_experts "
    "encoder_attention_heads decoder_attention_heads conv_kernel linear_num_key_heads linear_num_value_heads "
    "index_n_heads linear_num_heads swa_num_attention_heads mamba_d_conv rotary_dim num_query_groups zero_expert_num",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok moe_top_k top_k moe_topk moe_k num_experts_per_token "
    "mamba_expand swa_num_key_value_heads n_mamba_heads rel_extent",
    1: "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace mamba_n_groups n_groups "
    "num_expert_group mamba_ngroups",
}
SIZES = {name: size for size, names in _NUMBERS.items() for name in names.split()}
NEEDED = ("head_dim", "num_key_value_heads")
"""Fields that are set where their default is None as well."""
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_blocks")
"""Fields that hold the number of layers."""
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id")
_SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_num_heads": 8}
_SHARED = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bamba": {**_SSM, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {
            k: {"rope_type": "default", "rope_theta": 1e4} for k in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots3_note": {"vision_config": {"adapter_in_dim": 32}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"head_dim": 20},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "git": {"vision_config": {"image_size": 8, "patch_size": 4}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_SSM, "layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"qk_head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "nemotron_h": {"mamba_num_heads": 8},
    "qwen4_exp_text": {
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 24]},
    "rembert": {"output_embedding_size": 24},
    "xlstm": {"num_heads": 4, "embedding_dim": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"mamba_dt_rank": 4, **_SHARED, "attention_hidden_size": 64},
    "zamba2": {
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        **_SHARED,
        "attention_hidden_size": 64,
        "hybrid_layer_ids": [1, 3],
    },
}


def names() -> tuple[str, ...]:
    """Every model type that has a causal class."""
    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def small(model_type: str, **more: Any) -> PretrainedConfig:
    """The default configuration of a type's causal class, made small; `more` fields last."""
    default = CONFIG_MAPPING[model_type]
    wanted = MODEL_FOR_CAUSAL_LM_MAPPING[default].config_class
    kind = default if issubclass(default, wanted) else wanted  # of several parts, the decoder's
    return kind(**{**_shrunk(kind().to_dict(), FAMILIES.get(kind.model_type, {})), **more})


def scaled(model_type: str) -> PreTrainedModel | None:
    """A decoder with dynamic rotary scaling beyond 16 tokens; None where a type has no plain rotary tables."""
    config = small(model_type)
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict) or parameters.get("rope_type") != "default" or "layer_types" in vars(config):
        return None
    dynamic = {**parameters, "rope_type": "dynamic", "factor": 2.0}
    return build(model_type, small(model_type, rope_parameters=dynamic, max_position_embeddings=16))


def build(model_type: str, config: PretrainedConfig, *, seed: int = 0, scale: float = 4.0) -> PreTrainedModel:
    """A decoder with random weights: scaled so that no pattern is uniform, gains and biases away from one and zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]._from_config(config).eval()
        for parameter in module.parameters():
            if not parameter.is_floating_point():
                continue
            if not bool(torch.isfinite(parameter).all()) or float(parameter.abs().max()) > 1e3:
                parameter.normal_(0.0, 0.02)  # allocated and never set
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif float(parameter.std()) < 0.06:
                parameter.mul_(scale)
    return module


def _shrunk(fields: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration, and of those inside it, at sizes of ours."""
    layers, lists = _per_layer(fields)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in ("model_type", "transformers_version", "architectures", "per_layer_config"):
            continue
        if isinstance(value, dict) and name.endswith("_config"):
            own = {**FAMILIES.get(value.get("model_type", ""), {}), **special.get(name, {})}
            inner = {"model_type": value.get("model_type"), **_shrunk(value, own)}
            small[name] = {k: v for k, v in inner.items() if v not in (None, "")}
        elif name in lists:
            small[name] = lists[name]
        elif name in COUNTS and isinstance(value, int):
            small[name] = layers
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            small[name] = min(value, SIZES[name]) if value > 0 else value
        elif value is None and name in NEEDED:
            small[name] = SIZES[name]
        elif name in TOKENS and isinstance(value, int):
            small[name] = value if value < 3 else 1
        elif name == "is_decoder":
            small[name] = True
        elif name != "num_attention_heads_per_layer":
            small[name] = value
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        small["num_key_value_heads"] = SIZES["num_attention_heads"]  # latent attention has no groups
    small |= {k: v for k, v in special.items() if not k.endswith("_config")}
    if fields.get("per_layer_config") and fields.get("layer_types"):
        small["per_layer_config"] = _own_sizes(fields, small)
    return small


def _per_layer(fields: Mapping[str, Any]) -> tuple[int, dict[str, list]]:
    """Number of layers, and the lists with an entry per layer: each kind of layer that there is."""
    count = next((fields[name] for name in COUNTS if isinstance(fields.get(name), int)), None)
    lists = {k: v for k, v in fields.items() if isinstance(v, list) and len(v) == count and len(v) > 1}
    kinds = {k: list(dict.fromkeys(v)) for k, v in lists.items() if isinstance(v[0], str)}
    layers = max([2, *map(len, kinds.values())])
    result = {k: [*islice(cycle(v), layers)] for k, v in kinds.items()}
    for name, values in lists.items():
        if name not in kinds:
            entry = SIZES.get(name)
            result[name] = [v if entry is None else entry for v in values[:layers]]
    return layers, result


def _own_sizes(fields: Mapping[str, Any], small: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Sizes of single layers, in the proportions of the default's, at the layers of the same kind."""
    kinds, own = fields["layer_types"], fields["per_layer_config"]
    of_kind = {kinds[int(layer)]: sizes for layer, sizes in own.items()}
    return {
        layer: {k: max(1, small[k] * v // fields[k]) for k, v in of_kind[kind].items()}
        for layer, kind in enumerate(small["layer_types"])
        if kind in of_kind
    }
