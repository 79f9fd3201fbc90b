"""What single heads do to a value per prompt: exactly, a different edit in each row, and to first order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.edits import Ablate
from interp.gradients import gradients
from interp.model import Model
from interp.shapes import brief
from interp.sites import Site
from interp.tasks import PromptTask, metrics

ROWS = 192  # of a batch: prompts times heads that are ablated in one forward pass


@dataclass(frozen=True, eq=False)
class Objective:
    """What is asked of a model: prompts, and a value per row of logits, high where the model does well.

    `value` takes logits [row pos d_vocab] and the prompt that each row is.
    """

    batch: Batch
    value: Callable[[Float[Tensor, "row pos d_vocab"], Int[Tensor, " row"]], Float[Tensor, " row"]]
    metric: str
    unit: str

    __repr__ = brief

    @classmethod
    def of_task(cls, task: PromptTask, *, corrupt: bool = False) -> Objective:
        """The task's own metric, on its clean prompts or on the corrupt ones."""
        metric = task.metric_name
        sign, unit = UNITS.get(metric, (1.0, "logit" if metric in metrics.METRICS else metric))
        batch = task.corrupt if corrupt else task.clean
        return cls(batch, lambda logits, rows: sign * task.select(rows).value(logits), metric, unit)

    def first(self, rows: Int[Tensor, " row"]) -> Objective:
        """Some of the prompts."""
        batch = self.batch.select(rows)
        return Objective(batch, lambda logits, own: self.value(logits, rows[own]), self.metric, self.unit)

    def measure(self, model: Model, edits: object = ()) -> Float[np.ndarray, " prompt"]:
        """The value of every prompt under edits."""
        logits = model.run(self.batch, edits=edits).logits  # type: ignore[arg-type]
        assert logits is not None  # the run has no `stop`
        return self.value(logits, torch.arange(len(logits))).detach().double().cpu().numpy()


UNITS = {
    "prob": (1.0, "probability"),
    "prob_diff": (1.0, "probability"),
    "accuracy": (1.0, "fraction"),
    "loss_nats": (-1.0, "nats"),
    "kl": (-1.0, "nats"),
    "rank": (-1.0, "rank"),
}
"""Sign that makes a metric high where the model does well, and its unit; others are logits."""


def attention_sites(model: Model, kind: str) -> list[Site]:
    """A site in every layer that has attention."""
    return [Site(kind, layer) for layer in model.info.attention_layers]


def head_activations(model: Model, batch: Batch) -> Float[Tensor, "layer prompt pos head d_head"]:
    """z of every head, [layer prompt pos head d_head]."""
    acts = model.run(batch, capture=["z"]).acts
    return torch.stack([acts[site] for site in attention_sites(model, "z")])


def first_order_effects(
    model: Model, objective: Objective, other: Float[Tensor, "layer prompt pos head d_head"] | None = None
) -> Float[np.ndarray, "prompt layer head"]:
    """sum over positions of (z - other) . d value / d z: to first order, what replacing a head's z by `other` costs.

    Without `other` z is zeroed, and the sum is d value / d xi for a mask xi = 1 on the head.
    """
    rows = torch.arange(len(objective.batch.ids))
    run = gradients(model, objective.batch, lambda logits: objective.value(logits, rows), attention_sites(model, "z"))
    per_layer = []
    for i, site in enumerate(attention_sites(model, "z")):
        z = run.acts[site] if other is None else run.acts[site] - other[i].to(run.acts[site])
        per_layer.append((z * run.grads[site]).sum((1, 3)))
    return torch.stack(per_layer, dim=1).double().cpu().numpy()


@torch.no_grad()
def ablation_effects(
    model: Model,
    objective: Objective,
    how: str,
    value: Float[Tensor, "layer *rest head d_head"] | None = None,
    *,
    rows: int = ROWS,
) -> Float[np.ndarray, "prompt layer head"]:
    """value(clean) - value(one head ablated), every head in turn.

    Every prompt is repeated once per head, a different one ablated in each copy, and only the layers from the head's on
    are run, up to `rows` rows at a time.

    Args:
        model: any loaded model.
        objective: prompts and their value.
        how: "zero", "mean" or "resample".
        value: for "mean" [layer head d_head], for "resample" [layer prompt pos head d_head].
        rows: of a batch.
    """
    n = len(objective.batch.ids)
    run = model.run(objective.batch, capture=["resid_pre"])
    assert run.logits is not None  # the run has no `stop`
    clean = objective.value(run.logits, torch.arange(n))
    effects = torch.zeros(n, len(model.info.attention_layers), model.info.n_heads)
    for i, layer in enumerate(model.info.attention_layers):
        resid = run.acts[Site("resid_pre", layer)]
        for chunk in torch.arange(model.info.n_heads).split(max(1, rows // n)):
            edits = []
            for copy, head in enumerate(chunk.tolist()):
                head_value = None if value is None else value[i, ..., head, :]
                own = torch.arange(copy * n, (copy + 1) * n)
                edits.append(Ablate(Site("z", layer, head=head), how, head_value, rows=own))
            k = len(chunk)
            repeats = objective.batch.repeat(k)
            logits = model.run(repeats, edits=edits, start=(layer, resid.repeat(k, 1, 1))).logits
            assert logits is not None  # the run has no `stop`
            edited = objective.value(logits, torch.arange(n).repeat(k)).view(k, n)
            effects[:, i, chunk] = (clean - edited).T.float().cpu()
    return effects.double().numpy()
