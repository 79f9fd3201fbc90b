"""Edges parted by attention head: the share of each whose path enters a head's values first.

What a source writes stays in the stream until some head carries it on: an edge is the sum of a direct part and, for
each later layer and head, of what that head takes straight from the source. Where heads share keys and values (grouped
queries) they are one part, `L3KV1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.backward import Backward
from circuits.features.graph_files import AttributionGraph
from circuits.features.local import EMBED, STREAM, LocalModel
from circuits.features.sources import Sources
from interp.components import kv_head_name
from interp.errors import NotApplicable
from interp.sites import Site

MOST = 8
"""Heads named for an edge, the largest parts; the others are "rest"."""
DIRECT, REST = "direct", "rest"


def with_heads(graph: AttributionGraph, local: LocalModel, *, batch: int = 32) -> AttributionGraph:
    """The graph with `heads`: parts of each edge, which sum to its weight.

    "direct" is what reaches the target by no head, or enters its first head changed by a skip connection.

    Raises:
        NotApplicable: a dictionary or an edit in force stands in the stream itself, which then does not go on as it is.
    """
    for edit in local.model.edits:
        if edit.site.kind in STREAM:
            raise NotApplicable(f"{edit.site} is edited, so nothing goes past it in the stream by itself; heads=False")
    for site in local.cuts:
        if site.kind in STREAM:
            raise NotApplicable(f"{site} is replaced by a dictionary, so nothing goes past it in the stream by itself")
    sources = Sources(local)
    numbers = sources.numbers(graph.nodes)
    e, device = graph.edges, numbers.device
    targets = e.target.unique()
    parts: dict[tuple[int, int], dict[str, float]] = {}
    backward = Backward(local, max(1, min(batch, len(targets))), heads=True)
    for some in targets.split(backward.size):
        rows = {int(t): i for i, t in enumerate(some)}
        own = torch.isin(e.target, some).nonzero()[:, 0]
        row = torch.tensor([rows[int(t)] for t in e.target[own]], device=device)
        source = numbers[e.source[own].to(device)]
        named = dict(_heads(backward, sources, sources.targets([graph.nodes[int(t)] for t in some]), source, row))
        pairs = list(zip(e.source[own].tolist(), e.target[own].tolist(), strict=True))
        parts |= dict(zip(pairs, _parts(named, e.weight[own].to(device)), strict=True))
    return replace(graph, heads=parts)


def _parts(named: dict[str, Tensor], weight: Float[Tensor, " edge"]) -> list[dict[str, float]]:
    """Direct part, the largest heads and the rest of each edge."""
    if not named:
        return [{DIRECT: w} for w in weight.tolist()]
    names, values = list(named), torch.stack(list(named.values()))  # head edge
    direct = (weight - values.sum(0)).tolist()
    index = values.abs().topk(min(MOST, len(names)), dim=0).indices
    top = values.gather(0, index)
    rest = (values.sum(0) - top.sum(0)).tolist()
    out = []
    for heads, sizes, straight, other in zip(index.T.tolist(), top.T.tolist(), direct, rest, strict=True):
        own = {names[h]: size for h, size in zip(heads, sizes, strict=True) if size}
        out.append({DIRECT: straight, **own, **({REST: other} if len(names) > MOST else {})})
    return out


def _heads(
    backward: Backward,
    sources: Sources,
    targets: list[tuple[Site, int, Tensor]],
    source: Int[Tensor, " edge"],
    row: Int[Tensor, " edge"],
) -> Iterator[tuple[str, Float[Tensor, " edge"]]]:
    """Name of a head, and its part of each edge."""
    local, info = sources.local, sources.local.model.info
    device = source.device
    joined = [(site, torch.tensor([pos], device=device), r[None]) for site, pos, r in targets]
    values = [backward.read[Site("v", i)] for i in info.attention_layers]
    grads = backward.gradients(joined, values)
    for layer, v, g in zip(info.attention_layers, values, grads, strict=True):
        if not bool(g.any()):
            continue
        below = [s for s in local.cuts if s == EMBED or (s.first is not None and s.first < layer)]
        stream = backward.read[Site("resid_pre", layer)]
        for head in range(v.shape[2]):
            mask = torch.zeros_like(g)
            mask[:, :, head] = g[:, :, head]
            (back,) = torch.autograd.grad(v, stream, mask, retain_graph=True)
            name = kv_head_name(layer, head, group=info.n_heads // info.n_kv_heads)
            yield name, sources.pairs(source, row, dict.fromkeys(below, back))
