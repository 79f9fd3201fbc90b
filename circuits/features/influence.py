"""Influence in a sparse graph of features: how much of the logits comes through each node, what is pruned by it.

An edge's share is |weight| over the sum of |weights| that enter its target, those not kept included; influence of a
node is the sum over all paths to the logits of products of shares, logits counted by their probability
((I - A)^-1 - I, Ameisen et al. 2025). What is not kept flows nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MOST_STEPS = 10_000


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges as three columns, and the size of each node's whole input, kept or not.

    Attributes:
        source, target: numbers of nodes. weight: effect of the source on the target.
        total: sum of |weights| into each node; 0 for nodes that nothing enters.
    """

    source: Int[Tensor, " edge"]
    target: Int[Tensor, " edge"]
    weight: Float[Tensor, " edge"]
    total: Float[Tensor, " node"]

    @property
    def share(self) -> Float[Tensor, " edge"]:
        """|weight| over all that enters the target."""
        total = self.total[self.target]
        return torch.where(total > 0, self.weight.abs() / total, 0.0)

    def where(self, keep: Bool[Tensor, " edge"]) -> Edges:
        """Some of the edges; shares stay."""
        return Edges(self.source[keep], self.target[keep], self.weight[keep], self.total)

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        return sum(x.nbytes for x in (self.source, self.target, self.weight, self.total))


def influence(edges: Edges, start: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Sum over paths from each node to those of `start` of products of shares; `start` itself is not counted.

    Ends when nothing is left to pass on: features stand in layers, so there are no circles.
    """
    share = edges.share.double()
    total, flow = torch.zeros_like(start, dtype=torch.float64), start.double()
    for _ in range(MOST_STEPS):
        flow = torch.zeros_like(flow).index_add_(0, edges.source, share * flow[edges.target])
        if not bool(flow.any()):
            break
        total += flow
    return total


def kept_share(edges: Edges, start: Float[Tensor, " node"]) -> float:
    """Share of what enters nodes that kept edges carry, nodes weighted by their influence (logits by probability)."""
    weight = influence(edges, start) + start.double()
    kept = torch.zeros_like(weight).index_add_(0, edges.target, edges.share.double())
    weight = torch.where(edges.total > 0, weight, 0.0)
    return float((kept * weight).sum() / weight.sum()) if bool(weight.any()) else 0.0


def scores(
    edges: Edges, start: Float[Tensor, " node"], *, embedding: Bool[Tensor, " node"], error: Bool[Tensor, " node"]
) -> tuple[float, float]:
    """(replacement, completeness) of a graph (circuit-tracer).

    Replacement: share of the influence of embeddings in that of embeddings and errors: paths that begin at a token.
    Completeness: share of what enters each node that is no error, nodes weighted by influence.
    """
    reach = influence(edges, start)
    tokens, errors = float(reach[embedding].sum()), float(reach[error].sum())
    replacement = tokens / (tokens + errors) if tokens + errors else 0.0
    weight = torch.where(edges.total > 0, reach + start.double(), 0.0)
    wrong = torch.zeros_like(weight).index_add_(0, edges.target, edges.share.double() * error[edges.source])
    known = torch.zeros_like(weight).index_add_(0, edges.target, edges.share.double())
    right = torch.where(known > 0, 1 - wrong / known.clamp(min=1e-30), 0.0)
    return replacement, float((right * weight).sum() / weight.sum()) if bool(weight.any()) else 0.0


def smallest(values: Float[Tensor, " n"], share: float) -> Bool[Tensor, " n"]:
    """The fewest entries, largest first, whose sum is at least a share of the whole; 1 or more: all above 0."""
    keep = torch.zeros_like(values, dtype=torch.bool)
    if not len(values) or share >= 1:
        return values > 0
    order = values.argsort(descending=True, stable=True)
    sums = values[order].double().cumsum(0)
    n = int((sums < share * sums[-1] * (1 - 1e-12)).sum()) + 1
    keep[order[:n]] = True
    return keep & (values > 0)


def prune(
    edges: Edges,
    start: Float[Tensor, " node"],
    *,
    node: float,
    edge: float,
    fixed: Bool[Tensor, " node"],
    inner: Bool[Tensor, " node"],
) -> tuple[Bool[Tensor, " node"], Bool[Tensor, " edge"]]:
    """Nodes and edges that are kept.

    The fewest nodes that carry a share `node` of all influence, and those that are `fixed` (tokens and logits); of the
    edges between them the fewest that carry a share `edge`; then, over and over, `inner` nodes (features) that nothing
    enters or that go nowhere are dropped with their edges, and errors that go nowhere.
    """
    nodes = smallest(influence(edges, start), node) | fixed
    between = nodes[edges.source] & nodes[edges.target]
    inside = edges.where(between)
    score = inside.share * (influence(inside, start) + start.double())[inside.target]
    kept = between.clone()
    kept[between] = smallest(score.float(), edge)
    while True:
        out = torch.zeros_like(nodes).index_fill_(0, edges.source[kept], True)
        into = torch.zeros_like(nodes).index_fill_(0, edges.target[kept], True)
        alive = nodes & (fixed | (out & (into | ~inner)))
        if bool((alive == nodes).all()):
            return nodes, kept
        nodes = alive
        kept = kept & nodes[edges.source] & nodes[edges.target]
