"""Next-token losses of prompts under edits, a few prompts per forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch
from interp.edits import Edit
from interp.model import Model
from interp.tokens.losses import token_losses

BLOCK = 16
"""Prompts per forward pass: logits of all at once may not fit."""


@torch.no_grad()
def losses_by_token(
    model: Model, batch: Batch, edits: Sequence[Edit] = (), *, block: int = BLOCK
) -> Float[Tensor, "batch next"]:
    """-log p(token i + 1 | tokens up to i) in nats, column i; NaN where either of the two is padding.

    Edits with a value or a choice per prompt need all prompts in one pass: `block` as large as the batch.
    """
    parts = []
    for rows in torch.arange(len(batch.ids)).split(block):
        part = Batch(batch.ids[rows], batch.mask[rows])
        logits = model.run(part, edits=edits).logits
        if logits is None:
            raise RuntimeError("a run without early stop gave no logits")
        parts.append(token_losses(logits, part.ids, part.mask).cpu())
    return torch.cat(parts)


def mean_loss(model: Model, batch: Batch, edits: Sequence[Edit] = (), *, block: int = BLOCK) -> float:
    """Mean of `losses_by_token` over all tokens that have one, in nats."""
    return float(losses_by_token(model, batch, edits, block=block).nanmean())
