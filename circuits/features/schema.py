"""Attribution graphs as JSON in the schema that Neuronpedia's viewer reads, and back.

What the schema has no place for stands under keys of our own (`interp`), which the viewer ignores.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from circuits.features.feature_graph import FeatureGraph, Node
from circuits.features.influence import Edges
from interp.errors import SchemaError

TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "embedding": "embedding",
    "logit": "logit",
}
"""What the schema calls each kind of node; transcoders of one layer go by the same name."""
SCHEMA_VERSION = 1
NUMBERS = ("kept", "replacement", "completeness", "affine_error", "closure")


def document(graph: FeatureGraph) -> dict[str, Any]:
    """The graph as plain values: metadata, qParams, nodes, links."""
    ids = _ids(graph)
    cumulative = _cumulative(graph)
    settings = json.loads(json.dumps(dict(graph.provenance), default=str))
    name = str(settings.get("model", {}).get("name", "model"))
    metadata = {
        "slug": re.sub(r"[^a-z0-9]+", "-", graph.prompt.lower()).strip("-")[:60] or "graph",
        "scan": name,
        "transcoder_list": [settings["dictionary"]] if "dictionary" in settings else [],
        "prompt_tokens": list(graph.tokens),
        "prompt": graph.prompt,
        "node_threshold": settings.get("node_threshold", 1.0),
        "schema_version": SCHEMA_VERSION,
        "info": {"generator": {"name": "interp-toolkit"}},
        "generation_settings": {
            key: settings[key] for key in ("max_n_logits", "desired_logit_prob", "batch_size") if key in settings
        }
        | ({"max_feature_nodes": settings["max_features"]} if "max_features" in settings else {}),
        "pruning_settings": {key: settings[key] for key in ("node_threshold", "edge_threshold") if key in settings},
        "interp": {**{key: getattr(graph, key) for key in NUMBERS}, "provenance": settings},
    }
    totals = graph.edges.total.tolist()
    nodes = [_node(node, ids[i], cumulative[i], totals[i], i, len(graph.tokens)) for i, node in enumerate(graph.nodes)]
    links = []
    columns = (graph.edges.source, graph.edges.target, graph.edges.weight)
    for s, t, weight in zip(*(x.tolist() for x in columns), strict=True):
        link: dict[str, Any] = {"source": ids[s], "target": ids[t], "weight": weight}
        if (s, t) in graph.heads:
            link["interp"] = {"heads": dict(graph.heads[s, t])}
        links.append(link)
    params = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": params, "nodes": nodes, "links": links}


def parts_of(content: Any) -> dict[str, Any]:
    """Fields of the graph of plain values as `document` gives them.

    Raises:
        SchemaError: not such a document, or one of other software.
    """
    try:
        metadata, own = content["metadata"], content["metadata"]["interp"]
        nodes, totals, index = [], [], {}
        for i, entry in enumerate(content["nodes"]):
            values = dict(entry["interp"])
            totals.append(float(values.pop("total")))
            nodes.append(Node(**values))
            index[entry["node_id"]] = i
        links = content["links"]
        source, target = ([index[link[end]] for link in links] for end in ("source", "target"))
        heads = {
            (s, t): link["interp"]["heads"]
            for s, t, link in zip(source, target, links, strict=True)
            if "interp" in link
        }
        return dict(
            nodes=tuple(nodes),
            edges=Edges(
                torch.tensor(source, dtype=torch.long),
                torch.tensor(target, dtype=torch.long),
                torch.tensor([float(link["weight"]) for link in links], dtype=torch.float32),
                torch.tensor(totals, dtype=torch.float32),
            ),
            tokens=tuple(metadata["prompt_tokens"]),
            prompt=metadata["prompt"],
            heads=heads,
            provenance=own["provenance"],
            **{key: float(own[key]) for key in NUMBERS},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchemaError(
            f"not an attribution graph that was written here ({type(error).__name__}: {error}); graphs of other "
            "software lack how much entered each node"
        ) from error


def _node(node: Node, name: str, cumulative: float, total: float, index: int, n_tokens: int) -> dict[str, Any]:
    layer = {"embedding": "E", "logit": str(node.layer + 1)}.get(node.kind, str(node.layer))
    number: int | None = {"feature": pairing(node.layer, node.number), "error": -1}.get(node.kind, node.number)
    label = {
        "embedding": f"Emb: {node.label!r}",
        "logit": f"Output {node.label!r} (p={node.value:.3f})",
        "error": f"Err: {node.site}",
    }.get(node.kind, node.label)
    return {
        "node_id": name,
        "feature": number,
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": TYPES[node.kind],
        "token_prob": node.value if node.kind == "logit" else 0.0,
        "is_target_logit": node.kind == "logit",
        "run_idx": 0,
        "reverse_ctx_idx": n_tokens - 1 - node.position,
        "jsNodeId": f"{layer}_{node.number}-{node.position}",
        "clerp": label,
        "influence": cumulative,
        "activation": node.value if node.kind == "feature" else None,
        "interp": {**vars(node), "total": total},
    }


def pairing(layer: int, feature: int) -> int:
    """Cantor's number of a pair, (a + b)(a + b + 1) / 2 + b: what viewers know a feature of a layer by."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def _ids(graph: FeatureGraph) -> list[str]:
    """One for each node: layer, number and position; what stands at two sites of a layer has the site behind it."""
    ids: list[str] = []
    used = set()
    for node in graph.nodes:
        start = {"embedding": "E", "error": f"error_{node.layer}", "logit": str(node.layer + 1)}.get(
            node.kind, str(node.layer)
        )
        name = f"{start}_{node.position}" if node.kind == "error" else f"{start}_{node.number}_{node.position}"
        name = f"{name}_{node.site}" if name in used else name
        used.add(name)
        ids.append(name)
    return ids


def _cumulative(graph: FeatureGraph) -> list[float]:
    """Share of all influence that a node and those above it carry: a viewer shows those below its threshold."""
    value = graph.influence
    order = value.argsort(descending=True, stable=True)
    sums = value[order].cumsum(0)
    out = torch.zeros_like(value)
    out[order] = sums / sums[-1] if len(sums) and float(sums[-1]) else sums
    return out.tolist()
