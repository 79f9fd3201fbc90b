"""Edges of a feature circuit: what one node does to the metric through another, with every node in between held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.node_changes import Portion
from circuits.features.node_effects import ERROR, Nodes, mean_and_se
from circuits.features.node_sites import NodeSite, Passage
from interp.patching.case import Case
from interp.patching.places import Place
from interp.patching.readout import at_end, value_at_end
from interp.sites import Site

METRIC = -1
"""Number of the metric among targets."""


@dataclass(frozen=True, eq=False)
class Links:
    """Edges between nodes, by number.

    Attributes:
        source, target: numbers of nodes; `METRIC` as a target.
        weight, se: mean over prompts of the effect on the metric, and its standard error.
    """

    source: Int[np.ndarray, " edge"]
    target: Int[np.ndarray, " edge"]
    weight: Float[np.ndarray, " edge"]
    se: Float[np.ndarray, " edge"]

    def __len__(self) -> int:
        """How many."""
        return len(self.source)

    def take(self, index: Int[np.ndarray, " chosen"]) -> Links:
        """Some of them, in the order given."""
        return Links(self.source[index], self.target[index], self.weight[index], self.se[index])


class Cut:
    """One forward pass of some clean prompts in which what stands at each node site goes on as a value of its own.

    What is read at a site then depends on the values of earlier sites directly, through no other node: gradients stop
    at every site in between. With `only`, a site by number, the others are as the pass makes them.
    """

    def __init__(
        self,
        case: Case,
        sites: Sequence[NodeSite],
        values: Mapping[Site, Float[Tensor, "batch pos d"]],
        *,
        attached: bool = False,
        only: int | None = None,
    ) -> None:
        self.case, self.sites = case, sites
        self.leaves = [values[s.site].clone().requires_grad_(attached) for s in sites]
        self.last = Site("resid_post", case.model.info.n_layers - 1)
        self.passage = Passage(sites, lambda i, _: self.leaves[i] if only in (None, i) else None, others=[self.last])
        with case.model.frozen(), torch.set_grad_enabled(attached):
            case.model.run(case.task.clean, edits=self.passage.edits, stop=self.last.first, gradients=attached)

    def features(self, i: int) -> Float[Tensor, "batch pos feature"]:
        """What the dictionary of a site makes of what comes to it."""
        return self.sites[i].encode(self.passage.read(i))

    def error(
        self, i: int, f: Float[Tensor, "batch pos feature"], clean: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d2"]:
        """What comes to a site and is not in its features; `clean` is what divisors and skips are held at."""
        own = self.sites[i]
        x = self.passage.pre[own.site]
        return x if own.dictionary is None else x - own.decode(f, clean)

    def metric(self) -> Float[Tensor, " batch"]:
        """The metric of each prompt, from what goes on behind the last layer."""
        end = at_end(self.case, self.passage.post[self.last])
        with self.case.model.frozen(), torch.set_grad_enabled(end.requires_grad):
            return value_at_end(self.case, end.to(getattr(torch, self.case.model.info.dtype)), gradients=True)


def links(portions: Sequence[Portion], sites: Sequence[NodeSite], nodes: Nodes, places: list[Place]) -> Links:
    """Weights of all edges between nodes, and from nodes to the metric.

        w(u -> d) = sum over tokens of (dm/dd) (dd/du) (u' - u),

    dm/dd the gradient that effects were taken with (which follows everything behind d) and dd/du the direct one, other
    nodes held (Marks et al. 2024). One pass forward for a portion and one back for a target; each is a vector-Jacobian
    product, over all tokens and sources at once. Edges that are exactly 0 on every prompt are left out.
    """
    rows: dict[int, np.ndarray] = {}
    n = sum(len(p.case) for p in portions)
    for portion in portions:
        sources = Sources(portion, sites, nodes, places)
        cut = Cut(portion.case, sites, portion.acts, attached=True)
        _count(rows, METRIC, sources.effects(_grads(cut.metric().sum(), cut.leaves)))
        for i in range(len(sites)):
            targets = np.flatnonzero(nodes.site == i)
            if not len(targets):
                continue
            f = cut.features(i)
            for target in targets.tolist():
                value = node_value(cut, portion, i, f, int(nodes.feature[target]), sources.masks[nodes.place[target]])
                _count(rows, target, sources.effects(_grads(value.sum(), cut.leaves[:i])))
    sums = np.stack([rows.get(t, np.zeros((2, len(nodes)))) for t in range(METRIC, len(nodes))])
    target, source = np.nonzero(sums[:, 0])
    weight, se = mean_and_se(sums[target, 0, source], sums[target, 1, source], n)
    return Links(source, target + METRIC, weight, se)


def node_value(cut: Cut, portion: Portion, i: int, f: Tensor, feature: int, mask: Tensor) -> Float[Tensor, " batch"]:
    """(dm/dd) d of each prompt, summed over tokens, with a gradient through d alone."""
    g, own, change = portion.grads[i], cut.sites[i], portion.changes[i]
    if feature == ERROR:
        return (cut.error(i, f, portion.acts[own.reads]) * g * mask[..., None]).sum((1, 2))
    w = own.directions(torch.tensor([feature], device=g.device)).to(g)[0]
    slope = (g @ w) * change.factor[..., 0] * mask
    return (f[..., feature].to(g) * slope).sum(1)


def _grads(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    if not value.requires_grad or not leaves:
        return [None] * len(leaves)
    return list(torch.autograd.grad(value, list(leaves), retain_graph=True, allow_unused=True))


def _count(rows: dict[int, np.ndarray], target: int, effects: Tensor | None) -> None:
    if effects is not None:
        per_prompt = effects.double().cpu().numpy()
        sums = np.stack([per_prompt.sum(0), (per_prompt**2).sum(0)])
        rows[target] = rows[target] + sums if target in rows else sums


class Sources:
    """What each node of a portion changes, for products with gradients."""

    def __init__(self, portion: Portion, sites: Sequence[NodeSite], nodes: Nodes, places: list[Place]) -> None:
        self.n_rows, self.n_nodes = len(portion.case), len(nodes)
        self.masks = portion.masks(places)
        self.portion, self.sites = portion, sites
        self.entries = [self._entries(nodes, i) for i in range(len(sites))]
        self.errors = [
            [(int(j), int(nodes.place[j])) for j in np.flatnonzero((nodes.site == i) & (nodes.feature == ERROR))]
            for i in range(len(sites))
        ]

    def _entries(self, nodes: Nodes, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(row, pos, vector that is added, number of the node) of every entry of a site's nodes."""
        change, own = self.portion.changes[i], self.sites[i]
        parts, device = [], change.row.device
        for k, mask in enumerate(self.masks):
            chosen = nodes.where(i, k)
            chosen = chosen[nodes.feature[chosen] != ERROR]
            number = torch.full((own.n_features + 1,), -1, device=device)
            number[torch.from_numpy(nodes.feature[chosen]).to(device)] = torch.from_numpy(chosen).to(device)
            inside = mask[change.row, change.pos] & (number[change.feature] >= 0)
            entry = inside.nonzero()[:, 0]
            w = change.written(own, entry) * change.delta[entry, None]
            parts.append((change.row[entry], change.pos[entry], w, number[change.feature[entry]]))
        row, pos, w, node = (torch.cat(column) for column in zip(*parts, strict=True))
        return row, pos, w, node

    def moved(self, node: int, nodes: Nodes) -> dict[Site, Float[Tensor, "batch pos d"]]:
        """Activations at every site, one node put to the baseline."""
        i = int(nodes.site[node])
        site, acts = self.sites[i].site, dict(self.portion.acts)
        if nodes.feature[node] == ERROR:
            mask = self.masks[nodes.place[node]]
            return acts | {site: acts[site] + self.portion.changes[i].rest * mask[..., None]}
        row, pos, w, owner = self.entries[i]
        own = owner == node
        return acts | {site: acts[site].index_put((row[own], pos[own]), w[own], accumulate=True)}

    def effects(self, grads: Sequence[Tensor | None]) -> Float[Tensor, "batch node"] | None:
        """Of every node on each prompt, where gradients at the sites are given; None where there is none."""
        total = None
        for i, g in enumerate(grads):
            if g is None:
                continue
            total = g.new_zeros(self.n_rows, self.n_nodes) if total is None else total
            row, pos, w, node = self.entries[i]
            total.index_put_((row, node), (w * g[row, pos]).sum(-1), accumulate=True)
            errors = self.portion.changes[i].error(g) if self.errors[i] else None
            for node_number, place in self.errors[i]:
                assert errors is not None  # taken just above
                total[:, node_number] += (errors * self.masks[place]).sum(1)
        return total
