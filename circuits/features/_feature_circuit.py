"""`feature_circuit`: which features of dictionaries a metric depends on, and through which others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from circuits.features.node_changes import Portion, portions
from circuits.features.node_edges import links
from circuits.features.node_effects import Tally, gradients, measured
from circuits.features.node_graph import SITE_COLUMNS, FeatureCircuit, edge_table, node_table, strongest
from circuits.features.node_sites import Given, NodeSite, node_sites
from interp.edits import Edit
from interp.errors import SchemaError, TaskError
from interp.model import Model
from interp.patching.case import Case
from interp.patching.places import Positions, places
from interp.results.provenance import recorded
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric


@recorded
def feature_circuit(
    model: Model,
    task: PromptTask,
    *,
    dictionaries: Given = None,
    elsewhere: str = "error",
    attribution: str = "ig",
    steps: int = 10,
    rule: str = "midpoint",
    baseline: str = "counterfactual",
    positions: Positions = None,
    n_nodes: int | None = 100,
    node_threshold: float | None = None,
    n_edges: int | None = 1000,
    edge_threshold: float | None = None,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    edits: Sequence[Edit] = (),
) -> FeatureCircuit:
    """Nodes by their indirect effect, and edges between them by vector-Jacobian products.

    At each site x = sum_i f_i w_i + e, with features f, what they write w, and an error e that makes up for the rest.
    With g = dm/dx, f' and e' the baseline's, summed over a node's tokens and averaged over prompts:

        effect(f_i) = (f_i' - f_i) (w_i . g)        effect(e) = (e' - e) . g        weight(u -> d): see `links`

    g is the gradient on the clean prompts ("atp") or its mean over the line from x to x' at this site, everything else
    following ("ig"): then the effects at a site sum to what putting the whole site to the baseline does, which is
    measured (`FeatureCircuit.sites`). A positive effect: moving the node to the baseline raises the metric.
    In memory are activations at the sites, for all prompts, and features that are not 0.

    Args:
        model: any backend that runs with gradients.
        task: pairs of prompts.
        dictionaries: one for each site: values, folders or hub ids, a text with several between commas. Coordinates of
            every layer's attention, MLP and stream where it is left out.
        elsewhere: what stands at attention and MLPs without a dictionary and at the embedding: one "error" node each,
            or "none".
        attribution: "ig" or "atp".
        steps: gradients along the line of "ig".
        rule: where they are: "midpoint", "left" (as published), "right" or "gauss".
        baseline: "counterfactual", the corrupted twin, or "zero", f' = e' = 0.
        positions: None for nodes summed over all tokens; "all" for one node a position, "roles", or names of roles.
        n_nodes: nodes kept, the largest |effect|; None for all.
        node_threshold: least |effect| of a node, in the metric.
        n_edges: edges kept, the largest |weight|; None for all.
        edge_threshold: least |weight| of an edge, in the metric.
        metric: with a gradient; the task's own otherwise.
        batch_size: prompts at a time.
        edits: changes under which the model runs.

    Raises:
        SchemaError: dictionaries that do not go together, an unknown option, or numbers out of range.
        NotApplicable: a dictionary of single heads, or one that writes at several sites.
        TaskError: no node changes, or a metric without a gradient.

    Reference: Marks et al. 2024 (arXiv 2403.19647). Measured sums are ours.
    """
    _check(n_nodes, node_threshold, n_edges, edge_threshold)
    case, sites = Case.of(model, task, metric=metric), node_sites(model, dictionaries, elsewhere=elsewhere)
    at = places(model, case.task, positions)
    tally, parts = Tally(sites, at), []
    for portion in portions(case, sites, baseline=baseline, batch_size=batch_size):
        gradients(portion, sites, method=attribution, steps=steps, rule=rule)
        tally.add(portion)
        parts.append(portion)
    every = tally.nodes()
    if not len(every):
        raise TaskError(f"{task.name}: nothing changes at any site; take baseline='zero', or prompts with other twins")
    ranking = every.take(strongest(every.effect, n=None, threshold=None))
    chosen = every.take(strongest(every.effect, n=n_nodes, threshold=node_threshold))
    nodes = node_table(chosen, sites, at)
    between = links(parts, sites, chosen, at)
    between = between.take(strongest(between.weight, n=n_edges, threshold=edge_threshold))
    table, change = _sites(parts, sites, tally, every.site)
    own = {"metric": case.metric, "sites": {str(s.site): s.size for s in sites}, "change": change}
    own["completeness_residual"] = float(table["residual"].abs().max())
    return FeatureCircuit(nodes, edge_table(between, list(nodes["name"])), table, ranking, tuple(at), own)


def _sites(
    parts: list[Portion], sites: tuple[NodeSite, ...], tally: Tally, site_of: np.ndarray
) -> tuple[pd.DataFrame, float]:
    """`FeatureCircuit.sites`, and what the metric changes by where every site is put to the baseline, one at a time.

    The change is that of the twin prompt where there is one; of the zero baseline, the largest of the sites'.
    """
    clean = np.concatenate([p.case.clean.double().cpu().numpy() for p in parts])
    rows = []
    for i, (own, sums) in enumerate(zip(sites, tally.sums(), strict=True)):
        moved = np.concatenate([measured(p, sites, i).double().cpu().numpy() for p in parts])
        row = {"site": str(own.site), "nodes": int((site_of == i).sum()), "effect": sums.mean()}
        rows.append(row | {"measured": (moved - clean).mean(), "residual": sums.mean() - (moved - clean).mean()})
    table = pd.DataFrame(rows)
    change = float(table["measured"].iloc[table["measured"].abs().argmax()])
    return table.assign(share=table["effect"] / change)[list(SITE_COLUMNS)], change


def _check(n_nodes: int | None, node: float | None, n_edges: int | None, edge: float | None) -> None:
    for name, number in (("n_nodes", n_nodes), ("n_edges", n_edges)):
        if number is not None and (isinstance(number, bool) or number < 1):
            raise SchemaError(f"{name} is {number!r}; expected 1 or more, or None for all")
    for name, value in (("node_threshold", node), ("edge_threshold", edge)):
        if value is not None and not value >= 0:
            raise SchemaError(f"{name} is {value!r}; expected 0 or more, in the metric")
