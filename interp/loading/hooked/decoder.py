"""`HookedDecoder`: a HookedTransformer as a plain module that follows transformers' attention interface."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from interp.errors import BackendError
from interp.loading.hooked.attention import Attention, rotary_table
from interp.loading.hooked.config import HookedConfig
from interp.loading.hooked.parts import MLP, norm_of

MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class Block(nn.Module):
    """One layer: attention and MLP, one after the other or side by side, or attention alone."""

    def __init__(self, config: HookedConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel
        self.kind = "full_attention" if config.layer_types is None else config.layer_types[layer]
        self.ln1 = norm_of(config)
        self.attn = Attention(config, layer)
        self.mlp = MLP(config) if config.intermediate_size else None
        self.ln2 = norm_of(config) if config.intermediate_size else None
        after = config.norm_after
        self.ln1_post = norm_of(config) if after else nn.Identity()
        self.ln2_post = norm_of(config) if after and config.intermediate_size else nn.Identity()

    def forward(self, hidden_states: Float[Tensor, "batch pos d_model"], **inputs: Any) -> Tensor:
        """The stream behind the layer."""
        attn_out = self.ln1_post(self.attn(self.ln1(hidden_states), **inputs))
        middle = hidden_states + attn_out
        if self.mlp is None or self.ln2 is None:
            return middle
        return middle + self.ln2_post(self.mlp(self.ln2(hidden_states if self.parallel else middle)))


class HookedDecoder(PreTrainedModel, GenerationMixin):
    """A HookedTransformer. Tensors go by transformers' ways ([out in] matrices); `tensors` says which is which.

    Attention with a constant share of its weights (`config.share` below 1) runs eagerly or is ours; no other function
    of transformers knows of it.
    """

    config: HookedConfig
    config_class = HookedConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["Block"]  # noqa: RUF012  (as transformers declares it)

    def __init__(self, config: HookedConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions in ("standard", "shortformer")
        self.pos_embed = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.embed_norm = norm_of(config, "LN") if config.norm_embedding else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.ln_final = norm_of(config, config.final_norm) if config.norm is not None else nn.Identity()
        self.unembed = nn.Linear(config.hidden_size, config.output_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """W_E."""
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another W_E."""
        self.embed = value

    def get_output_embeddings(self) -> nn.Module:
        """W_U."""
        return self.unembed

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Another W_U."""
        self.unembed = new_embeddings

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch pos d_vocab_out]; the arguments are those of transformers' decoders.

        Raises:
            BackendError: a cache for attention both ways, or a position beyond the context.
        """
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(past_key_values, use_cache)
        offset = 0 if cache is None else int(cache.get_seq_length())
        if position_ids is None:
            position_ids = torch.arange(offset, offset + x.shape[1], device=x.device)[None]
        beyond = int(position_ids.max()) + 1
        if beyond > self.config.max_position_embeddings:
            raise BackendError(f"{beyond} tokens; the context is {self.config.max_position_embeddings}")
        x, inputs = self._positions(self.embed_norm(x), position_ids)
        masks = self._masks(x, attention_mask, cache, position_ids)
        for block in self.blocks:
            x = block(x, attention_mask=masks[str(block.kind)], past_key_values=cache, **inputs)
        logits = self.unembed(self.ln_final(x)[:, -logits_to_keep:] if logits_to_keep else self.ln_final(x))
        cap = self.config.logit_cap
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _cache(self, cache: Any, use_cache: bool | None) -> Any:
        """The cache to go on with; None where nothing is kept."""
        if self.config.is_causal:
            keep = self.config.use_cache if use_cache is None else use_cache
            return DynamicCache() if cache is None and keep else cache
        if cache is not None:
            raise BackendError(
                "attention both ways keeps no cache: each token changes all others; pass use_cache=False"
            )
        return None

    def _positions(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The stream with its positions, and what layers take of them."""
        if self.config.positions == "rotary":
            return x, {"rotary": rotary_table(self.config, position_ids, x)}
        if self.pos_embed is None:
            return x, {}
        positions = self.pos_embed(position_ids)
        if self.config.positions == "shortformer":
            return x, {"positions": positions}
        return x + positions, {}

    def _masks(self, x: Tensor, mask: Tensor | None, cache: Any, position_ids: Tensor) -> dict[str, Any]:
        """Mask by kind of layer, as the attention function at hand takes it."""
        if not self.config.is_causal:
            return {"full_attention": create_bidirectional_mask(self.config, x, mask)}
        kinds = set(self.config.layer_types or ["full_attention"])
        common = {"past_key_values": cache, "position_ids": position_ids}
        return {kind: MASKS[kind](self.config, x, mask, **common) for kind in kinds}


def register() -> None:
    """Let transformers' Auto classes know the decoder, so that one saved by `save_pretrained` comes in again."""
    AutoConfig.register(HookedConfig.model_type, HookedConfig, exist_ok=True)
    AutoModelForCausalLM.register(HookedConfig, HookedDecoder, exist_ok=True)
