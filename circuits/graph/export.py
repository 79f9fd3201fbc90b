"""A circuit for other programs: networkx and Graphviz."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.components import Link, kind, layer_of
from interp.files import WRITER

if TYPE_CHECKING:
    import networkx as nx

POSITIVE, NEGATIVE, NO_SCORE = "#2166ac", "#b2182b", "#78828d"
WIDEST, THINNEST = 4.0, 0.6


def networkx(
    nodes: Sequence[str], links: Iterable[Link], n_layers: int, *, provenance: Mapping[str, Any]
) -> nx.MultiDiGraph:
    """Components as nodes (`layer`, `kind`), links as edges keyed by port (`score`, `edge`)."""
    import networkx as nx

    graph = nx.MultiDiGraph(provenance=dict(provenance))
    for name in nodes:
        graph.add_node(name, layer=layer_of(name, n_layers), kind=kind(name))
    for link in links:
        graph.add_edge(link.sender, link.receiver, key=link.port, score=link.score, edge=tuple(link.edge))
    return graph


def dot(nodes: Sequence[str], links: Sequence[Link], n_layers: int) -> str:
    """Graphviz text, one rank per layer."""
    lines = [
        f"// {WRITER}",
        "digraph circuit {",
        '  rankdir="BT"; node [shape=box, style=rounded, fontname="sans-serif"];',
        '  edge [fontname="sans-serif", fontsize=9];',
    ]
    ranks: dict[tuple[int, str], list[str]] = {}
    for name in nodes:
        ranks.setdefault((layer_of(name, n_layers), kind(name)), []).append(name)
    for names in ranks.values():
        lines.append("  { rank=same; " + " ".join(f'"{name}";' for name in names) + " }")
    largest = max((abs(link.score) for link in links if not math.isnan(link.score)), default=0.0)
    for link in links:
        label = "" if link.port == "in" else f'label="{link.port}", '
        if math.isnan(link.score):
            style = f'color="{NO_SCORE}"'
        else:
            share = abs(link.score) / largest if largest else 0.0
            colour = POSITIVE if link.score >= 0 else NEGATIVE
            style = (
                f'color="{colour}", penwidth={THINNEST + (WIDEST - THINNEST) * share:.2f}, tooltip="{link.score:.4g}"'
            )
        lines.append(f'  "{link.sender}" -> "{link.receiver}" [{label}{style}];')
    return "\n".join([*lines, "}"]) + "\n"
