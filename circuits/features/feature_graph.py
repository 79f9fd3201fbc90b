"""`FeatureGraph`: what acts on the logits of one prompt through which features, as a value; its tables and pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor

from circuits.features import influence as flow
from circuits.features.influence import Edges
from interp.errors import SchemaError

G = TypeVar("G", bound="FeatureGraph")
KINDS = ("embedding", "error", "feature", "logit")


@dataclass(frozen=True)
class Node:
    """A place of the graph.

    Attributes:
        kind: embedding (a token and its position), error (what dictionaries leave out at a site), feature, logit.
        layer: of the site; -1 for embeddings, the number of layers for logits.
        position: of the token. site: where it reads (features) or stands.
        number: of the feature; the token of embeddings and logits; 0 for errors.
        value: activation of a feature, probability of a logit, length of an error or an embedding.
        label: the token's text, where there is one.
    """

    kind: str
    layer: int
    position: int
    site: str
    number: int
    value: float
    label: str = ""

    @property
    def name(self) -> str:
        """Feature 7 at position 3 read at L2.mlp_in: L2.mlp_in:7@3; each node of a graph has its own."""
        return node_name(self.kind, self.site, self.number, self.position)


def node_name(kind: str, site: str, number: int, position: int) -> str:
    """Name of a node with these attributes."""
    return f"{kind}:{site}:{number}@{position}"


@dataclass(frozen=True, eq=False)
class FeatureGraph:
    """Features, errors, tokens and logits of one prompt, and the direct effect of each on each.

    weight(s -> t) = value of s x what one unit of s changes in t, with attention patterns, divisors of norms and gates
    held at what they are on the prompt. Over all sources of a target these sum to its value less a constant.

    Attributes:
        nodes: in order: features, errors, embeddings, logits.
        edges: between them, the strongest into each target.
        tokens: text of the prompt's tokens. prompt: the whole.
        kept: share of influence that the edges carry; the rest flows along edges that were not kept.
        replacement, completeness: as of `circuits.features.influence.scores`, before any pruning.
        affine_error: relative error to which the held model is affine.
        closure: largest relative difference between a target and the sum over its sources and the constant.
        heads: (source, target) -> component -> part of the weight whose path enters it first; where it was asked for.
        provenance: model, dictionary, settings.
    """

    nodes: tuple[Node, ...]
    edges: Edges
    tokens: tuple[str, ...]
    prompt: str
    kept: float
    replacement: float
    completeness: float
    affine_error: float = 0.0
    closure: float = 0.0
    heads: Mapping[tuple[int, int], Mapping[str, float]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def mask(self, *kinds: str) -> Tensor:
        """Which nodes are of some kinds."""
        return torch.tensor([node.kind in kinds for node in self.nodes], dtype=torch.bool)

    @property
    def start(self) -> Tensor:
        """Probabilities of the logits, 0 at other nodes."""
        return torch.tensor([n.value if n.kind == "logit" else 0.0 for n in self.nodes], dtype=torch.float64)

    @property
    def influence(self) -> Tensor:
        """Influence of each node on the logits."""
        return flow.influence(self.edges, self.start)

    def pruned(self: G, *, node: float = 0.8, edge: float = 0.98) -> G:
        """The fewest nodes and edges that carry these shares of influence; see `circuits.features.influence.prune`.

        Raises:
            SchemaError: shares that are none.
        """
        for name, value in (("node", node), ("edge", edge)):
            if not 0 < value <= 1:
                raise SchemaError(f"{name} is a share of influence, above 0 and at most 1; got {value}")
        nodes, edges = flow.prune(
            self.edges,
            self.start,
            node=node,
            edge=edge,
            fixed=self.mask("embedding", "logit"),
            inner=self.mask("feature"),
        )
        settings = {**self.provenance, "node_threshold": node, "edge_threshold": edge}
        return replace(self.subgraph(nodes, edges), provenance=settings)

    def subgraph(self: G, nodes: Tensor, edges: Tensor) -> G:
        """Some nodes and edges, given as masks; edges must lie between the nodes."""
        number = torch.cumsum(nodes.long(), 0) - 1
        e = self.edges.where(edges)
        total = e.total[nodes]
        old = set(_pairs(e))
        heads = {(int(number[s]), int(number[t])): v for (s, t), v in self.heads.items() if (s, t) in old}
        kept = flow.kept_share(e, self.start)
        return replace(
            self,
            nodes=tuple(n for n, keep in zip(self.nodes, nodes.tolist(), strict=True) if keep),
            edges=Edges(number[e.source], number[e.target], e.weight, total),
            heads=heads,
            kept=kept,
        )

    def table(self) -> pd.DataFrame:
        """A row for each edge, the strongest first: source, target, weight, share of what enters the target."""
        names = [node.name for node in self.nodes]
        e = self.edges
        frame = pd.DataFrame(
            {
                "source": [names[i] for i in e.source.tolist()],
                "target": [names[i] for i in e.target.tolist()],
                "weight": e.weight.double().numpy(),
                "share": e.share.double().numpy(),
            }
        )
        if self.heads:
            parts = [self.heads.get(pair, {}) for pair in _pairs(e)]
            frame["head"] = [max(p, key=lambda h: abs(p[h])) if p else "" for p in parts]  # noqa: B023  (used at once)
        order = frame["weight"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].reset_index(drop=True)

    def node_table(self) -> pd.DataFrame:
        """A row for each node, the most influential first."""
        frame = pd.DataFrame([{"name": n.name, **vars(n)} for n in self.nodes])
        frame["influence"] = self.influence.numpy()
        return frame.sort_values("influence", ascending=False, kind="stable").reset_index(drop=True)

    def summary(self) -> str:
        """Title and a few lines."""
        counts = {kind: int(self.mask(kind).sum()) for kind in KINDS}
        logits = sorted((n for n in self.nodes if n.kind == "logit"), key=lambda n: -n.value)
        outputs = ", ".join(f"{n.label or n.number} {n.value:.3f}" for n in logits)
        return "\n".join(
            [
                f"Attribution graph: {self.prompt!r}",
                f"{counts['feature']} features, {counts['error']} errors, {counts['embedding']} tokens, "
                f"{counts['logit']} logits; {len(self.edges.weight)} edges, which carry {self.kept:.1%} of the "
                "influence",
                f"logits: {outputs}",
                f"replacement {self.replacement:.3f}, completeness {self.completeness:.3f} (before pruning)",
            ]
        )

    def __repr__(self) -> str:
        """One line."""
        return f"<AttributionGraph: {len(self.nodes)} nodes, {len(self.edges.weight)} edges, {len(self.tokens)} tokens>"


def _pairs(edges: Edges) -> Sequence[tuple[int, int]]:
    return list(zip(edges.source.tolist(), edges.target.tolist(), strict=True))
