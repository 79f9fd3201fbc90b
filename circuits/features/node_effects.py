"""Indirect effects of features and error nodes on a metric, by attribution or integrated gradients, and their sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.node_changes import Portion
from circuits.features.node_sites import NodeSite, flat
from interp.edits import Edit, Replace
from interp.errors import TaskError, nearest
from interp.model import Start
from interp.patching.metric_gradients import metric_gradients
from interp.patching.places import Place
from interp.patching.quadrature import points
from interp.patching.readout import at_end, value_at_end
from interp.sites import Site

METHODS = ("ig", "atp")
ERROR = -1
"""Number that stands for the error node among features."""
ROWS = 64
"""Copies of prompts in one pass of integrated gradients, where a portion is smaller."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes that change on any prompt, in the order of the forward pass, then of places, errors before features.

    Attributes:
        site, place, feature: numbers of each; `ERROR` for an error node.
        effect, se: mean over prompts of the effect and its standard error, prompts without the node counted as 0.
        value: mean over prompts of the sum of clean activations at tokens where it changes; of an error, of the
            lengths of its changes.
        active: prompts on which it changes.
    """

    site: Int[np.ndarray, " node"]
    place: Int[np.ndarray, " node"]
    feature: Int[np.ndarray, " node"]
    effect: Float[np.ndarray, " node"]
    se: Float[np.ndarray, " node"]
    value: Float[np.ndarray, " node"]
    active: Int[np.ndarray, " node"]

    def __len__(self) -> int:
        """How many."""
        return len(self.site)

    def take(self, index: Int[np.ndarray, " chosen"]) -> Nodes:
        """Some of them, in the order given."""
        return Nodes(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def where(self, site: int, place: int) -> Int[np.ndarray, " own"]:
        """Numbers of those at one site and place."""
        return np.flatnonzero((self.site == site) & (self.place == place))


def gradients(portion: Portion, sites: Sequence[NodeSite], *, method: str, steps: int, rule: str) -> None:
    """Leave in a portion the gradient of the metric at every site, [batch pos d].

    "atp": at the clean prompt. "ig": at each site by itself the mean over the straight line to what the baseline has
    there, all else following; a run for every site and step, from the site's layer on.

    Raises:
        TaskError: an unknown method or rule, or a metric without gradient where it is taken.
    """
    if method not in METHODS:
        raise TaskError(f"unknown attribution {method!r}; {nearest(method, METHODS)}")
    case = portion.case
    if method == "atp":
        if case.metric == "kl":
            raise TaskError('kl is measured against the clean run, where its gradient is zero; take attribution="ig"')
        slopes = metric_gradients(case, [s.site for s in sites]).sites
        portion.grads = [flat(slopes[s.site]) for s in sites]
        return
    path = points(rule, steps)
    portion.grads = []
    at_once = max(1, ROWS // len(case))
    for i, own in enumerate(sites):
        mean = torch.zeros_like(portion.acts[own.site])
        for first in range(0, len(path), at_once):
            some = path[first : first + at_once]
            start, edits = _moved(portion, sites, i, [at for at, _ in some])
            slopes = metric_gradients(case.repeated(len(some)), [own.site], start=start, edits=edits)
            weights = mean.new_tensor([weight for _, weight in some])
            mean += torch.einsum("s,sbpd->bpd", weights, flat(slopes.sites[own.site]).unflatten(0, (len(some), -1)))
        portion.grads.append(mean)


@torch.no_grad()
def measured(portion: Portion, sites: Sequence[NodeSite], i: int, *, at: float = 1.0) -> Float[Tensor, " batch"]:
    """The metric of each prompt with the whole activation of a site put to the baseline (at 0: as it is)."""
    start, edits = _moved(portion, sites, i, [at])
    case, last = portion.case, Site("resid_post", portion.case.model.info.n_layers - 1)
    run = case.model.run(case.task.clean, capture=[last], start=start, stop=last.first, edits=edits)
    return value_at_end(case, at_end(case, run.acts[last]))


def _moved(
    portion: Portion, sites: Sequence[NodeSite], i: int, along: Sequence[float]
) -> tuple[Start | None, list[Edit]]:
    """Where a run enters, and what it has at a site: a block of prompts for each part of the way to the baseline."""
    own = sites[i]
    x, whole = portion.acts[own.site], portion.changes[i].total
    moved = torch.cat([x + at * whole for at in along])
    info = portion.case.model.info
    shape = (*moved.shape[:2], info.n_heads, -1) if own.site.kind == "z" else moved.shape
    layer = own.site.first
    value = moved.reshape(shape).to(getattr(torch, info.dtype))
    entry = None if layer is None else (layer, portion.entry[layer].repeat(len(along), 1, 1))
    return entry, [Replace(own.site, value)]


def mean_and_se(total: np.ndarray, squares: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of n prompts and its standard error s / sqrt(n), NaN for one, from sums of values and of their squares."""
    mean = total / n
    spread = np.maximum(squares / n - mean**2, 0)
    return mean, np.sqrt(spread / (n - 1)) if n > 1 else np.full(len(mean), np.nan)


class Tally:
    """Sums over prompts of what nodes do, kept for nodes that change and no others."""

    def __init__(self, sites: Sequence[NodeSite], places: list[Place]) -> None:
        self.sites, self.places = sites, places
        self.parts: list[list[np.ndarray]] = []
        self.totals: list[list[Tensor]] = [[] for _ in sites]

    def add(self, portion: Portion) -> None:
        """Count a portion whose gradients are taken."""
        masks = portion.masks(self.places)
        for i, own in enumerate(self.sites):
            change, g = portion.changes[i], portion.grads[i]
            entries, errors = change.delta * change.slopes(own, g), change.error(g)
            per_prompt = errors.sum(1).index_add(0, change.row, entries)
            self.totals[i].append(per_prompt.double().cpu())
            length = change.rest.norm(dim=-1)
            for k, mask in enumerate(masks):
                inside = mask[change.row, change.pos]
                row, feature = change.row[inside], change.feature[inside]
                self._count(i, k, row, feature, entries[inside], change.value[inside])
                row, pos = (mask & (length > 0)).nonzero().T
                self._count(i, k, row, torch.full_like(row, ERROR), errors[row, pos], length[row, pos])

    def _count(self, site: int, place: int, row: Tensor, feature: Tensor, effect: Tensor, value: Tensor) -> None:
        """Sum within prompts, then over the portion's prompts: effect, its square, value, prompts."""
        if not len(row):
            return
        width = self.sites[site].n_features + 1
        keys, number = (row * width + feature - ERROR).unique(return_inverse=True)
        sums = torch.zeros(len(keys), 2, dtype=torch.float64, device=row.device)
        sums.index_add_(0, number, torch.stack([effect, value], 1).double())
        nodes, own = (keys % width).unique(return_inverse=True)
        columns = torch.stack([sums[:, 0], sums[:, 0] ** 2, sums[:, 1], torch.ones_like(sums[:, 0])], 1)
        total = torch.zeros(len(nodes), 4, dtype=torch.float64, device=row.device).index_add_(0, own, columns)
        place_of = np.full((len(nodes), 1), place)
        site_of = np.full((len(nodes), 1), site)
        self.parts.append([site_of, place_of, (nodes[:, None] + ERROR).cpu().numpy(), total.cpu().numpy()])

    def nodes(self) -> Nodes:
        """Means over all prompts counted."""
        n = sum(len(x) for x in self.totals[0])
        if not self.parts:
            empty, none = np.zeros(0), np.zeros(0, dtype=int)
            return Nodes(none, none, none, empty, empty, empty, none)
        names = np.concatenate([np.concatenate(part[:3], 1) for part in self.parts])
        sums = np.concatenate([part[3] for part in self.parts])
        keys, number = np.unique(names, axis=0, return_inverse=True)
        total = np.zeros((len(keys), 4))
        np.add.at(total, number.ravel(), sums)
        mean, se = mean_and_se(total[:, 0], total[:, 1], n)
        site, place, feature = keys.T
        return Nodes(site, place, feature, mean, se, total[:, 2] / n, total[:, 3].astype(int))

    def sums(self) -> Float[np.ndarray, "site prompt"]:
        """Of each prompt, the effects of all nodes of a site, whatever their place."""
        return np.stack([torch.cat(x).numpy() for x in self.totals])
