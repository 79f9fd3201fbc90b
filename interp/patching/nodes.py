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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.edits import Edit, Replace
from interp.errors import TaskError, UnknownTask, nearest
from interp.model import Model, ModelInfo
from interp.numerics import wide
from interp.patching.case import Case
from interp.patching.effect_table import groups
from interp.patching.metric_gradients import metric_gradients
from interp.patching.names import component_of
from interp.patching.places import Place, Positions, places
from interp.patching.quadrature import points
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.results.stats import bootstrap_mean, nan_mean
from interp.shapes import brief
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

if TYPE_CHECKING:
    import plotly.graph_objects as go

METHODS = ("atp", "atp-qkfix", "atp-ig", "hisp")
KINDS = ("z", "mlp_out", "resid_pre", "q", "k", "v")
HEADS = ("z", "q", "k", "v")


@dataclass(frozen=True, eq=False)
class NodeScores:
    """What each node scored on each prompt.

    Attributes:
        sites: the nodes; those of q, k, v and z name a head, those of k and v a key-value head.
        components: whose they are: `L3H5` for z and q, `L3KV1` for shared k and v, `M3`, `L3` for the stream.
        prompts: score of each prompt and node, in the metric; NaN where the prompt lacks the node's token.
        places: the tokens that nodes stand at, one after another for every site: node i is at place i % len(places).
        provenance: of the call, with method and metric: plain values.
    """

    sites: tuple[Site, ...]
    components: tuple[str, ...]
    prompts: Float[ndarray, "prompt node"]
    provenance: Mapping[str, Any]
    places: tuple[Place, ...] = (Place(None),)

    __repr__ = brief

    @property
    def mean(self) -> Float[ndarray, " node"]:
        """Mean over the prompts that have the node's tokens."""
        return nan_mean(self.prompts, axis=0)

    def of(self, kind: str) -> dict[str, float]:
        """Scores of one kind by component, those of several places summed within each prompt."""
        count = len(self.places)
        sums = np.nansum(self.prompts.reshape(len(self.prompts), -1, count), axis=2).mean(0)
        rows = zip(self.sites[::count], self.components[::count], sums, strict=True)
        return {component: float(value) for site, component, value in rows if site.kind == kind}

    def table(self, *, seed: int = 0) -> pd.DataFrame:
        """One row per node, strongest first, with standard error and bootstrap interval (95 %) over prompts."""
        interval = _intervals(self.prompts, seed=seed)
        places = [self.places[i % len(self.places)] for i in range(len(self.sites))]
        frame = pd.DataFrame(
            {
                "site": [str(s) for s in self.sites],
                "kind": [s.kind for s in self.sites],
                "layer": [s.first for s in self.sites],
                "component": list(self.components),
                **{name: [place.labels[name] for place in places] for name in ("position", "role", "token")},
                **interval,
            }
        )
        return frame.sort_values("score", key=lambda s: -s.abs(), kind="stable", ignore_index=True)

    def plot(self, *, seed: int = 0) -> go.Figure:
        """A panel for each kind of node, as `result().plot()` draws the first kind."""
        from interp.plots.patching import effect_figure
        from interp.plots.titles import heading, titled

        result = self.result(seed=seed)
        parts = heading(result.table, result.provenance, of="node attribution")
        return titled(effect_figure(result.table), parts)

    def result(self, *, seed: int = 0) -> Result:
        """`table` in the columns of every result: `variant` is the kind of site, each kind's strongest first."""
        table = self.table(seed=seed)
        order = table["kind"].map({kind: i for i, kind in enumerate(KINDS)}).sort_values(kind="stable").index
        rows = table.loc[order].rename(columns={"kind": "variant", "score": "value"})
        heads = {str(site): site.head for site in self.sites}
        rows = rows.assign(analysis="node_attribution", head=rows["site"].map(heads), unit=self.provenance["metric"])
        return Result(frame(rows, extra={"site": "str", "role": "str", "token": "str"}), dict(self.provenance))


@recorded
def node_attribution(
    model: Model,
    task: PromptTask,
    *,
    method: str = "atp",
    metric: AnyMetric | None = None,
    steps: int = 5,
    rule: str = "midpoint",
    positions: Positions = None,
    batch_size: int = 8,
    edits: Sequence[Edit] = (),
) -> NodeScores:
    """Scores of every head (z), MLP, stream entering a layer, and head's q, k and v, by `method` (see the module).

    Two forward passes and one backward, `steps` of both with "atp-ig", one forward fewer with "hisp"; the fix adds two
    passes over every layer, and with `positions` one for the keys of each. A positive score: patching the node with the
    other prompt's activation raises the metric.
    First-order: the score of a node whose effects cancel along its paths is small however much it does on each.

    Args:
        model: any backend that runs with gradients.
        task: pairs of prompts.
        method: one of the above.
        metric: as in `activation_patching`, and with a gradient; the task's own otherwise.
        steps: gradients along the path of "atp-ig".
        rule: where they are, as in `edge_attribution`.
        positions: None for sums over all tokens; "all" for one score per position, "roles" for one per role, or names
            of roles, as in `activation_patching`. Over all positions scores add up to those of whole prompts, but for
            magnitudes ("hisp") and for the keys of "atp-qkfix".
        batch_size: prompts at a time; changes nothing but memory.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        TaskError: an unknown method, role or metric, one without a gradient, or kl where its gradient vanishes.
    """
    if method not in METHODS:
        raise UnknownTask(f"unknown method {method!r}; {nearest(method, METHODS)}")
    case = Case.of(model, task, metric=metric)
    if case.metric == "kl" and method != "atp-ig":
        raise TaskError('kl is measured against the clean run, where its gradient is zero; take method="atp-ig"')
    path, sites, at = points(rule, steps), _sites(model), tuple(places(model, case.task, positions))
    parts, first = [], 0
    for part in case.batches(batch_size):
        rows, width = slice(first, first + len(part)), part.task.clean.ids.shape[1]
        by_site = _scores(part, method, path, sites, [place.part(rows, width) for place in at])
        parts.append(torch.cat([by_site[site].flatten(1) for site in sites], 1).cpu().double().numpy())
        first += len(part)
    own = {
        "method": method,
        "metric": case.metric,
        "steps": steps if method == "atp-ig" else None,
        "rule": rule if method == "atp-ig" else None,
    }
    nodes = tuple(node for site in sites for node in _nodes(site, model.info) for _ in at)
    group = model.info.n_heads // model.info.n_kv_heads
    names = tuple(component_of(node, group=group) for node in nodes)
    return NodeScores(nodes, names, np.concatenate(parts), own, at)


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
    case: Case, method: str, path: tuple[tuple[float, float], ...], sites: list[Site], at: list[Place]
) -> dict[Site, Float[Tensor, "batch node place"]]:
    """Scores of one portion of prompts, by site."""
    embed = Site("resid_pre", 0)
    last = case.model.info.n_layers - 1
    if method == "hisp":
        slopes = metric_gradients(case, sites)
        return {site: _dot(wide(slopes.acts[site]), slopes.sites[site], at).abs() for site in sites}
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
    scores = {site: _dot(other[site] - own[site], grads[site], at) for site in sites}
    if method == "atp-qkfix":
        for layer in case.model.info.attention_layers:
            for port in ("q", "k"):
                scores[Site(port, layer)] = _qk_scores(case, port, layer, own, other, grads, at)
    return scores


@torch.no_grad()
def _qk_scores(
    case: Case,
    port: str,
    layer: int,
    own: dict[Site, Tensor],
    other: dict[Site, Tensor],
    grads: dict[Site, Tensor],
    at: list[Place],
) -> Float[Tensor, "batch node place"]:
    """sum_t (z' - z) . dm/dz, z' with every head's q (or k) from the other run: heads of a layer do not see another.

    A query moves the z of its own token alone, so that one run gives all places; a key moves those of all later ones,
    so that each place has a run of its own.
    """
    z, site, info = Site("z", layer), Site(port, layer), case.model.info
    entry = own[Site("resid_pre", layer)]

    def moved(place: Place) -> Tensor:
        edit = Replace(site, other[site], positions=place.mask)
        run = case.model.run(case.task.clean, capture=[z], start=(layer, entry), stop=layer, edits=[edit])
        return wide(run.acts[z]) - own[z]

    if port == "q":
        return _dot(moved(Place(None)), grads[z], at)
    by_place = [_dot(moved(place), grads[z], [Place(None)]) for place in at]
    lacking = [
        x if place.mask is None else x.masked_fill(~place.mask.any(1)[:, None, None], torch.nan)
        for place, x in zip(at, by_place, strict=True)
    ]
    return torch.cat(lacking, 2).unflatten(1, (info.n_kv_heads, -1)).sum(2)


def _dot(
    a: Float[Tensor, "batch pos *rest"], b: Float[Tensor, "batch pos *rest"], at: list[Place]
) -> Float[Tensor, "batch node place"]:
    """Sum over a place's positions and over channels, heads apart; NaN where a prompt lacks the place."""
    products = (a * b).sum(-1)
    products = products[..., None] if products.ndim == 2 else products  # batch pos node
    sums = []
    for place in at:
        if place.mask is None:
            sums.append(products.sum(1))
            continue
        mask = place.mask.to(products.device)
        own = (products * mask[..., None]).sum(1)
        sums.append(own.masked_fill(~mask.any(1)[:, None], torch.nan))
    return torch.stack(sums, -1)


def _intervals(prompts: Float[ndarray, "prompt node"], *, seed: int) -> dict[str, ndarray]:
    """Columns score, se, ci_low, ci_high and n: nodes of the same prompts are resampled together."""
    columns = {name: np.full(prompts.shape[1], np.nan) for name in ("score", "se", "ci_low", "ci_high")}
    counts = np.zeros(prompts.shape[1], dtype=int)
    for pattern, members in groups(~np.isnan(prompts.T)).items():
        counts[members] = sum(pattern)
        if any(pattern):
            interval = bootstrap_mean(prompts[:, members][np.array(pattern)], seed=seed)
            for name, values in zip(columns, interval[:4], strict=True):
                columns[name][members] = values
    return {**columns, "n": counts}
