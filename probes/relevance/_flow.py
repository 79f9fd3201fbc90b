"""Attention through all layers: rollout, a product of patterns with the residual in between, and flow, a bottleneck."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from interp.attention import KeyMass, Received, Rows
from interp.batch import Batch, Prompts
from interp.errors import TaskError
from interp.measurement.prompts import visible_keys
from interp.model import Model
from probes.relevance._relevance import Relevance, chosen_rows, reachable

LONGEST = 96  # tokens: the graph of `flow` is dense, and a maximum flow per token is asked of it
UNITS = 10**7  # scipy's maximum flow takes whole numbers: capacities are in ten-millionths


def rollout(
    model: Model, prompts: Prompts, *, rows: Sequence[int] | None = None, residual: float = 0.5, method: str = "auto"
) -> Relevance:
    """Rollout: row i of the product over layers of (1 - r) A + r I, A the mean pattern over heads, r = 0.5.

    A share per earlier token; shares sum to one. No pattern is formed: row i of a product is a row vector sent down
    layer by layer, and one step, v A, is the mass received by each key when query i counts v_i times: one statistic,
    O(n) memory, a pass per layer (each ends at its layer). Rows of A that lose mass to a sink slot are scaled up to
    sum to one. The null is the same with uniform attention over visible keys.

    It knows nothing of values, MLPs or what heads write, and weighs all heads alike: a first-token sink, which writes
    nothing, draws most of it. `occlusion` and `agreement` beside it say whether it means anything.

    Args:
        model: any loaded model. Layers without softmax attention are passed over.
        prompts: text or ids.
        rows: query positions, negative ones from the end; the last without.
        residual: r, the share that stays in place at each layer.
        method: attention method, "fused" or "naive".

    Raises:
        TaskError: a row outside a prompt, or `residual` outside 0 .. 1.

    Reference: Abnar & Zuidema 2020 (arXiv 2005.00928), section 3; they form the whole product.
    """
    if not 0 <= residual <= 1:
        raise TaskError(f"residual={residual} is no share; it goes from 0 to 1")
    batch = model.batch(prompts).to("cpu")
    where = chosen_rows(batch, rows)
    copies = _one_row_each(batch, where)
    weight = torch.nn.functional.one_hot(where.flatten(), batch.ids.shape[1]).double()
    for layer in reversed(model.info.attention_layers):
        shares = weight
        if model.info.sink_logits:
            key_mass = model.attention(copies, {"kept": KeyMass(copies.mask)}, layers=[layer], method=method)["kept"]
            shares = weight / key_mass[0].double().mean(1).nan_to_num(1.0)
        statistics = {"received": Received(shares.float())}
        inflow = model.attention(copies, statistics, layers=[layer], method=method)["received"][0].double().mean(1)
        weight = (1 - residual) * inflow.nan_to_num() + residual * weight
    value = weight.unflatten(0, where.shape).numpy()
    return _relevance(model, "rollout", value, _uniform_rollout(model, batch, where, residual), batch, where)


def flow(
    model: Model, prompts: Prompts, *, rows: Sequence[int] | None = None, residual: float = 0.5, method: str = "auto"
) -> Relevance:
    """Flow: maximum flow from row i at the top to token j below, edges (1 - r) A + r I per layer, scaled to sum to one.

    Where rollout multiplies along paths, flow is limited by the narrowest place of each and adds over disjoint ones. It
    needs the whole graph, and one maximum flow per token: prompts of at most 96 tokens. The null is the same with
    uniform attention over visible keys. What rollout does not know, flow does not either.

    Args:
        model: any loaded model. Layers without softmax attention are passed over.
        prompts: text or ids, short.
        rows: query positions, negative ones from the end; the last without.
        residual: r, the share that stays in place at each layer.
        method: attention method, "fused" or "naive".

    Raises:
        TaskError: a prompt longer than 96 tokens, or a row outside a prompt.

    Reference: Abnar & Zuidema 2020 (arXiv 2005.00928), section 3. Capacities are rounded to 1e-7 (scipy's solver takes
    whole numbers).
    """
    batch = model.batch(prompts).to("cpu")
    where = chosen_rows(batch, rows)
    n = batch.ids.shape[1]
    if n > LONGEST:
        raise TaskError(f"flow of {n} tokens needs the whole graph; at most {LONGEST} (rollout has no such limit)")
    every = torch.arange(n).expand(len(batch.ids), n)
    attention = model.attention(batch, {"rows": Rows(every)}, method=method)["rows"]
    patterns = attention.double().mean(2).nan_to_num().numpy()  # layer prompt query key
    chance = [
        _uniform(n_keys, causal=model.info.causal) * batch.mask.numpy()[:, None]
        for n_keys in visible_keys(model, batch)
    ]
    values, nulls = (np.full((*where.shape, n), np.nan) for _ in range(2))
    for prompt in range(len(batch.ids)):
        first, last = int(batch.first[prompt]), int(batch.first[prompt] + batch.mask[prompt].sum())
        own = slice(first, last)
        for store, layers in ((values, patterns[:, prompt]), (nulls, np.stack(chance)[:, prompt])):
            graph = _with_residual(layers[:, own, own], residual)
            for r, row in enumerate(where[prompt].tolist()):
                store[prompt, r, own] = max_flows(graph, row - first)
    return _relevance(model, "flow", np.nan_to_num(values), np.nan_to_num(nulls), batch, where)


def max_flows(layers: Float[np.ndarray, "layer query key"], row: int) -> Float[np.ndarray, " key"]:
    """Maximum flow from node `row` above the last layer to each node below the first, scaled to sum to one."""
    depth, n, _ = layers.shape
    layer, query, key = np.nonzero(layers > 0)
    capacity = np.rint(layers[layer, query, key] * UNITS).astype(np.int32)
    size = (depth + 1) * n
    graph = coo_array((capacity, ((layer + 1) * n + query, layer * n + key)), shape=(size, size)).tocsr()
    flows = np.array([maximum_flow(graph, depth * n + row, j).flow_value for j in range(n)], dtype=float)
    return flows / flows.sum()


def rolled_out(layers: Float[np.ndarray, "layer query key"]) -> Float[np.ndarray, "query key"]:
    """The product of all layers, last on the left: `rollout` of every row, from patterns already mixed."""
    product = np.eye(layers.shape[-1])
    for layer in layers:
        product = layer @ product
    return product


def _with_residual(
    patterns: Float[np.ndarray, "layer query key"], residual: float
) -> Float[np.ndarray, "layer query key"]:
    """(1 - r) A + r I with the rows of A scaled to sum to one."""
    total = patterns.sum(-1, keepdims=True)
    return (1 - residual) * patterns / np.where(total > 0, total, 1.0) + residual * np.eye(patterns.shape[-1])


def _one_row_each(batch: Batch, where: Int[Tensor, "prompt row"]) -> Batch:
    """A copy of each prompt per chosen row, so that every row has a vector of its own."""
    n = where.shape[1]
    return batch.select(torch.arange(len(batch.ids)).repeat_interleave(n))


def _uniform(n_keys: Float[np.ndarray, "prompt query"], *, causal: bool) -> Float[np.ndarray, "prompt query key"]:
    """Rows that share themselves out over the `n_keys` keys up to the query; alignment is by position in the batch.

    In attention both ways they are those of the whole prompt (padding among them is for the caller to take out).
    """
    n = n_keys.shape[1]
    back = np.arange(n)[:, None] - np.arange(n)
    inside = (back >= 0) & (back[None] < n_keys[:, :, None]) if causal else np.ones((1, n, n), dtype=bool)
    return inside / np.maximum(n_keys, 1)[:, :, None]


def _uniform_rollout(model: Model, batch: Batch, where: Tensor, residual: float) -> Float[np.ndarray, "prompt row key"]:
    """`rollout` under uniform attention: v_j <- (1 - r) sum of v_i / n_i over queries i that see j, + r v_j."""
    n = batch.ids.shape[1]
    weight = torch.nn.functional.one_hot(where, n).double().numpy()
    for n_keys in reversed(visible_keys(model, batch)):
        share = weight / np.maximum(n_keys, 1)[:, None]
        if not model.info.causal:  # every query of the prompt sees every key
            inflow = share.sum(-1, keepdims=True)
            weight = ((1 - residual) * inflow + residual * weight) * batch.mask.numpy()[:, None]
            continue
        total = np.concatenate([np.zeros((*share.shape[:2], 1)), share.cumsum(-1)], -1)
        inflow = np.zeros_like(weight)
        for prompt, last in enumerate(_last_query(n_keys)):
            inflow[prompt] = total[prompt][:, last + 1] - total[prompt][:, :-1]
        weight = ((1 - residual) * inflow + residual * weight) * batch.mask.numpy()[:, None]
    return weight


def _last_query(n_keys: Float[np.ndarray, "prompt query"]) -> Int[np.ndarray, "prompt key"]:
    """The last query that sees each key: windows slide, so their first keys never go back."""
    n = n_keys.shape[1]
    first = np.arange(n) - n_keys + 1
    return np.stack([np.searchsorted(row, np.arange(n), side="right") - 1 for row in first])


def _relevance(
    model: Model, method: str, value: np.ndarray, null: np.ndarray, batch: Batch, where: Tensor
) -> Relevance:
    mask = reachable(batch, where, causal=model.info.causal)
    return Relevance(method, np.where(mask, value, np.nan), np.where(mask, null, np.nan), where, batch.ids)
