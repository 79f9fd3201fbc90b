"""Penalty on heads in training, under which roles settle in few of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM

from interp.zoo.trained.measure import layers_of


def head_penalty(model: LlamaForCausalLM) -> Float[Tensor, ""]:
    """Sum over heads of the square root of the norm of their query and output weights.

    Concave, so that a role which many heads could share settles in few and the others fall silent.
    """
    n_heads = model.config.num_attention_heads
    attentions = [layer.self_attn for layer in layers_of(model)]
    queries = torch.stack([a.q_proj.weight.unflatten(0, (n_heads, -1)) for a in attentions])
    outputs = torch.stack([a.o_proj.weight.unflatten(1, (n_heads, -1)) for a in attentions])
    squares = queries.square().sum((2, 3)) + outputs.square().sum((1, 3))
    return squares.pow(0.25).sum()
