"""Activation patching and node attribution as registered methods: tables of heads, MLPs and what heads read."""

from __future__ import annotations

from circuits.methods import circuit_method
from interp.model import Model
from interp.patching.activations import Nodes, Positions
from interp.patching.activations import activation_patching as patch
from interp.patching.nodes import node_attribution
from interp.results.results import Result
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

MEANS = "Patching this component with the other prompt's activation is estimated to change the metric by so much."
FIRST_ORDER = "An estimate to first order: a node whose effects cancel along its paths scores little."


@circuit_method(
    name="activation-patching",
    title="Activation patching",
    gives="table",
    costs="half of a forward pass for every node",
    means="With this one activation of the other run the metric changes by so much.",
    misleads="Links of a chain are not enough alone, stand-ins are not needed; effects do not add up; the corruption "
    "decides what is found.",
    reference="Zhang and Nanda 2023, arXiv 2309.16042",
    order=110,
    judged="nodes",
)
def activation_patching(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    nodes: Nodes = "heads",
    positions: Positions = None,
    mode: str = "denoising",
) -> Result:
    """Effect of every head's z, or of the nodes named."""
    return patch(
        model, task, nodes=nodes, positions=positions, mode=mode, metric=metric, batch_size=batch_size, seed=seed
    )


@circuit_method(
    name="atp",
    title="Attribution patching of nodes",
    gives="table",
    costs="2 forward, 1 backward",
    means=MEANS,
    misleads=FIRST_ORDER + " Where attention saturates, queries and keys score nothing.",
    reference="Nanda 2023; Kramar et al. 2024, arXiv 2403.00745",
    order=120,
    judged="nodes",
)
def atp(
    model: Model, task: PromptTask, *, metric: AnyMetric | None = None, batch_size: int = 16, seed: int = 0
) -> Result:
    """The slope along the patch."""
    return node_attribution(model, task, method="atp", metric=metric, batch_size=batch_size).result(seed=seed)


@circuit_method(
    name="atp-qkfix",
    title="Attribution patching with the softmax computed again",
    gives="table",
    costs="2 forward, 1 backward, 2 passes over every layer",
    means=MEANS,
    misleads=FIRST_ORDER,
    reference="Kramar et al. 2024, arXiv 2403.00745",
    order=130,
    judged="nodes",
)
def atp_qkfix(
    model: Model, task: PromptTask, *, metric: AnyMetric | None = None, batch_size: int = 16, seed: int = 0
) -> Result:
    """As `atp`, but for queries and keys only what follows the softmax is linear."""
    return node_attribution(model, task, method="atp-qkfix", metric=metric, batch_size=batch_size).result(seed=seed)


@circuit_method(
    name="atp-ig",
    title="Attribution patching with integrated gradients",
    gives="table",
    costs="7 forward, 5 backward",
    means=MEANS,
    misleads=FIRST_ORDER,
    reference="Kramar et al. 2024, arXiv 2403.00745; Hanna et al. 2024, arXiv 2403.17806",
    order=140,
    judged="nodes",
)
def atp_ig(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    steps: int = 5,
    rule: str = "midpoint",
) -> Result:
    """The mean slope over the line between the two prompts' embeddings."""
    scores = node_attribution(
        model, task, method="atp-ig", metric=metric, steps=steps, rule=rule, batch_size=batch_size
    )
    return scores.result(seed=seed)


@circuit_method(
    name="hisp",
    title="Head importance by its gradient",
    gives="table",
    costs="1 forward, 1 backward",
    means="Scaling this activation would change the metric by so much, whatever the direction.",
    misleads="No other prompt is asked: it is not the effect of a patch, and never negative.",
    reference="Michel et al. 2019, arXiv 1905.10650",
    order=150,
    signed=False,
    judged="nodes",
)
def hisp(
    model: Model, task: PromptTask, *, metric: AnyMetric | None = None, batch_size: int = 16, seed: int = 0
) -> Result:
    """|sum of activation times gradient|, a mean of magnitudes over prompts."""
    return node_attribution(model, task, method="hisp", metric=metric, batch_size=batch_size).result(seed=seed)
