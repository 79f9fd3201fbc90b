"""How components work together.

    from circuits import circuit
    found = circuit(interp.load("zoo:default"), "ioi")    # scored, chosen, judged on held-out prompts
    found.graph.draw()

Each module holds one method that finds, scores or reads a circuit: activation and path patching, edge attribution,
circuit search, learned masks, contextual decomposition, the graph that they return, and how faithful such a graph is to
the model. It builds on `interp` and knows nothing of `probes`. Names are imported when first used;
what is called like its module is not here: `from circuits.faithfulness import faithfulness`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Case": "circuits.case",
    "Graph": "circuits.graph",
    "Layout": "circuits.layout",
    "acdc_sweep": "circuits.acdc",
    "activation_patching": "circuits.patching",
    "all_edges_exact": "circuits.path_patching",
    "circuit": "circuits.find",
    "completeness": "circuits.minimality",
    "contextual_decomposition": "circuits.cdt",
    "cross_faithfulness": "circuits.reuse",
    "edge_attribution": "circuits.attribution",
    "edge_pruning": "circuits.pruning",
    "node_attribution": "circuits.nodes",
    "overlap": "circuits.reuse",
    "plan": "circuits.cost",
    "random_circuits": "circuits.controls",
    "repair": "circuits.reuse",
    "run_edges": "circuits.edges",
    "subnetwork_probing": "circuits.pruning",
    "trace": "circuits.tracing",
    "trace_attention": "circuits.sparse_attention",
}

if TYPE_CHECKING:
    from circuits.acdc import acdc_sweep as acdc_sweep
    from circuits.attribution import edge_attribution as edge_attribution
    from circuits.case import Case as Case
    from circuits.cdt import contextual_decomposition as contextual_decomposition
    from circuits.controls import random_circuits as random_circuits
    from circuits.cost import plan as plan
    from circuits.edges import run_edges as run_edges
    from circuits.find import circuit as circuit
    from circuits.graph import Graph as Graph
    from circuits.layout import Layout as Layout
    from circuits.minimality import completeness as completeness
    from circuits.nodes import node_attribution as node_attribution
    from circuits.patching import activation_patching as activation_patching
    from circuits.path_patching import all_edges_exact as all_edges_exact
    from circuits.pruning import edge_pruning as edge_pruning
    from circuits.pruning import subnetwork_probing as subnetwork_probing
    from circuits.reuse import cross_faithfulness as cross_faithfulness
    from circuits.reuse import overlap as overlap
    from circuits.reuse import repair as repair
    from circuits.sparse_attention import trace_attention as trace_attention
    from circuits.tracing import trace as trace

__all__ = [
    "Case",
    "Graph",
    "Layout",
    "acdc_sweep",
    "activation_patching",
    "all_edges_exact",
    "circuit",
    "completeness",
    "contextual_decomposition",
    "cross_faithfulness",
    "edge_attribution",
    "edge_pruning",
    "node_attribution",
    "overlap",
    "plan",
    "random_circuits",
    "repair",
    "run_edges",
    "subnetwork_probing",
    "trace",
    "trace_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
