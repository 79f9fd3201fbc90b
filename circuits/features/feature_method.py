"""Sparse feature circuits as a registered method: a table of nodes, edges, sums at sites and verdicts."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from circuits.features._feature_circuit import feature_circuit
from circuits.features.feature_judge import judge_features
from circuits.features.node_sites import Given, dictionaries_of
from circuits.methods import circuit_method
from interp.errors import SchemaError
from interp.model import Model
from interp.patching.places import Positions
from interp.results.results import Result
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric


@circuit_method(
    name="features",
    title="Sparse feature circuit",
    gives="table",
    costs="2 forward, ten of both for every site, one backward for every node",
    means="Moving this feature to what it is on the corrupted prompt changes the metric by so much; of an edge, by way "
    "of the other feature.",
    misleads="What dictionaries leave out is in the error nodes: look at how strong they are. Sites are moved one at a "
    "time, so that effects of different sites do not add up. Without dictionaries nodes are coordinates, which mean "
    "little.",
    reference="Marks et al. 2024, arXiv 2403.19647",
    order=175,
    judged=None,
    routine=False,
    quick={"attribution": "atp", "n_nodes": 20, "n_edges": 40, "n_sets": 1},
)
def features(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    dictionaries: Given = None,
    elsewhere: str = "error",
    attribution: str = "ig",
    steps: int = 10,
    baseline: str = "counterfactual",
    positions: Positions = None,
    n_nodes: int | None = 100,
    node_threshold: float | None = None,
    n_edges: int | None = 1000,
    edge_threshold: float | None = None,
    errors: str = "nodes",
    removal: str = "mean",
    n_sets: int = 20,
    judge_share: float = 0.5,
) -> Result:
    """`feature_circuit` on the first prompts and `judge_features` on the last, a share `judge_share` of them.

    `removal` and `n_sets` are its `ablation` and `n_random`, which `circuits.circuit` keeps for circuits of components.
    Of one prompt, or with a share of 0, found and judged on the same; the provenance says which (`judged_on`).

    Raises:
        SchemaError: a share out of range; otherwise as the two functions.
    """
    if not 0 <= judge_share < 1:
        raise SchemaError(f"judge_share is {judge_share}; expected a share of the prompts from 0 to below 1")
    n_judged = min(round(len(task) * judge_share), len(task) - 1)
    found, judged = (
        (task, task) if not n_judged else (task.select(slice(0, -n_judged)), task.select(slice(-n_judged, None)))
    )
    own = {"dictionaries": dictionaries_of(model, dictionaries), "metric": metric, "batch_size": batch_size}
    circuit = feature_circuit(
        model,
        found,
        elsewhere=elsewhere,
        attribution=attribution,
        steps=steps,
        baseline=baseline,
        positions=positions,
        n_nodes=n_nodes,
        node_threshold=node_threshold,
        n_edges=n_edges,
        edge_threshold=edge_threshold,
        **own,
    )
    table = circuit.result()
    facts = {**table.provenance, "seed": seed, "judged_on": judged.provenance()}
    if not len(circuit.nodes):
        return replace(table, provenance=facts)
    verdict = judge_features(
        model, judged, circuit, errors=errors, ablation=removal, reference=task, n_random=n_sets, seed=seed, **own
    )
    return Result(pd.concat([table.table, verdict.table], ignore_index=True), facts)
