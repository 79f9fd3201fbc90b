"""What every head writes for the prompts of a task, one vector a prompt: the mean over tokens, or at one of them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.errors import SchemaError, TaskError, nearest
from interp.measurement.head_effects import attention_sites
from interp.model import Model
from interp.patching.case import Case
from interp.sites import Site
from interp.tasks import PromptTask

MEAN = "mean"
OUTPUTS = ("head_out", "z")
"""What a head writes to the stream, z W_O, as published; or z before W_O, which is narrower and distinguishes more."""
LEAST_PAIRS = 2


def with_role(task: PromptTask, position: str) -> PromptTask:
    """The pairs that have a token at the position; all of them for "mean".

    Raises:
        TaskError: an unknown role, or fewer than two pairs with it.
    """
    rows = torch.arange(len(task)) if position == MEAN else (task.role(position) >= 0).nonzero()[:, 0].cpu()
    if len(rows) < LEAST_PAIRS:
        raise TaskError(
            f"{task.name}: {len(rows)} pairs with {position!r}; at least {LEAST_PAIRS} are needed, ask for more prompts"
        )
    return task if len(rows) == len(task) else task.select(rows)


@torch.no_grad()
def head_outputs(
    model: Model, task: PromptTask, *, position: str = MEAN, outputs: str = "head_out", batch_size: int = 16
) -> tuple[Float[Tensor, "prompt head d"], Bool[np.ndarray, " prompt"], Int[np.ndarray, " prompt"]]:
    """Outputs of all heads (layer by layer) on clean prompts, then on their twins; whether clean; number of the pair.

    `position`: "mean" over a prompt's real tokens, "END", or another role; pairs without the role are left out. What is
    linear commutes with the mean: z is averaged first and W_O applied once a prompt, unless edits are in force, which
    may stand between the two.

    Raises:
        TaskError: as `with_role`.
        SchemaError: unknown outputs.
    """
    if outputs not in OUTPUTS:
        raise SchemaError(f"unknown outputs {outputs!r}; {nearest(outputs, OUTPUTS)}")
    chosen = with_role(task, position)
    case = Case.of(model, chosen)
    late = outputs == "head_out" and not model.edits
    kind = "z" if late else outputs
    sides: dict[str, list[Tensor]] = {"clean": [], "corrupt": []}
    for portion in case.batches(batch_size):
        at = None if position == MEAN else portion.task.role(position)
        for side, batch in (("clean", portion.task.clean), ("corrupt", portion.task.corrupt)):
            sides[side].append(_pooled(model, batch, kind, at))
    x = torch.cat([*sides["clean"], *sides["corrupt"]])  # prompt layer head d
    if late:
        weights = model.weights()
        w_o = [weights[layer].w_o.to(x) for layer in model.info.attention_layers]
        x = torch.stack([torch.einsum("phd,hdm->phm", x[:, i], w) for i, w in enumerate(w_o)], 1)
    n = len(chosen)
    return x.flatten(1, 2), np.arange(2 * n) < n, np.tile(np.arange(n), 2)


def _pooled(model: Model, batch: Batch, kind: str, at: Tensor | None) -> Float[Tensor, "prompt layer head d"]:
    def pool(x: Tensor) -> Tensor:
        if at is not None:
            return x[torch.arange(len(x)), at.to(x.device)].float()
        mask = batch.mask.to(x.device)[..., None, None]
        return (x.float() * mask).sum(1) / mask.sum(1)

    sites: list[Site] = attention_sites(model, kind)
    run = model.run(batch, capture=dict.fromkeys(sites, pool), stop=max(model.info.attention_layers))
    return torch.stack([run[site].to(model.device) for site in sites], 1)
