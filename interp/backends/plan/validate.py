"""Check of prompts against context and vocabulary of a model."""

from __future__ import annotations

from interp.batch import Batch
from interp.errors import TaskError
from interp.model import ModelInfo


def check_batch(batch: Batch, info: ModelInfo) -> Batch:
    """The batch, if the model can run it.

    Raises:
        TaskError: empty, padded within a prompt, longer than the model's context, or ids outside its vocabulary.
    """
    length = int(batch.checked().mask.sum(1).max())
    if info.context is not None and length > info.context:
        raise TaskError(f"prompt of {length} tokens is longer than the model's context of {info.context}")
    low, high = int(batch.ids.min()), int(batch.ids.max())
    if low < 0 or high >= info.d_vocab:
        raise TaskError(f"token id {low if low < 0 else high} is outside the vocabulary 0..{info.d_vocab - 1}")
    return batch
