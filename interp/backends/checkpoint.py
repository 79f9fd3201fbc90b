"""`Checkpoint`: a transformers model that has been read, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model in eval mode, with what is known of where it came from."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    commit: str | None = None
    weights_sha256: str | None = None
