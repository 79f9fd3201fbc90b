"""How far an MLP changes whose tokens a position is made of: norms of what each token brought, before and after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.components import mlp_name
from interp.decompose import Decomposition, decompose
from interp.errors import BackendError, NotApplicable
from interp.measurement.answers import TASKS, model_task
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.numerics import wide
from interp.patching.quadrature import points
from interp.results import stats
from interp.results.figures import dots
from interp.tasks import PromptTask
from interp.weights.stream import Reads
from probes.mlp._regression import enters
from probes.mlp.inputs import LoneMLP

LEAST, MARGIN = 0.05, 0.01
"""Change of the mixing ratio from which a label is given, and up to which no claim is made."""
COMPLETE = 1e-3
"""Largest share of an MLP's write that integrated gradients may miss."""


@analysis(
    name="mlp_mixing",
    family="mlp",
    title="MLPs that change the mixing of tokens",
    unit="MLP",
    headline="mixing_change",
    order=158,
    two_sided=True,
    figure=dots,
    quick={"n_prompts": 12, "steps": 16},
    exemptions={"planted": "no planted mechanism mixes tokens in an MLP; its tests write one by hand"},
    columns={"label": "boolean"},
    means="Behind the MLP more of the position is made of what attention brought from other tokens than before it "
    "(below 0: less): the MLP turns it up against the position's own stream.",
    misleads="Norms say how much is there, not what it is for: a long vector may be one that all tokens share. What an "
    "MLP owes to each token is shared out along a straight path from nothing, one of many ways. Of one layer and the "
    "last position: what earlier layers had mixed counts as the position's own.",
    reference="Kobayashi et al. 2024, arXiv 2302.00456",
)
def mlp_mixing(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    steps: int = 24,
    n_draws: int = 20,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """Mixing ratio |sum_j u_j| / (|sum_j u_j| + |u_own|) of END, j the other tokens, behind an MLP less before it.

    Before: u_j is what attention of the layer brought from token j, u_own the stream that entered the layer and what
    attention brought from END itself. Behind: u_j + c_j, with c_j = integral over a of J(a y) y_j da, J the Jacobian of
    the MLP and y_j what u_j is behind the norm, whose divisor is held; the c sum to MLP(y) - MLP(0), checked to 1e-3.
    Variants, a row for each MLP:
      mixing_change             behind less before, with null, p, q and label;
      mixing_before, mixing_after   the ratios;
      mixing_mlp                that of the c alone;
      rank_change               1 - Spearman correlation over tokens of |u_j| with |u_j + c_j|.

    The null gives the c of tokens to one another at random (`n_draws` times). p (two-sided) is Student's prediction
    interval against these, for more than 0.01; q is Benjamini-Hochberg over MLPs. A label needs q < 0.01 and 0.05.
    Intervals are bootstraps over prompts.

    Args:
        model: any loaded model.
        task: prompts, or a task's name; facts, or repeated random tokens, without.
        steps: points of the integral (Gauss).
        n_draws: shuffles; at least five.
        n_prompts: of a task given by name.
        seed: of prompts, shuffles and bootstrap.

    Raises:
        NotApplicable: no such task for this model, or no layer whose attention is split by token and whose MLP can be
            run by itself.
        BackendError: the integral misses the MLP's write: more steps.

    Reference: Kobayashi et al. 2024 (arXiv 2302.00456): the map behind the MLP; the ratio as in their earlier work
    (arXiv 2109.07152); null and test are ours.
    """
    prompts = model_task(model, task, (*TASKS, "induction"), n=n_prompts, seed=seed)
    parts = decompose(model, prompts.clean, sources=True)
    layers = sorted({t.layer for t in parts.terms if t.kind == "source" and t.layer is not None})
    layers = [i for i in layers if model.reads(i).whole and any(t.kind == "mlp" and t.layer == i for t in parts.terms)]
    if not layers:
        raise NotApplicable(f"{model.info.name}: no layer with heads that are split by token and an MLP run by itself")
    own = torch.arange(prompts.clean.ids.shape[1]) == prompts.end.cpu()[:, None]
    rng = np.random.default_rng(seed)
    values: dict[str, list[np.ndarray]] = {}
    nulls, errors = [], {}
    for layer in layers:
        brought = Brought.of(model, layer, parts, own, prompts.clean.mask.cpu())
        given, errors[mlp_name(layer)] = shares(model, layer, brought, steps=steps)
        before, after = mixing(brought.stream, own), mixing(brought.stream + given, own)
        found = {"mixing_change": after - before, "mixing_before": before, "mixing_after": after}
        found |= {"mixing_mlp": mixing(given, own), "rank_change": _rank_change(brought, given)}
        for name, x in found.items():
            values.setdefault(name, []).append(x)
        shuffled = [mixing(brought.stream + _shuffled(given, brought.mask, rng), own) for _ in range(n_draws)]
        nulls.append(np.array([(x - before).mean() for x in shuffled]))
    mean = np.array([x.mean() for x in values["mixing_change"]])
    null = np.stack(nulls, 1)
    p = stats.p_two_sided(mean, null, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    test = {"null": null.mean(0), "p": p, "q": q, "label": (q < LEVEL) & (np.abs(mean) >= LEAST)}
    base: dict[str, Any] = {"component": [mlp_name(i) for i in layers], "layer": layers, "unit": "fraction"}
    rows = []
    for name, per_layer in values.items():
        columns = interval_columns(stats.bootstrap_mean(np.stack(per_layer, 1), seed=seed))
        extra = test if name == "mixing_change" else {}
        rows.append(pd.DataFrame({"variant": name, **base, **columns, **extra}))
    data = {**prompts.provenance(), "missed": errors}
    return Findings(pd.concat(rows, ignore_index=True), data, ability=prompts)


@dataclass(frozen=True, eq=False)
class Brought:
    """What END of each prompt is made of in one layer, by token.

    Attributes:
        stream: u_j behind attention, END's own with the stream that entered the layer.
        read: the part of it that the MLP reads (all, but in a parallel block).
        rest: of what it reads what is no token's: biases.
        mask: real tokens up to END.
    """

    stream: Float[Tensor, "batch key d_model"]
    read: Float[Tensor, "batch key d_model"]
    rest: Float[Tensor, "batch d_model"]
    mask: Bool[Tensor, "batch key"]

    @classmethod
    def of(
        cls, model: Model, layer: int, parts: Decomposition, own: Bool[Tensor, "batch key"], mask: Tensor
    ) -> Brought:
        """From a decomposition with sources at END."""
        parallel = model.reads(layer).parallel
        n, width = own.shape
        stream = torch.zeros(n, width, parts.vectors.shape[-1])
        rest = torch.zeros_like(stream[:, 0])
        entering = torch.zeros_like(rest)
        for term, x in zip(parts.terms, parts.vectors, strict=True):
            if term.kind == "source" and term.layer == layer:
                stream[:, term.source] += x
            elif term.layer is None or term.layer < layer:
                entering += x
            elif enters(term, layer, parallel=parallel):
                rest += x
        stream += own[..., None] * entering[:, None]
        read = own[..., None] * entering[:, None] if parallel else stream
        return cls(stream, read, rest, mask & (own.flip(1).cumsum(1).flip(1) > 0))


def shares(
    model: Model, layer: int, brought: Brought, *, steps: int
) -> tuple[Float[Tensor, "batch key d_model"], float]:
    """c_j of every token by integrated gradients, and the share of MLP(y) - MLP(0) that all of them miss.

    A norm behind the MLP is passed with its divisor held.

    Raises:
        BackendError: it is more than `COMPLETE`.
    """
    reads, write = LoneMLP.of(model, layer).reads, model.writes(layer).mlp
    behind = None if write is None or len(reads.whole) < 2 else write.norm
    inner = reads if behind is None else replace(reads, whole=reads.whole[:-1], scale=1.0)
    norm = reads.mlp
    total = brought.read.sum(1) + brought.rest
    if norm is None:
        y, constant = brought.read, brought.rest
    else:
        norm = norm.to("cpu")
        divisor = norm.divisor(total)
        y = norm.linear(brought.read) / divisor[:, None]
        constant = norm.linear(brought.rest) / divisor + norm.bias
    vectors = torch.cat([y, constant[:, None]], 1)
    end = vectors.sum(1)
    found = torch.zeros_like(vectors)
    for at, weight in points("gauss", steps):
        found += weight * _jacobian_products(inner, at * end, vectors)
    with torch.no_grad():
        full = _run(inner, end)
        whole = full - _run(inner, torch.zeros_like(end))
    error = float((found.sum(1) - whole).norm() / whole.norm())
    if not error <= COMPLETE:
        raise BackendError(
            f"M{layer}: shares of tokens miss its write by {error:.1e} of it; raise `steps` ({steps}), unless it jumps "
            "on the way from nothing to its input, as a mixture does where experts change: it has no such shares then"
        )
    if behind is not None and write is not None:
        behind = behind.to("cpu")
        found = behind.linear(found) / behind.divisor(full)[:, None] * write.scale
    return found[:, :-1], error


def mixing(vectors: Float[Tensor, "batch key d_model"], own: Bool[Tensor, "batch key"]) -> Float[np.ndarray, " batch"]:
    """|sum of others| / (|sum of others| + |own|)."""
    kept = own[..., None].to(vectors)
    other, self_ = (vectors * (1 - kept)).sum(1).norm(dim=-1), (vectors * kept).sum(1).norm(dim=-1)
    return (other / (other + self_)).double().numpy()


def _jacobian_products(
    reads: Reads, x: Float[Tensor, "batch d_model"], vectors: Float[Tensor, "batch key d_model"]
) -> Float[Tensor, "batch key d_model"]:
    """J(x) v for every vector, by differentiating J^T w, which is linear in w, along them."""
    point = x[:, None].expand_as(vectors).flatten(0, 1).clone().requires_grad_()
    with torch.enable_grad():
        out = _run(reads, point)
        w = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, point, w, create_graph=True)
        (products,) = torch.autograd.grad(back, w, vectors.flatten(0, 1).to(back))
    return products.view(vectors.shape)


def _run(reads: Reads, y: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """The MLP on what stands behind its norm."""
    parameter = next(reads.whole[0].parameters())
    out = reads.mlp_of(y.to(parameter.device, parameter.dtype))
    assert out is not None  # asked before
    return wide(out).cpu()


def _shuffled(given: Tensor, mask: Bool[Tensor, "batch key"], rng: np.random.Generator) -> Tensor:
    """Shares of real tokens handed to one another."""
    found = given.clone()
    for row, real in enumerate(mask):
        at = real.nonzero()[:, 0]
        found[row, at] = given[row, at[torch.from_numpy(rng.permutation(len(at)))]]
    return found


def _rank_change(brought: Brought, given: Tensor) -> Float[np.ndarray, " batch"]:
    before, after = brought.stream.norm(dim=-1), (brought.stream + given).norm(dim=-1)
    rho = [stats.spearman(b[m], a[m]).rho for b, a, m in zip(before, after, brought.mask, strict=True)]
    return 1 - np.array(rho)
