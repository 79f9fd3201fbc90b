"""Tokens at which nodes are patched or scored: all at once, one position after another, or one role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import TaskError
from interp.model import Model
from interp.tasks import PromptTask

Positions = str | Sequence[str] | None
"""None: every token at once. "all": one position at a time. "roles": one role at a time. Or names of roles."""


@dataclass(frozen=True, eq=False)
class Place:
    """Some tokens of each prompt, and how a table calls them.

    Attributes:
        mask: over columns of the batch; None: all of them.
        role: name of the role, or None.
        position: from each prompt's start, or None.
        token: text of the clean prompts' token there, where they agree; else the role that all of them have there.
    """

    mask: Bool[Tensor, "prompt pos"] | None
    role: str | None = None
    position: int | None = None
    token: str | None = None

    def part(self, rows: slice, width: int) -> Place:
        """The same tokens of some of the prompts."""
        return replace(self, mask=None if self.mask is None else self.mask[rows, :width])

    @property
    def labels(self) -> dict[str, object]:
        """Columns of a table."""
        return {"role": self.role, "position": self.position, "token": self.token}


def places(model: Model, task: PromptTask, positions: Positions) -> list[Place]:
    """The places named, one after another.

    Raises:
        TaskError: no such role, or none at all.
    """
    if positions is None:
        return [Place(None)]
    if positions == "all":
        columns = range(int(task.lengths.max()))
        masks = [_column(task, torch.full((len(task),), i), task.lengths > i) for i in columns]
        return [Place(mask, position=i, token=_token(model, task, mask, i)) for i, mask in enumerate(masks)]
    names = list(task.roles) if positions == "roles" else [positions] if isinstance(positions, str) else positions
    if not names:
        raise TaskError(f"{task.name}: no positions to patch")
    masks = [_column(task, task.role(name), task.role(name) >= 0) for name in names]
    return [
        Place(mask, role=name, token=_token(model, task, mask, None)) for name, mask in zip(names, masks, strict=True)
    ]


def _column(task: PromptTask, at: Int[Tensor, " prompt"], valid: Bool[Tensor, " prompt"]) -> Bool[Tensor, "prompt pos"]:
    columns = torch.arange(task.clean.ids.shape[1], device=valid.device)
    return (columns == at.to(valid.device)[:, None]) & valid[:, None]


def _token(model: Model, task: PromptTask, mask: Bool[Tensor, "prompt pos"], position: int | None) -> str | None:
    tokenizer: Any = model.tokenizer
    ids = task.clean.ids.to(mask.device)[mask].unique().tolist()
    if len(ids) == 1:
        return str(ids[0]) if tokenizer is None else str(tokenizer.decode(ids))
    if position is None:
        return None
    roles = [name for name, at in task.roles.items() if bool((at.to(mask.device) == position)[mask.any(1)].all())]
    return roles[0] if roles else None
