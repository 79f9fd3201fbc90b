"""Node attribution: an estimate of what patching each head, MLP, stream, query, key or value does, from one gradient.

atp:        sum_t (a' - a)[t] . dm/da[t], a' the activation on the other prompts: the slope along the patch.
atp-qkfix:  the same, but for queries and keys the softmax is computed again on the other run's q (or k), and only what
            follows is linear: sum_t (z' - z) . dm/dz. Where attention is saturated the slope of the softmax is nothing
            like what moving it does (AtP*, Kramar et al. 2024, arXiv 2403.00745). Values need no fix: z is linear in v.
atp-ig:     the gradient is its mean over the line between the two prompts' embeddings.
hisp:       |sum_t a[t] . dm/da[t]| on the clean prompts, a mean of magnitudes: how much scaling a node would matter
            (Michel et al. 2019, arXiv 1905.10650). It needs no other prompt, is never negative, and is not the effect
            of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.edits import Replace
from interp.errors import TaskError, nearest
from interp.model import Model, ModelInfo
from interp.numerics import wide
from interp.patching.case import Case
from interp.patching.metric_gradients import metric_gradients
from interp.patching.names import component_of
from interp.patching.quadrature import points
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.results.stats import bootstrap_mean
from interp.shapes import brief
from interp.sites import Site
from interp.tasks import PromptTask

METHODS = ("atp", "atp-qkfix", "atp-ig", "hisp")
KINDS = ("z", "mlp_out", "resid_pre", "q", "k", "v")
HEADS = ("z", "q", "k", "v")


@dataclass(frozen=True, eq=False)
class NodeScores:
    """What each node scored on each prompt.

    Attributes:
        sites: the nodes; those of q, k, v and z name a head, those of k and v a key-value head.
        components: whose they are: `L3H5` for z and q, `L3KV1` for shared k and v, `M3`, `L3` for the stream.
        prompts: score of each prompt and node, in the metric.
        provenance: of the call, with method and metric: plain values.
    """

    sites: tuple[Site, ...]
    components: tuple[str, ...]
    prompts: Float[ndarray, "prompt node"]
    provenance: Mapping[str, Any]

    __repr__ = brief

    @property
    def mean(self) -> Float[ndarray, " node"]:
        """Mean over prompts."""
        return self.prompts.mean(0)

    def of(self, kind: str) -> dict[str, float]:
        """Scores of one kind by component."""
        rows = zip(self.sites, self.components, self.mean, strict=True)
        return {component: float(value) for site, component, value in rows if site.kind == kind}

    def table(self, *, seed: int = 0) -> pd.DataFrame:
        """One row per node, strongest first, with standard error and bootstrap interval (95 %) over prompts."""
        interval = bootstrap_mean(self.prompts, seed=seed)
        frame = pd.DataFrame(
            {
                "site": [str(s) for s in self.sites],
                "kind": [s.kind for s in self.sites],
                "layer": [s.first for s in self.sites],
                "component": list(self.components),
                "score": interval.mean,
                "se": interval.se,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "n": interval.n,
            }
        )
        return frame.sort_values("score", key=lambda s: -s.abs(), kind="stable", ignore_index=True)

    def result(self, *, seed: int = 0) -> Result:
        """`table` in the columns of every result: `variant` is the kind of site, each kind's strongest first."""
        table = self.table(seed=seed)
        order = table["kind"].map({kind: i for i, kind in enumerate(KINDS)}).sort_values(kind="stable").index
        rows = table.loc[order].rename(columns={"kind": "variant", "score": "value"})
        heads = {str(site): site.head for site in self.sites}
        rows = rows.assign(analysis="node_attribution", head=rows["site"].map(heads), unit=self.provenance["metric"])
        return Result(frame(rows, extra={"site": "str"}), dict(self.provenance))


@recorded
def node_attribution(
    model: Model,
    task: PromptTask,
    *,
    method: str = "atp",
    metric: str | None = None,
    steps: int = 5,
    rule: str = "midpoint",
    batch_size: int = 8,
) -> NodeScores:
    """Scores of every head (z), MLP, stream entering a layer, and head's q, k and v, by `method` (see the module).

    Two forward passes and one backward, `steps` of both with "atp-ig", one forward fewer with "hisp"; the fix adds two
    passes over every layer. A positive score: patching the node with the other prompt's activation raises the metric.
    First-order: the score of a node whose effects cancel along its paths is small however much it does on each.

    Args:
        model: any backend that runs with gradients.
        task: pairs of prompts.
        method: one of the above.
        metric: one of `interp.tasks.metrics` that has a gradient; the task's own otherwise.
        steps: gradients along the path of "atp-ig".
        rule: where they are, as in `edge_attribution`.
        batch_size: prompts at a time; changes nothing but memory.

    Raises:
        TaskError: an unknown method or metric, one without a gradient, or kl where its gradient vanishes.
    """
    if method not in METHODS:
        raise TaskError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    case = Case.of(model, task, metric=metric)
    if case.metric == "kl" and method != "atp-ig":
        raise TaskError('kl is measured against the clean run, where its gradient is zero; take method="atp-ig"')
    path, sites = points(rule, steps), _sites(model)
    parts = []
    for part in case.batches(batch_size):
        by_site = _scores(part, method, path, sites)
        parts.append(torch.cat([by_site[site] for site in sites], 1).cpu().double().numpy())
    own = {
        "method": method,
        "metric": case.metric,
        "steps": steps if method == "atp-ig" else None,
        "rule": rule if method == "atp-ig" else None,
    }
    nodes = tuple(node for site in sites for node in _nodes(site, model.info))
    group = model.info.n_heads // model.info.n_kv_heads
    names = tuple(component_of(node, group=group) for node in nodes)
    return NodeScores(nodes, names, np.concatenate(parts), own)


def _sites(model: Model) -> list[Site]:
    """Every kind at the layers that have it."""
    every = tuple(range(model.info.n_layers))
    with_mlp = tuple(layer for layer in every if "mlp_out" not in model.reads(layer).missing)
    layers: dict[str, tuple[int, ...]] = {**dict.fromkeys(HEADS, model.info.attention_layers), "mlp_out": with_mlp}
    return [Site(kind, layer) for kind in KINDS for layer in layers.get(kind, every)]


def _nodes(site: Site, info: ModelInfo) -> list[Site]:
    if site.kind not in HEADS:
        return [site]
    n = info.n_kv_heads if site.kind in ("k", "v") else info.n_heads
    return [Site(site.kind, site.first, head=head) for head in range(n)]


def _scores(
    case: Case, method: str, path: tuple[tuple[float, float], ...], sites: list[Site]
) -> dict[Site, Float[Tensor, "batch node"]]:
    """Scores of one portion of prompts, by site."""
    embed = Site("resid_pre", 0)
    last = case.model.info.n_layers - 1
    if method == "hisp":
        slopes = metric_gradients(case, sites)
        return {site: _dot(wide(slopes.acts[site]), slopes.sites[site]).abs() for site in sites}
    other = {s: wide(x.detach()) for s, x in case.model.run(case.task.corrupt, capture=sites, stop=last).acts.items()}
    if method == "atp-ig":
        own = {s: wide(x.detach()) for s, x in case.model.run(case.task.clean, capture=sites, stop=last).acts.items()}
        grads = {site: torch.zeros_like(x) for site, x in own.items()}
        for node, weight in path:
            entry = own[embed] + node * (other[embed] - own[embed])
            slopes = metric_gradients(case, sites, start=(0, entry)).sites
            grads = {site: g + weight * slopes[site] for site, g in grads.items()}
    else:
        slopes = metric_gradients(case, sites)
        own, grads = {site: wide(slopes.acts[site]) for site in sites}, slopes.sites
    scores = {site: _dot(other[site] - own[site], grads[site]) for site in sites}
    if method == "atp-qkfix":
        for layer in case.model.info.attention_layers:
            for port in ("q", "k"):
                scores[Site(port, layer)] = _qk_scores(case, port, layer, own, other, grads)
    return scores


@torch.no_grad()
def _qk_scores(
    case: Case, port: str, layer: int, own: dict[Site, Tensor], other: dict[Site, Tensor], grads: dict[Site, Tensor]
) -> Float[Tensor, "batch node"]:
    """sum_t (z' - z) . dm/dz, z' with every head's q (or k) from the other run: heads of a layer do not see another."""
    z, site = Site("z", layer), Site(port, layer)
    entry = own[Site("resid_pre", layer)]
    run = case.model.run(
        case.task.clean, capture=[z], start=(layer, entry), stop=layer, edits=[Replace(site, other[site])]
    )
    by_head, info = _dot(wide(run.acts[z]) - own[z], grads[z]), case.model.info
    return by_head if port == "q" else by_head.unflatten(1, (info.n_kv_heads, -1)).sum(2)


def _dot(a: Float[Tensor, "batch pos *rest"], b: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch node"]:
    """Sum over positions and channels, heads apart."""
    if a.ndim == 3:
        return (a * b).sum((1, 2))[:, None]
    return (a * b).sum((1, 3))
