"""From a checkpoint to an nnsight model."""

from __future__ import annotations

import beartype  # noqa: F401  (before nnsight, which adds a method to `object` that beartype then trips over)

# isort: split
from nnsight import NNsight, TransformersModel

from interp.backends.checkpoint import Checkpoint
from interp.backends.nnsight.model import NNsightModel


def wrap(checkpoint: Checkpoint) -> NNsightModel:
    """An nnsight model around a checkpoint's own module; a `TransformersModel` where there is a tokenizer."""
    if checkpoint.tokenizer is None:
        model = NNsight(checkpoint.model)
    else:
        model = TransformersModel(checkpoint.model, tokenizer=checkpoint.tokenizer)
    return NNsightModel(model, name=checkpoint.name, commit=checkpoint.commit)
