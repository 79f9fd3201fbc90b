"""Relevance through attention weighted by what the answer gains from it: rollout that knows about values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attention import Rows
from interp.batch import Batch, Prompts
from interp.gradients import gradients
from interp.model import Model
from interp.sites import Site
from probes.relevance._relevance import Relevance, chosen_rows, reachable

BLOCK = 128  # query rows looked at together: memory is O(heads * BLOCK * n)


def gradient_relevance(
    model: Model,
    prompts: Prompts,
    *,
    rows: Sequence[int] | None = None,
    answers: Int[Tensor, "prompt row"] | None = None,
    method: str = "auto",
) -> Relevance:
    """Gradient relevance: row i of R, R <- R + A' R from the first layer on, A' = mean over heads of relu(dm/dA * A).

    m is the log probability of the answer at the row; the gradient at the pattern is taken with the rest of the model
    as it is, dm/dA_ij = (dm/dz_i) . v_j, so that no pattern is kept: 128 rows at a time, of one layer. Row i of R
    starts as the row itself (1 at its own key), to which each layer adds; values are not shares. The null is zero.

    A head that does not move the answer has no weight, so sinks fall away. But a gradient is the effect of a small
    change: where the answer is certain it vanishes, and what two heads do together counts twice or not at all.
    `occlusion` and `agreement` beside it say whether it means anything.

    Args:
        model: a model that can be run with gradients. Layers without softmax attention are passed over.
        prompts: text or ids.
        rows: query positions, negative ones from the end; the last without.
        answers: ids whose probability counts; without, the model's own first choice at each row.
        method: attention method, "fused" or "naive".

    Raises:
        TaskError: a row outside a prompt.

    Reference: Chefer et al. 2021 (arXiv 2103.15679), self-attention.
    """
    batch = model.batch(prompts).to("cpu")
    where = chosen_rows(batch, rows)
    values = torch.zeros(*where.shape, batch.ids.shape[1], dtype=torch.float64)
    for r in range(where.shape[1]):
        row_answers = None if answers is None else answers[:, r]
        values[:, r] = _one_row(model, batch, where[:, r], row_answers, method=method)
    mask = reachable(batch, where, causal=model.info.causal)
    return Relevance(
        "gradient relevance",
        np.where(mask, values.numpy(), np.nan),
        np.where(mask, 0.0, np.nan),
        where,
        batch.ids,
        unit="relevance",
        caution="A gradient is the effect of a small change: it vanishes where the answer is certain, and misses what "
        "only a large change shows. Check with an intervention.",
    )


def _one_row(
    model: Model, batch: Batch, row: Int[Tensor, " prompt"], answers: Int[Tensor, " prompt"] | None, *, method: str
) -> Float[Tensor, "prompt key"]:
    """One row of R per prompt: the row vector is sent down, v <- v + v A', last layer first."""
    index = torch.arange(len(row))

    def metric(logits: Tensor) -> Tensor:
        at_row = logits[index.to(logits.device), row.to(logits.device)].float().log_softmax(-1)
        ids = at_row.argmax(-1) if answers is None else answers.to(logits.device)
        return at_row.gather(-1, ids[:, None])[:, 0]

    layers = model.info.attention_layers
    run = gradients(model, batch, metric, [Site(kind, layer) for layer in layers for kind in ("z", "v")])
    relevance = torch.nn.functional.one_hot(row, batch.ids.shape[1]).double()
    group = model.info.n_heads // model.info.n_kv_heads
    for layer in reversed(layers):
        grad = run.grads[Site("z", layer)].cpu().double()
        value = run.acts[Site("v", layer)].cpu().double().repeat_interleave(group, dim=2)
        update = torch.zeros_like(relevance)
        last = int(row.max()) + 1
        for queries in torch.arange(last).split(BLOCK):
            statistics = {"rows": Rows(queries.expand(len(row), -1))}
            pattern = model.attention(batch, statistics, layers=[layer], method=method)["rows"][0].double().nan_to_num()
            gain = torch.einsum("bqhd,bkhd->bhqk", grad[:, queries], value)
            weight = (gain * pattern).relu().mean(1)  # prompt query key
            update += torch.einsum("bq,bqk->bk", relevance[:, queries], weight)
        relevance = relevance + update
    return relevance
