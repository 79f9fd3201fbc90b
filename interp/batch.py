"""Prompts as token ids with their padding mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompts = Any  # Batch | Tensor | str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids and which of them are real. Padding stands on one side of each prompt only."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]

    @property
    def padded(self) -> bool:
        """Whether any token is padding."""
        return not bool(self.mask.all())

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each token within its own prompt, padding not counted; padding on the left stands at 0."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def first(self) -> Int[Tensor, " batch"]:
        """Index of each prompt's first real token."""
        return self.mask.long().argmax(1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.ids.to(device), self.mask.to(device))

    @classmethod
    def of(cls, prompts: Prompts, tokenizer: PreTrainedTokenizerBase | None = None, *, side: str = "right") -> Batch:
        """Batch from ids (tensor or nested lists, ragged allowed), text, or a batch; `side` is where padding goes.

        Raises:
            TaskError: nothing to run, ids that are not integers, or text without a tokenizer.
        """
        if isinstance(prompts, Batch):
            return prompts
        if isinstance(prompts, Tensor):
            return cls._of_tensor(prompts)
        if isinstance(prompts, str):
            prompts = [prompts]
        rows = [_ids(row, tokenizer) for row in _rows(prompts)]
        if not rows or not all(rows):
            raise TaskError("empty prompt: at least one token is needed in each")
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for r, row in enumerate(rows):
            span = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
            ids[r, span] = torch.tensor(row)
            mask[r, span] = True
        return cls(ids, mask)

    @classmethod
    def _of_tensor(cls, ids: Tensor) -> Batch:
        ids = ids[None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or ids.is_floating_point():
            raise TaskError(f"tokens must be integers [batch, pos]; got {ids.dtype} of shape {tuple(ids.shape)}")
        if ids.numel() == 0:
            raise TaskError("empty prompt: at least one token is needed in each")
        return cls(ids.long(), torch.ones_like(ids, dtype=torch.bool))


def _rows(prompts: Prompts) -> Sequence[Any]:
    flat = len(prompts) > 0 and isinstance(prompts[0], int)
    return [prompts] if flat else prompts


def _ids(row: Any, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if not isinstance(row, str):
        return [int(i) for i in row]
    if not row:
        raise TaskError("empty prompt: at least one token is needed in each")
    if tokenizer is None:
        raise TaskError("this checkpoint has no tokenizer: give token ids instead of text")
    return list(tokenizer(row, verbose=False)["input_ids"])  # type: ignore[arg-type]  # lengths are checked by the model
