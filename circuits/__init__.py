"""How components work together.

    from circuits import circuit
    found = circuit(interp.load("zoo:default"), "ioi")    # scored, chosen, judged on held-out prompts
    found.graph.draw()

Each room holds one side of it: `graph` what a circuit is, `wiring` the edges of a model, `patching`, `attribution` and
`search` the methods that find or score one, `evaluation` how faithful it is to the model, `features` circuits of
dictionary features. It builds on `interp` and
knows nothing of `probes`. Every public function is here, `from circuits import faithfulness`, and imported when first
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "AttributionGraph": "circuits.features.graph_files",
    "Case": "circuits.wiring.case",
    "FeatureCircuit": "circuits.features.node_graph",
    "Graph": "circuits.graph.graph",
    "Layout": "circuits.graph.layout",
    "acdc": "circuits.search._acdc",
    "acdc_sweep": "circuits.search._acdc",
    "activation_patching": "interp.patching.activations",
    "agreement": "circuits.evaluation.scoreboard",
    "all_edges_exact": "circuits.patching.paths",
    "causal_tracing": "interp.patching.causal_trace",
    "attribution_graph": "circuits.features.attribute",
    "check_edges": "circuits.features.edge_check",
    "check_feature_edges": "circuits.features.feature_edge_check",
    "circuit": "circuits.find",
    "circuit_method": "circuits.methods",
    "circuit_methods": "circuits.methods",
    "completeness": "circuits.evaluation._minimality",
    "contextual_decomposition": "circuits.search.cdt",
    "cross_faithfulness": "circuits.evaluation.reuse",
    "curve": "circuits.evaluation._curve",
    "distributed_alignment": "interp.patching.alignment",
    "edge_attribution": "circuits.attribution.edge_gradients",
    "edge_pruning": "circuits.search.pruning",
    "faithfulness": "circuits.evaluation._faithfulness",
    "feature_circuit": "circuits.features._feature_circuit",
    "hypotheses": "circuits.evaluation._hypotheses",
    "judge_edges": "circuits.evaluation.truth",
    "judge_features": "circuits.features.feature_judge",
    "judge_nodes": "circuits.evaluation.truth",
    "minimality": "circuits.evaluation._minimality",
    "neurons": "circuits.features.own_neurons",
    "node_attribution": "interp.patching.nodes",
    "overlap": "circuits.evaluation.reuse",
    "patchscope": "interp.patching.patchscopes",
    "path_patching": "circuits.patching.paths",
    "plan": "circuits.attribution.cost",
    "planted": "circuits.evaluation.truth",
    "published": "circuits.evaluation.truth",
    "random_circuits": "circuits.graph.controls",
    "repair": "circuits.evaluation.reuse",
    "role_ablation": "circuits.evaluation._roles",
    "role_faithfulness": "circuits.evaluation._roles",
    "run_edges": "circuits.wiring.edges",
    "sae_codes": "circuits.features._sae_codes",
    "score_pairs": "circuits.features.score_pairs",
    "subnetwork_probing": "circuits.search.pruning",
    "trace": "circuits.patching.tracing",
    "trace_attention": "circuits.search.sparse_attention",
}

if TYPE_CHECKING:
    from circuits.attribution.cost import plan as plan
    from circuits.attribution.edge_gradients import edge_attribution as edge_attribution
    from circuits.evaluation._curve import curve as curve
    from circuits.evaluation._faithfulness import faithfulness as faithfulness
    from circuits.evaluation._hypotheses import hypotheses as hypotheses
    from circuits.evaluation._minimality import completeness as completeness
    from circuits.evaluation._minimality import minimality as minimality
    from circuits.evaluation._roles import role_ablation as role_ablation
    from circuits.evaluation._roles import role_faithfulness as role_faithfulness
    from circuits.evaluation.reuse import cross_faithfulness as cross_faithfulness
    from circuits.evaluation.reuse import overlap as overlap
    from circuits.evaluation.reuse import repair as repair
    from circuits.evaluation.scoreboard import agreement as agreement
    from circuits.evaluation.truth import judge_edges as judge_edges
    from circuits.evaluation.truth import judge_nodes as judge_nodes
    from circuits.evaluation.truth import planted as planted
    from circuits.evaluation.truth import published as published
    from circuits.features._feature_circuit import feature_circuit as feature_circuit
    from circuits.features._sae_codes import sae_codes as sae_codes
    from circuits.features.attribute import attribution_graph as attribution_graph
    from circuits.features.edge_check import check_edges as check_edges
    from circuits.features.feature_edge_check import check_feature_edges as check_feature_edges
    from circuits.features.feature_judge import judge_features as judge_features
    from circuits.features.graph_files import AttributionGraph as AttributionGraph
    from circuits.features.node_graph import FeatureCircuit as FeatureCircuit
    from circuits.features.own_neurons import neurons as neurons
    from circuits.features.score_pairs import score_pairs as score_pairs
    from circuits.find import circuit as circuit
    from circuits.graph.controls import random_circuits as random_circuits
    from circuits.graph.graph import Graph as Graph
    from circuits.graph.layout import Layout as Layout
    from circuits.methods import circuit_method as circuit_method
    from circuits.methods import circuit_methods as circuit_methods
    from circuits.patching.paths import all_edges_exact as all_edges_exact
    from circuits.patching.paths import path_patching as path_patching
    from circuits.patching.tracing import trace as trace
    from circuits.search._acdc import acdc as acdc
    from circuits.search._acdc import acdc_sweep as acdc_sweep
    from circuits.search.cdt import contextual_decomposition as contextual_decomposition
    from circuits.search.pruning import edge_pruning as edge_pruning
    from circuits.search.pruning import subnetwork_probing as subnetwork_probing
    from circuits.search.sparse_attention import trace_attention as trace_attention
    from circuits.wiring.case import Case as Case
    from circuits.wiring.edges import run_edges as run_edges
    from interp.patching.activations import activation_patching as activation_patching
    from interp.patching.alignment import distributed_alignment as distributed_alignment
    from interp.patching.causal_trace import causal_tracing as causal_tracing
    from interp.patching.nodes import node_attribution as node_attribution
    from interp.patching.patchscopes import patchscope as patchscope

__all__ = [
    "AttributionGraph",
    "Case",
    "FeatureCircuit",
    "Graph",
    "Layout",
    "acdc",
    "acdc_sweep",
    "activation_patching",
    "agreement",
    "all_edges_exact",
    "causal_tracing",
    "attribution_graph",
    "check_edges",
    "check_feature_edges",
    "circuit",
    "circuit_method",
    "circuit_methods",
    "completeness",
    "contextual_decomposition",
    "cross_faithfulness",
    "curve",
    "distributed_alignment",
    "edge_attribution",
    "edge_pruning",
    "faithfulness",
    "feature_circuit",
    "hypotheses",
    "judge_edges",
    "judge_features",
    "judge_nodes",
    "minimality",
    "neurons",
    "node_attribution",
    "overlap",
    "patchscope",
    "path_patching",
    "plan",
    "planted",
    "published",
    "random_circuits",
    "repair",
    "role_ablation",
    "role_faithfulness",
    "run_edges",
    "sae_codes",
    "score_pairs",
    "subnetwork_probing",
    "trace",
    "trace_attention",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
