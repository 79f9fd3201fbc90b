"""What a neuron says and when: its value vector on the vocabulary, and the texts on which it is most active."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Prompts
from interp.components import neuron_name
from interp.measurement.examples import Examples, top_examples
from interp.measurement.neuron_effects import Neuron, experts_apart, value_rows
from interp.model import Model
from interp.sites import Site
from interp.tokens.texts import token_texts
from probes.mlp._skill_table import places

DRAWS = 20
"""Random directions whose largest logits are the null of a value vector's."""


@torch.no_grad()
def value_vectors(model: Model, neurons: Sequence[str | Neuron], *, k: int = 10, seed: int = 0) -> pd.DataFrame:
    """W_out[i] W_U: the logits that one unit of a neuron's activation writes, highest and lowest k tokens.

    Through the gain of the final norm (and of a norm behind the MLP), their divisors being left at 1: the order of
    tokens is right and the scale is that of a stream whose divisor is 1. Logits are less their mean over the
    vocabulary, which no soft-max sees. What later layers make of the vector is left out. The null is the mean of the
    largest (or lowest) logit, rank by rank, of random vectors of the same length: what any direction would reach in
    so many tokens.

    Args:
        model: any loaded model.
        neurons: names such as "M3N17", or (layer, neuron).
        k: tokens on either side.
        seed: of the random vectors.

    Returns:
        Rows: component, side ("up" or "down"), rank, token, text, value, z (over the vocabulary), null.

    Raises:
        SiteError: no neuron's name, or a layer without neurons that can be told apart.

    Reference: Geva et al. 2022 (arXiv 2203.14680); the null is ours.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for layer, index in places(neurons):
        vector = value_rows(model, layer, torch.tensor([index]))[0].cpu()
        random = torch.randn(DRAWS, len(vector), generator=generator)
        random *= vector.norm() / random.norm(dim=1, keepdim=True)
        logits, chance = _logits(model, vector[None])[0], _logits(model, random)
        sd = float(logits.std())
        for side, sign in (("up", 1), ("down", -1)):
            top = (sign * logits).topk(min(k, len(logits)))
            null = sign * (sign * chance).topk(len(top.indices), dim=1).values.mean(0)
            texts = token_texts(top.indices.tolist(), model.tokenizer)
            for rank, (token, text) in enumerate(zip(top.indices.tolist(), texts, strict=True)):
                value = float(logits[token])
                row = {"component": neuron_name(layer, index), "side": side, "rank": rank, "token": token}
                row |= {"text": text, "value": value, "z": value / sd if sd else float("nan")}
                rows.append(row | {"null": float(null[rank])})
    return pd.DataFrame(rows)


def neuron_examples(
    model: Model, neuron: str | Neuron, prompts: Prompts | Iterable[Prompts], **options: Any
) -> Examples:
    """Tokens of a corpus at which a neuron is most active, a_i, with their texts, beside tokens drawn at random.

    In a mixture of experts a_i has its expert's weight in it. `options` are those of `probes.features.top_examples`:
    k, per_prompt, context, largest, skip, batch_size, seed, edits.

    Raises:
        SiteError: no neuron's name, or a layer without neurons that can be told apart.
        SchemaError: no tokens to choose from.
    """
    layer, index = places([neuron])[0]
    if model.writes(layer).mlp is not None:
        return top_examples(model, prompts, Site("mlp_post", layer), index, **options)
    units = experts_apart(model, layer)
    return top_examples(model, prompts, Site("mlp_in", layer), lambda x: units(x).activations[..., index], **options)


def _logits(model: Model, vectors: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    logits = model.weights().unembed(vectors, fold_norm=True)
    return logits - logits.mean(1, keepdim=True)
