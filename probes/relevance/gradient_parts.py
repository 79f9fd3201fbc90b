"""Gradients of paragraphs' losses pooled over parts of a model: matrices of heads and of MLPs, and their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.components import head_name, kv_head_name, mlp_name
from interp.gradients import gradients, weight_gradients
from interp.model import Model
from interp.sites import Site
from interp.weights.changes import ATTENTION, Matrix, WeightMatrices
from probes.relevance.paragraphs import ROWS, Paragraphs


@dataclass(frozen=True)
class Part:
    """A head's share of a matrix, an MLP's matrix, or what one of them gives."""

    name: str
    layer: int
    head: int | None
    matrix: str


def weight_parts(matrices: WeightMatrices) -> list[Part]:
    """Parts of all matrices, in the order of `pooled`: W_K and W_V of each key-value head."""
    parts = []
    for (layer, matrix), x in matrices.values.items():
        if matrix not in ATTENTION:
            parts.append(Part(f"{mlp_name(layer)} {matrix}", layer, None, matrix))
            continue
        group = matrices.attention[layer].group if matrix in ("w_k", "w_v") else 1
        for i in range(len(x)):
            name = head_name(layer, i) if group == 1 else kv_head_name(layer, i, group=group)
            parts.append(Part(f"{name} {matrix}", layer, i if group == 1 else None, matrix))
    return parts


def pooled(grads: Mapping[Matrix, Float[Tensor, "..."]], how: str) -> Float[ndarray, " part"]:
    """Mean (or largest) |gradient| over the entries of each part."""
    values = []
    for (_, matrix), x in grads.items():
        flat = x.abs().flatten(1) if matrix in ATTENTION else x.abs().reshape(1, -1)
        values.append(flat.mean(1) if how == "mean" else flat.amax(1))
    return torch.cat(values).double().cpu().numpy()


def paragraph_gradients(
    model: Model, matrices: WeightMatrices, paragraphs: Paragraphs
) -> dict[str, Float[ndarray, "paragraph part"]]:
    """`pooled` gradients of each paragraph's own loss, "mean" and "max"; a forward and a backward pass for each."""
    result: dict[str, list[ndarray]] = {"mean": [], "max": []}
    for i in range(len(paragraphs)):
        one = paragraphs.select([i])
        _, grads = weight_gradients(model, one.batch, one.losses, matrices)
        for how, rows in result.items():
            rows.append(pooled(grads, how))
    return {how: np.stack(rows) for how, rows in result.items()}


def summed_gradient(
    model: Model, matrices: WeightMatrices, paragraphs: Paragraphs, weight: Float[ndarray, " paragraph"]
) -> dict[Matrix, Float[Tensor, "..."]]:
    """Gradient of sum_b weight_b NLL_b over paragraphs."""
    total: dict[Matrix, Tensor] = {}
    factor = torch.from_numpy(weight).float()
    for rows in torch.arange(len(paragraphs)).split(ROWS):
        part = paragraphs.select(rows)

        def value(logits: Tensor, part: Paragraphs = part, own: Tensor = factor[rows]) -> Tensor:
            losses = part.losses(logits)
            return losses * own.to(losses)

        _, grads = weight_gradients(model, part.batch, value, matrices)
        total = {name: grad + total.get(name, 0) for name, grad in grads.items()}
    return total


def output_parts(model: Model) -> list[Part]:
    """Heads (their z) and MLPs (what they add), in the order of `output_gradients`."""
    info = model.info
    heads = [Part(head_name(i, h), i, h, "z") for i in info.attention_layers for h in range(info.n_heads)]
    return heads + [Part(mlp_name(i), i, None, "mlp_out") for i in _mlps(model)]


def output_gradients(model: Model, paragraphs: Paragraphs) -> Float[ndarray, "paragraph part"]:
    """Mean over tokens and channels of |d loss / d output| for each paragraph's own loss."""
    sites = [Site("z", i) for i in model.info.attention_layers] + [Site("mlp_out", i) for i in _mlps(model)]
    rows = []
    for index in torch.arange(len(paragraphs)).split(ROWS):
        part = paragraphs.select(index)
        run = gradients(model, part.batch, part.losses, sites)
        mask = part.batch.mask
        means = []
        for site in sites:
            size = run[site].abs().mean(-1).reshape(*mask.shape, -1).double().cpu()  # batch pos (head)
            means.append((size * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        rows.append(torch.cat(means, 1))
    return torch.cat(rows).numpy()


def _mlps(model: Model) -> list[int]:
    return [i for i in range(model.info.n_layers) if "mlp_out" not in model.reads(i).missing]


def shares(sizes: Float[ndarray, "paragraph part"]) -> Float[ndarray, "paragraph part"]:
    """Each paragraph's sizes over their sum, which takes out how large its loss is; zero where all are."""
    total = sizes.sum(1, keepdims=True)
    return np.divide(sizes, total, out=np.zeros_like(sizes), where=total > 0)


def exchange_p(
    known: Float[ndarray, "paragraph part"], others: Float[ndarray, "other part"], *, n: int, seed: int
) -> Float[ndarray, " part"]:
    """p of mean(known) - mean(others) where it does not matter which is which: one-sided, over `n` exchanges."""
    rng, x, k = np.random.default_rng(seed), np.concatenate([known, others]), len(known)
    own = known.mean(0) - others.mean(0)
    above = np.zeros(x.shape[1])
    for _ in range(n):
        order = rng.permutation(len(x))
        above += x[order[:k]].mean(0) - x[order[k:]].mean(0) >= own - 1e-12 * np.abs(own)
    return (1 + above) / (1 + n)
