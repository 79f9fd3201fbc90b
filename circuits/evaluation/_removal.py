"""Accuracy with a circuit alone and without it: what its removal does, in prompts answered rightly."""

from __future__ import annotations

from typing import NamedTuple

import torch

from circuits.evaluation._faithfulness import portions
from circuits.graph.graph import Graph
from circuits.wiring.case import Case
from circuits.wiring.edges import run_edges
from interp.measurement.ability import Ability
from interp.model import Model
from interp.tasks import PromptTask, metrics
from interp.tasks.metrics import AnyMetric


class Removal(NamedTuple):
    """How well the model does a task with the circuit's edges alone, and with all others."""

    alone: Ability
    without: Ability


@torch.no_grad()
def removal(
    model: Model,
    task: PromptTask,
    graph: Graph,
    *,
    metric: AnyMetric | None = None,
    ablation: str = "resample",
    batch_size: int = 16,
) -> Removal:
    """Accuracy with the edges of a circuit alone, and with every edge but those; two runs over the prompts.

    Args:
        model: any backend with its weights at hand.
        task: prompts.
        graph: the circuit.
        metric: as in `faithfulness`; accuracy is the same for each.
        ablation: what a removed edge carries.
        batch_size: prompts at a time.

    Raises:
        SchemaError: a circuit of another model.
        TaskError: an unknown ablation.
    """
    case = Case.of(model, task, metric=metric)
    masks = [torch.from_numpy(mask).to(task.clean.ids.device) for mask in (graph.mask, graph.complement().mask)]
    parts: list[list[torch.Tensor]] = [[], []]
    for part, other in portions(case, ablation, batch_size=batch_size):
        for own, mask in zip(parts, masks, strict=True):
            logits = run_edges(case.model, case.ports, part.task.clean, mask, other).logits
            assert logits is not None  # no `stop`
            own.append(metrics.answer_logits(logits, part.task).cpu())
    return Removal(*(Ability.of(torch.cat(own), task.to("cpu")) for own in parts))
