"""`HookedConfig`: what a HookedTransformer's forward pass depends on, under the names that transformers goes by."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class HookedConfig(PreTrainedConfig):
    """Sizes and options of a `HookedDecoder`; `interp.loading.hooked.options` makes one of a HookedTransformer's.

    Attributes:
        vocab_size, output_size: rows of W_E and columns of W_U.
        intermediate_size: neurons of each MLP; 0 in attention-only models.
        norm: "LN" or "RMS", None without norms. norm_gains: whether gains are learned. final_norm: the last one's kind.
        norm_after: whether attention and MLP have a norm behind them too. norm_embedding: whether W_E has one.
        positions: "standard" (added to the stream), "shortformer" (added to what makes queries and keys), "rotary" or
            "none".
        rotary_dim, rotary_base, rotary_pairs: channels of q and k that turn, and whether neighbours turn together.
        scales: what each layer multiplies q . k with.
        score_cap, logit_cap: soft-caps, None without.
        share: part of attention that is softmax, the rest being one constant weight for every key; see
            `interp.attention.Call`.
        is_causal: False for attention both ways. sliding_window, layer_types: local attention, as in transformers.
        parallel: whether attention and MLP read the same stream.
        gated: whether neurons are act(x W_gate) * (x W_in) + b_in. activation: of the neurons. norm_neurons:
            "LN" or "LNPre" where a LayerNorm follows them, with gains or without.
        output_words: what each logit stands for, where that is not a token (compiled programs).
    """

    model_type = "hooked_decoder"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 0
    output_size: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 0
    norm: str | None = None
    norm_gains: bool = True
    norm_eps: float = 1e-5
    final_norm: str | None = None
    norm_after: bool = False
    norm_embedding: bool = False
    positions: str = "standard"
    rotary_dim: int = 0
    rotary_base: float = 10000.0
    rotary_pairs: bool = False
    scales: list[float] | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    share: float = 1.0
    is_causal: bool = True
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    parallel: bool = False
    gated: bool = False
    activation: str | None = None
    norm_neurons: str | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    output_words: list[Any] | None = None
