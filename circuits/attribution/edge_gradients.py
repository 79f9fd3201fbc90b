"""Edge attribution: an estimate of what every edge of the model does, from a few passes in all.

S[u, w] = mean over prompts of sum_t (u' - u)[t] . dm/dx_w [t]: what sender u would write on the other prompt, less what
it writes, along the gradient of the metric at the stream that slot w reads. It is the slope of the metric as this one
edge is changed from one run's activation to the other's, so an edge's score estimates the effect of patching it.

Methods differ in where the gradient is taken:
eap: on the prompts themselves (Syed et al. 2023, arXiv 2310.10348). Two forward passes and one backward. Blind to where
    the metric saturates: a head whose softmax is flat there scores nothing.
eap-ig: mean over the straight line between the two prompts' embeddings (Hanna et al. 2024, arXiv 2403.17806).
    Edges out of `embed` then sum to the whole change of the metric; the residual says how nearly. Where a mixture of
    experts chooses others on the way, the metric jumps, which no gradient sees: the residual stays.
eap-ig-activations: each layer's attention, and each MLP, is led from one run's write to the other's on its own, and
    only edges out of it are scored on the way; published code scores every edge on every path and divides.
    (2 layers + 1) * steps passes, each from its layer on.
clean-corrupted: mean of the gradients at the two ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribution.contraction import Contraction
from circuits.attribution.cost import plan
from circuits.attribution.edge_scores import EdgeScores, left_over
from circuits.attribution.quadrature import nodes
from circuits.attribution.slot_gradients import Slopes, Written, end_run, slopes, write_sites, writes_of
from circuits.wiring.case import Case
from interp.edits import Edit, Replace
from interp.errors import TaskError, nearest
from interp.model import Model, Start
from interp.patching.quadrature import Point
from interp.results.provenance import recorded
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

DIRECTIONS = ("noising", "denoising")
OTHER = "other"
"""Role of tokens that have none."""


@recorded
def edge_attribution(
    model: Model,
    task: PromptTask,
    *,
    method: str = "eap-ig",
    metric: AnyMetric | None = None,
    steps: int = 5,
    rule: str = "midpoint",
    direction: str = "noising",
    batch_size: int = 8,
    by_role: bool = False,
    keep_prompts: bool = True,
    tolerance: float | None = 0.02,
    max_steps: int = 40,
    edits: Sequence[Edit] = (),
) -> EdgeScores:
    """S[u, w] = mean_prompts sum_t (u' - u)[t] . mean_path dm/dx_w [t], for every edge of the model; in the metric.

    A score is an estimate to first order: edges that only matter together, or whose effect turns around on the way,
    are missed, and large scores need checking by `run_edges`. With grouped keys and values a slot is a group's.

    Args:
        model: any backend with its weights at hand, and gradients.
        task: pairs of prompts.
        method: one of the module's.
        metric: as in `activation_patching`, and with a gradient; the task's own otherwise.
        steps: gradients along a path.
        rule: where: "midpoint", "left", "right", or "gauss" (Gauss-Legendre; worse where the metric turns within a
            step). Published code takes one end of each: its k/m from the corrupted prompt is `right` when noising.
        direction: "noising" starts at the clean prompt and asks what an edge loses (a positive score: it raises the
            metric when corrupted); "denoising" starts at the corrupted one and asks what it brings back.
        batch_size: prompts at a time; changes nothing but memory.
        by_role: keep the scores apart by the role of the token at which the edge is read. A token with several roles
            counts for the first, so that the parts sum to the whole.
        keep_prompts: keep each prompt's scores, for intervals and stability; no further pass, but their memory.
        tolerance: residual of eap-ig above which steps are doubled; None: never.
        max_steps: no more steps than these.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        TaskError: an unknown method, rule, direction or metric, one without a gradient, or kl where its gradient
            vanishes.
        BackendError: what `plan` says will not fit, or a model whose layers cannot be told apart.
    """
    if direction not in DIRECTIONS:
        raise TaskError(f"unknown direction {direction!r}; {nearest(direction, DIRECTIONS)}")
    path = nodes(method, steps=steps, rule=rule)
    case = Case.of(model, task, metric=metric)
    clean = 0.0 if direction == "noising" else 1.0
    if case.metric == "kl" and all(at == clean for at, _ in path):
        raise TaskError(
            "kl is measured against the clean run, where its gradient is zero: every edge would score 0. Take "
            'method="eap-ig", direction="denoising", or the metric of the task'
        )
    options = {"steps": steps, "rule": rule, "batch_size": batch_size}
    plan(model, task, method=method, by_role=by_role, keep_prompts=keep_prompts, **options).require()
    if direction == "denoising":
        case = replace(case, task=replace(case.task, clean=case.task.corrupt, corrupt=case.task.clean))
    case.ports.prepare(int(case.task.clean.positions.max()) + 1)
    residuals: dict[str, float] = {}
    while True:
        totals = _Totals.of(case, method, path, batch_size, by_role=by_role, keep_prompts=keep_prompts)
        residuals[str(steps)] = totals.residual
        too_coarse = method == "eap-ig" and tolerance is not None and totals.residual > tolerance
        if not too_coarse or 2 * steps > max_steps:
            break
        steps *= 2
        path = nodes(method, steps=steps, rule=rule)
    along = method.startswith("eap-ig")
    own = {
        "method": method,
        "metric": case.metric,
        "direction": direction,
        "steps": steps if along else None,
        "rule": rule if along else None,
        "residual": totals.residual,
        "residuals": residuals,
        "change": totals.change,
    }
    return EdgeScores(case.layout, totals.mean, totals.prompts, totals.residual, own, totals.roles)


@dataclass(frozen=True, eq=False)
class _Totals:
    """Means over prompts, the prompts' own scores, and the change of the metric that they should explain."""

    mean: Float[np.ndarray, "sender slot"]
    prompts: Float[np.ndarray, "prompt sender slot"] | None
    roles: dict[str, Float[np.ndarray, "sender slot"]]
    change: float
    residual: float

    @classmethod
    def of(
        cls, case: Case, method: str, path: tuple[Point, ...], batch_size: int, *, by_role: bool, keep_prompts: bool
    ) -> _Totals:
        """Score portions of prompts, one after another."""
        names = (*case.task.roles, OTHER) if by_role else ("",)
        contract = Contraction(case)
        total = np.zeros((len(names), *case.layout.exists.shape))
        prompt_scores, change = [], 0.0
        for part in case.batches(batch_size):
            labels = _labels(part) if by_role else None
            scorer = _Scorer(part, contract, labels, len(names))
            scores = scorer.activations(path) if method == "eap-ig-activations" else scorer.inputs(path)
            change += float(scorer.change.double().sum())
            total += scores.double().sum(1).cpu().numpy()
            if keep_prompts:
                prompt_scores.append(scores.sum(0).cpu().numpy())
        mean, change = total.sum(0) / len(case), change / len(case)
        roles = dict(zip(names, total / len(case), strict=True)) if by_role else {}
        prompts = np.concatenate(prompt_scores) if keep_prompts else None
        return cls(mean, prompts, roles, change, left_over(case.layout, mean, change))


def _labels(case: Case) -> Int[Tensor, "batch pos"]:
    """Number of each token's first role; that of tokens without one is the last."""
    task = case.task
    labels = torch.full(task.clean.ids.shape, len(task.roles), device=task.clean.ids.device)
    for i, where in reversed(list(enumerate(task.roles.values()))):
        rows = (where >= 0).nonzero()[:, 0]
        labels[rows, where[rows]] = i
    return labels


class _Scorer:
    """Scores of one portion of prompts."""

    def __init__(self, case: Case, contract: Contraction, labels: Tensor | None, n_labels: int) -> None:
        self.case, self.contract, self.labels, self.n_labels = case, contract, labels, n_labels
        self.change = torch.zeros(len(case))

    def inputs(self, nodes: tuple[Point, ...]) -> Float[Tensor, "label batch sender slot"]:
        """Gradients along the line between the embeddings; the ends need no pass of their own where one is a node."""
        case = self.case
        at_ends: dict[float, Slopes] = {
            node: slopes(self._end_case(node), also=write_sites(case.layout)) for node, _ in nodes if node in (0.0, 1.0)
        }
        ends, values = [], []
        for node, tokens in ((0.0, case.task.clean), (1.0, case.task.corrupt)):
            gradients = at_ends.get(node)
            acts, value = end_run(case, tokens) if gradients is None else (gradients.acts, gradients.value)
            ends.append(writes_of(case, acts))
            values.append(value)
        self.change = (values[1] - values[0]).cpu()
        change, start = ends[1] - ends[0], ends[0].embed
        del ends
        scores = None
        for node, weight in nodes:
            gradients = at_ends.pop(node, None)
            gradients = gradients or slopes(case, start=(0, start + node * change.embed))
            scores = self._add(scores, weight, change, gradients)
        assert scores is not None  # a path has at least one node
        return scores

    def activations(self, nodes: tuple[Point, ...]) -> Float[Tensor, "label batch sender slot"]:
        """Gradients as one layer's attention, or one MLP, goes over; edges out of it alone are scored."""
        case = self.case
        (own, first), (other, second) = (end_run(case, t, streams=True) for t in (case.task.clean, case.task.corrupt))
        self.change = (second - first).cpu()
        change, scores = writes_of(case, other) - writes_of(case, own), None
        for site, senders in self._paths():
            for node, weight in nodes:
                value = own[site] + node * (other[site] - own[site])
                start, edits = self._entry(site, value, own)
                scores = self._add(scores, weight, change, slopes(case, start=start, edits=edits), senders)
        assert scores is not None  # a path has at least one node
        return scores

    def _end_case(self, node: float) -> Case:
        """The case whose clean prompts are those of an end."""
        task = self.case.task
        return self.case if node == 0 else replace(self.case, task=replace(task, clean=task.corrupt))

    def _paths(self) -> Iterator[tuple[Site, slice]]:
        """What is led from one run's value to the other's, and the senders that it is the write of."""
        layout = self.case.layout
        yield Site("resid_pre", 0), slice(0, 1)
        at = 1
        for layer in range(layout.n_layers):
            if layout.has_heads(layer):
                yield Site("attn_out", layer), slice(at, at + layout.n_heads)
                at += layout.n_heads
            if layout.mlps:
                yield Site("mlp_out", layer), slice(at, at + 1)
                at += 1

    @staticmethod
    def _entry(site: Site, value: Tensor, own: dict[Site, Tensor]) -> tuple[Start, list[Edit]]:
        """Where a run with this value enters, and its edits."""
        layer = site.first or 0
        if site.kind == "resid_pre":
            return (0, value), []
        return (layer, own[Site("resid_pre", layer)]), [Replace(site, value)]

    def _add(
        self, scores: Tensor | None, weight: float, change: Written, gradients: Slopes, senders: slice = slice(None)
    ) -> Tensor:
        term = self.contract(self.case, change, gradients, senders=senders, labels=self.labels, n_labels=self.n_labels)
        if weight != 1.0:
            term *= weight
        return term if scores is None else scores.add_(term)
