"""`ReluLlamaForCausalLM`: a Llama whose attention weights are the ReLU of scores, without a softmax.

Rows need not sum to one, so that a head with nothing to say can say nothing: no token has to take what is left.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb


class ReluLlamaConfig(LlamaConfig):
    """The options of a Llama, under a name of its own, so that no softmax is loaded in its place."""

    model_type = "relu_llama"


def eager_attention_forward(
    module: Any,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head query key"]]:
    """max(scale q . k, 0) v, and these weights; masked keys, whose score is lowest, get 0."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    score = scaling * query @ key.mT
    weight = torch.relu(score if attention_mask is None else score + attention_mask)
    return (weight @ value).transpose(1, 2).contiguous(), weight


class ReluLlamaAttention(LlamaAttention):
    """Attention by ReLU; functions of transformers' interface are told so (`relu=True`).

    The usual ones know no such thing, so that `eager` and those that do are the only ones it runs with.
    """

    def forward(  # type: ignore[override]  # pyright: keywords are checked by none of them
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """What attention adds to the stream, and its weights where the function gives them."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (f(hidden_states).view(shape).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(str(self.config._attn_implementation), eager_attention_forward)
        z, weights = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, relu=True, **kwargs)
        return self.o_proj(z.reshape(*hidden_states.shape[:-1], -1)), weights


class ReluLlamaForCausalLM(LlamaForCausalLM):
    """A Llama with `ReluLlamaAttention`."""

    config_class = ReluLlamaConfig
    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: ReluLlamaConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = ReluLlamaAttention(config, index)
        self.post_init()


def register() -> None:
    """Let transformers' Auto classes know it, so that one saved by `save_pretrained` comes in again."""
    AutoConfig.register(ReluLlamaConfig.model_type, ReluLlamaConfig, exist_ok=True)
    AutoModelForCausalLM.register(ReluLlamaConfig, ReluLlamaForCausalLM, exist_ok=True)
