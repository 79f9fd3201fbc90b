"""Groups of a prompt's tokens, as masks: those of each role and all others, and whole statements."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import NotApplicable, TaskError
from interp.tasks import PromptTask
from interp.tasks.prompt import STOP


def source_masks(task: PromptTask) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Columns of each role, those of the first token and of END, and of all others; each token once, roles first.

    Raises:
        TaskError: prompts of one token.
    """
    mask = task.clean.mask.cpu()
    column = torch.arange(mask.shape[1])
    end = column == task.end.cpu()[:, None]
    free, found = mask & ~end, {}
    if not bool(free.any()):
        raise TaskError(f"{task.name}: prompts of one token have nothing else to look at")
    for role, at in task.roles.items():
        own = (column == at.cpu()[:, None]) & free
        if role != "END" and bool(own.any()):
            found[role], free = own, free & ~own
    start = (column == task.clean.first.cpu()[:, None]) & free
    rest = {"start": start, "others": free & ~start, "own": end}
    return found | {name: own for name, own in rest.items() if bool(own.any())}


def statement_masks(task: PromptTask) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Tokens of each statement; of each role in tasks that mark none. Never the first token, nor END's own.

    Spans of the prompts that have a name are statements, where there are any. A role "RULE1 STOP" ends the statement
    "RULE1", which begins behind the statement before it, or with the prompt.

    Raises:
        NotApplicable: the task marks nothing but END.
    """
    column = torch.arange(task.clean.mask.shape[1])
    free = task.clean.mask.cpu() & (column != task.end.cpu()[:, None]) & (column != task.clean.first.cpu()[:, None])
    spans = {name: span.cpu() & free for name, span in task.clean.spans.items()}
    stops = {role.removesuffix(STOP): at.cpu() for role, at in task.roles.items() if role.endswith(STOP)}
    if spans:
        found = spans
    elif stops:
        before = torch.stack(list(stops.values()))
        found = {name: _between(column, _latest_before(before, at), at) & free for name, at in stops.items()}
    else:
        found = {role: (column == at.cpu()[:, None]) & free for role, at in task.roles.items() if role != "END"}
    found = {name: own for name, own in found.items() if bool(own.any())}
    if not found:
        raise NotApplicable(
            f"{task.name} marks no tokens but END: name those of interest by `roles` or `spans` (interp.pair)"
        )
    return found


def _latest_before(stops: Int[Tensor, "role batch"], at: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The last of the stops before another; -1 where it is the first."""
    return stops.masked_fill(stops >= at, -1).amax(0)


def _between(
    column: Int[Tensor, " pos"], after: Int[Tensor, " batch"], to: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch pos"]:
    return (column > after[:, None]) & (column <= to[:, None])
