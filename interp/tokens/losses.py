"""Loss of each token of a prompt, and its mean."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def token_losses(
    logits: Float[Tensor, "batch pos d_vocab"], ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch next"]:
    """-log p(token i + 1 | tokens up to i) in nats, column i; NaN where either of the two is padding.

    Prompts are taken one by one, so that half precision is widened for one of them at a time.
    """
    ids, mask = ids.to(logits.device), mask.to(logits.device)
    rows = [cross_entropy(x[:-1].float(), row[1:], reduction="none") for x, row in zip(logits, ids, strict=True)]
    return torch.stack(rows).masked_fill(~(mask[:, 1:] & mask[:, :-1]), torch.nan)
