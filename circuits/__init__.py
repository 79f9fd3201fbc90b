"""How components work together.

    from circuits import circuit
    found = circuit(interp.load("zoo:default"), "ioi")    # scored, chosen, judged on held-out prompts
    found.graph.draw()

Each module holds one method that finds, scores or reads a circuit: activation and path patching, edge attribution,
circuit search, learned masks, contextual decomposition, the graph that they return, and how faithful such a graph is to
the model. It builds on `interp` and knows nothing of `probes`. Names are imported when first used;
what is called like its module is not here: `from circuits.evaluation._faithfulness import faithfulness`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Case": "circuits.wiring.case",
    "Graph": "circuits.graph.graph",
    "Layout": "circuits.graph.layout",
    "acdc_sweep": "circuits.search._acdc",
    "activation_patching": "interp.patching.activations",
    "all_edges_exact": "circuits.patching.paths",
    "circuit": "circuits.find",
    "completeness": "circuits.evaluation._minimality",
    "contextual_decomposition": "circuits.search.cdt",
    "cross_faithfulness": "circuits.evaluation.reuse",
    "edge_attribution": "circuits.attribution.edge_gradients",
    "edge_pruning": "circuits.search.pruning",
    "node_attribution": "interp.patching.nodes",
    "overlap": "circuits.evaluation.reuse",
    "plan": "circuits.attribution.cost",
    "random_circuits": "circuits.graph.controls",
    "repair": "circuits.evaluation.reuse",
    "run_edges": "circuits.wiring.edges",
    "subnetwork_probing": "circuits.search.pruning",
    "trace": "circuits.patching.tracing",
    "trace_attention": "circuits.search.sparse_attention",
}

if TYPE_CHECKING:
    from circuits.attribution.cost import plan as plan
    from circuits.attribution.edge_gradients import edge_attribution as edge_attribution
    from circuits.evaluation._minimality import completeness as completeness
    from circuits.evaluation.reuse import cross_faithfulness as cross_faithfulness
    from circuits.evaluation.reuse import overlap as overlap
    from circuits.evaluation.reuse import repair as repair
    from circuits.find import circuit as circuit
    from circuits.graph.controls import random_circuits as random_circuits
    from circuits.graph.graph import Graph as Graph
    from circuits.graph.layout import Layout as Layout
    from circuits.patching.paths import all_edges_exact as all_edges_exact
    from circuits.patching.tracing import trace as trace
    from circuits.search._acdc import acdc_sweep as acdc_sweep
    from circuits.search.cdt import contextual_decomposition as contextual_decomposition
    from circuits.search.pruning import edge_pruning as edge_pruning
    from circuits.search.pruning import subnetwork_probing as subnetwork_probing
    from circuits.search.sparse_attention import trace_attention as trace_attention
    from circuits.wiring.case import Case as Case
    from circuits.wiring.edges import run_edges as run_edges
    from interp.patching.activations import activation_patching as activation_patching
    from interp.patching.nodes import node_attribution as node_attribution

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
