"""The untrained Llama that a recipe of the zoo starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interp.zoo.trained.tokenizer import SPECIALS


def untrained(shape: Mapping[str, Any], *, n_tokens: int, context: int, seed: int) -> LlamaForCausalLM:
    """In float32, embeddings not tied, with the ids of `SPECIALS`; `shape` are options of LlamaConfig."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **shape,
        vocab_size=n_tokens,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=SPECIALS.index("<bos>"),
        eos_token_id=SPECIALS.index("<eos>"),
        pad_token_id=SPECIALS.index("<pad>"),
    )
    return LlamaForCausalLM(config)
