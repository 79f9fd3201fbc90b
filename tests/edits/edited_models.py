"""A model under edits, and the same model with its weights changed to the same effect."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.edits import Ablate, Add, Scale
from interp.tasks.prompt import collate

KINDS = ("ablation", "scale", "mean", "steering")
HEAD = 0
FACTOR = 0.5
SIZE = 0.1  # of what a mean or a steering vector is drawn with: the planted model still answers


def small_model():
    """A random Llama of three layers with two heads each, in which every component tells."""
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return interp.load(LlamaForCausalLM(config).eval())


def small_task(n=2):
    """Pairs of prompts that differ in their second token."""
    clean = [[1, 2 + i, 5, 9, 4] for i in range(n)]
    corrupt = [[1, 12 - i, 5, 9, 4] for i in range(n)]
    return collate(
        "pairs",
        list(zip(clean, corrupt, strict=True)),
        answers=[[3]] * n,
        wrong=[[7]] * n,
        roles=[{"SECOND": 1}] * n,
        templates=["pairs"] * n,
        corruption="second",
        metric="logit_diff",
    )


def layers_of(model):
    """Early, middle and late, each once."""
    return sorted({0, model.info.n_layers // 2, model.info.n_layers - 1})


def edits_of(model, kind, layer):
    z, generator = f"L{layer}H{HEAD}.z", torch.Generator().manual_seed(1)
    mean, vector = (SIZE * torch.randn(n, generator=generator) for n in (model.info.d_head, model.info.d_model))
    return {
        "ablation": [Ablate(z)],
        "scale": [Scale(z, FACTOR)],
        "mean": [Ablate(z, "mean", mean)],
        "steering": [Add(f"L{layer}.mlp_out", vector)],
    }[kind]


def changed_model(model, kind, layer):
    """The model with the edit written into the weights of a Llama-like block."""
    module = copy.deepcopy(model.torch_module)
    block, (edit,) = module.model.layers[layer], edits_of(model, kind, layer)
    output, own = block.self_attn.o_proj, slice(HEAD * model.info.d_head, (HEAD + 1) * model.info.d_head)
    with torch.no_grad():
        if kind == "steering":
            block.mlp.down_proj.bias = nn.Parameter(edit.value.clone())
        if kind == "mean":
            output.bias = nn.Parameter(output.weight[:, own] @ edit.value)
        if kind != "steering":
            output.weight[:, own] *= FACTOR if kind == "scale" else 0.0
    return interp.load(module, tokenizer=model.tokenizer)
