"""Edge attribution as registered methods of finding circuits: a score for every edge from a few passes in all."""

from __future__ import annotations

from circuits.attribution.edge_gradients import edge_attribution
from circuits.graph.graph import Graph
from circuits.methods import circuit_method
from interp.model import Model
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

MEANS = "Patching this edge with the other prompt's activation is estimated to change the metric by so much."
FIRST_ORDER = (
    "An estimate to first order: edges that only matter together, or whose effect turns on the way, are missed."
)


@circuit_method(
    name="eap",
    title="Edge attribution patching",
    gives="scores",
    costs="2 forward, 1 backward",
    means=MEANS,
    misleads=FIRST_ORDER + " Blind where the metric or a softmax saturates.",
    reference="Syed et al. 2023, arXiv 2310.10348",
    order=20,
)
def eap(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    direction: str = "noising",
) -> Graph:
    """The slope at the prompts themselves."""
    del seed  # nothing is drawn
    scores = edge_attribution(model, task, method="eap", metric=metric, direction=direction, batch_size=batch_size)
    return scores.graph


@circuit_method(
    name="eap-ig",
    title="Edge attribution with integrated gradients",
    gives="scores",
    costs="7 forward, 5 backward",
    means=MEANS + " Edges out of the embedding sum to the metric's whole change.",
    misleads=FIRST_ORDER,
    reference="Hanna et al. 2024, arXiv 2403.17806",
    order=10,
    goal=0.95,
)
def eap_ig(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    steps: int = 5,
    rule: str = "midpoint",
    direction: str = "noising",
) -> Graph:
    """The mean slope over the line between the two prompts' embeddings."""
    del seed
    scores = edge_attribution(
        model, task, method="eap-ig", metric=metric, steps=steps, rule=rule, direction=direction, batch_size=batch_size
    )
    return scores.graph


@circuit_method(
    name="eap-ig-activations",
    title="Edge attribution with gradients integrated layer by layer",
    gives="scores",
    costs="5 (2 layers + 1), half of each",
    means=MEANS,
    misleads=FIRST_ORDER + " Each layer goes over on its own: no sum of scores is the metric's change.",
    reference="Hanna et al. 2024, arXiv 2403.17806",
    order=30,
)
def eap_ig_activations(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    steps: int = 5,
    rule: str = "midpoint",
    direction: str = "noising",
) -> Graph:
    """The mean slope as one layer's attention, or one MLP, goes over from one run to the other."""
    del seed
    scores = edge_attribution(
        model,
        task,
        method="eap-ig-activations",
        metric=metric,
        steps=steps,
        rule=rule,
        direction=direction,
        batch_size=batch_size,
    )
    return scores.graph


@circuit_method(
    name="clean-corrupted",
    title="Edge attribution from both ends",
    gives="scores",
    costs="2 forward, 2 backward",
    means=MEANS,
    misleads=FIRST_ORDER + " Blind to what happens between the two prompts.",
    reference="Hanna et al. 2024, arXiv 2403.17806",
    order=40,
)
def clean_corrupted(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    direction: str = "noising",
) -> Graph:
    """The mean of the slopes at the two ends."""
    del seed
    scores = edge_attribution(
        model, task, method="clean-corrupted", metric=metric, direction=direction, batch_size=batch_size
    )
    return scores.graph
