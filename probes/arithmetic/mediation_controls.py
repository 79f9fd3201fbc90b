"""Twins that an output of a sum is taken from as a control: the same result, operands exchanged, another operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp import tasks
from interp.batch import Batch
from interp.errors import InterpError, NotApplicable
from interp.model import Model
from interp.tasks import PromptTask
from probes.arithmetic.numbers import number_values

LEAST = 4
"""Prompts that a control is made of."""
OPERATORS = (("+", "-", "*", "×", "x", "/"), ("plus", "minus", "times"), ("sum", "difference", "product"))
"""Words that stand in each other's place."""
RETRIEVAL = "number_retrieval"
"""Name of the task that asks for a number of the prompt as it stands there."""
Twins = tuple[PromptTask, PromptTask]
"""Some prompts of a task with other twins, and the same prompts with their own."""
Control = Callable[[Model, PromptTask, np.random.Generator], Twins]


def controls(model: Model, task: PromptTask, seed: int) -> tuple[dict[str, Twins], dict[str, str]]:
    """Other twins, by control, of those prompts that have one; and why a control has none."""
    made, missing = {}, {}
    for name, make in CONTROLS.items():
        try:
            made[name] = make(model, task, np.random.default_rng(seed))
        except NotApplicable as error:
            missing[name] = str(error)
    return made, missing


def same_result(model: Model, task: PromptTask, rng: np.random.Generator) -> Twins:
    """Twins with other operands and the same answer: other prompts of the task, or twins of others, of one template."""
    pool = torch.cat([task.clean.ids, task.corrupt.ids])
    answers = torch.cat([task.answers[:, 0], task.wrong[:, 0]]).cpu()
    groups, own = task.groups.cpu().repeat(2), _operands(task, task.clean)
    operands = torch.cat([own, _operands(task, task.corrupt)])
    rows, twins = [], []
    for i in range(len(task)):
        fits = (answers == answers[i]) & (groups == groups[i]) & (operands != own[i]).any(1)
        among = fits.nonzero()[:, 0].tolist()
        if among:
            rows.append(i)
            twins.append(int(rng.choice(among)))
    return _with_twins(task, rows, pool[twins], "has another prompt with the same answer; give more prompts")


def exchanged(model: Model, task: PromptTask, rng: np.random.Generator) -> Twins:
    """Twins with x in the place of y and y in that of x; operands of one token each."""
    ids, index = task.clean.ids.clone(), torch.arange(len(task), device=task.clean.ids.device)
    x, y = (task.role(role).to(ids.device) for role in ("x", "y"))
    number_values(model, _operands(task, task.clean).flatten())
    texts = _texts(model, ids) if model.tokenizer is not None else {}
    before = {int(i) for at in (x, y) for i in ids[index, at - 1][at > 0]}
    if any(texts.get(i, "").strip().isdecimal() for i in before):
        raise NotApplicable("an operand is several tokens: only one of a token each can be exchanged for the other")
    ids[index, x], ids[index, y] = task.clean.ids[index, y], task.clean.ids[index, x]
    rows = (ids != task.clean.ids).any(1).nonzero()[:, 0].tolist()
    return _with_twins(task, rows, ids[rows], "has two different operands")


def other_operator(model: Model, task: PromptTask, rng: np.random.Generator) -> Twins:
    """Twins with the same operands and another operator of one token: minus for plus, and so on."""
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise NotApplicable("without a tokenizer no token is known to be an operator")
    ids, texts = task.clean.ids.clone(), _texts(model, task.clean.ids)
    rows, twins = [], []
    for i, row in enumerate(ids.tolist()):
        for at, token in enumerate(row):
            others = _operators(model, texts[token])
            if others and task.clean.mask[i, at]:
                twin = ids[i].clone()
                twin[at] = int(rng.choice(others))
                rows.append(i)
                twins.append(twin)
                break
    stacked = torch.stack(twins) if twins else ids[:0]
    return _with_twins(task, rows, stacked, "has an operator of one token for which there is another")


CONTROLS: Mapping[str, Control] = {"same_result": same_result, "exchanged": exchanged, "operator": other_operator}


def retrieval_task(model: Model, task: PromptTask | str | None, *, n: int, seed: int) -> PromptTask:
    """A task in which a number has only to be copied, with roles x and y; the model's own unless one is given.

    Raises:
        NotApplicable: there is none for the model.
    """
    if isinstance(task, PromptTask):
        return task
    try:
        return tasks.task(RETRIEVAL if task is None else task, model, n=n, seed=seed)
    except InterpError as error:
        raise NotApplicable(f"no task that only copies a number: {error}") from error


def _operands(task: PromptTask, batch: Batch) -> Int[Tensor, "prompt 2"]:
    """Last tokens of both operands."""
    index = torch.arange(len(task))
    return torch.stack([batch.ids.cpu()[index, task.role(role).cpu()] for role in ("x", "y")], 1)


def _with_twins(task: PromptTask, rows: list[int], ids: Int[Tensor, "some pos"], what: str) -> Twins:
    if len(rows) < LEAST:
        raise NotApplicable(f"{len(rows)} of {len(task)} prompts: fewer than {LEAST} of {task.name} {what}")
    part = task.select(torch.tensor(rows))
    return replace(part, corrupt=Batch(ids, part.clean.mask)), part


def _texts(model: Model, ids: Int[Tensor, "prompt pos"]) -> dict[int, str]:
    tokenizer: Any = model.tokenizer
    return {i: str(tokenizer.decode([i])) for i in ids.unique().tolist()}


def _operators(model: Model, text: str) -> list[int]:
    """Tokens that are another operator, with the same space before it."""
    tokenizer: Any = model.tokenizer
    kin = next((words for words in OPERATORS if text.strip() in words), ())
    found = []
    for word in kin:
        ids = tokenizer(text.replace(text.strip(), word), add_special_tokens=False)["input_ids"]
        if word != text.strip() and len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            found.append(ids[0])
    return found
