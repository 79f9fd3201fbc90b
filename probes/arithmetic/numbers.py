"""Numbers of a model: the task that asks for sums of them, the value of a token, and the ids of 0, 1, 2, ..."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from interp import tasks
from interp.errors import NotApplicable
from interp.model import Model
from interp.tasks import PromptTask
from interp.tasks.modular import FAMILY
from interp.tasks.source import checkpoint_tasks
from interp.tasks.spell import Speller

MOST = 1000
"""Numbers that are looked for."""
LEAST = 8
"""Fewer have no spectrum worth the name."""


def default_task(model: Model, *, n: int, seed: int) -> PromptTask:
    """The model's own modular addition, in words or in ids; else sums of two numbers.

    Raises:
        NotApplicable: the model cannot be asked for either.
    """
    if model.tokenizer is not None:
        return tasks.task(FAMILY if FAMILY in checkpoint_tasks(model) else "arithmetic", model, n=n, seed=seed)
    try:
        return tasks.task(FAMILY, model, n=n, seed=seed)
    except NotApplicable as error:
        raise NotApplicable(
            "without a tokenizer only modular addition is asked by default, and no layout of it was recognised: give "
            "`task`, `tasks.modular_task(model, tasks.addition(model, modulus=..., template=...))` for one"
        ) from error


def number_values(model: Model, ids: Int[Tensor, " token"]) -> Int[ndarray, " token"]:
    """The number that each token is; without a tokenizer, its id.

    Raises:
        NotApplicable: a token that is no number.
    """
    if model.tokenizer is None:
        return ids.numpy()
    tokenizer: Any = model.tokenizer
    texts = {i: str(tokenizer.decode([i])).strip() for i in ids.unique().tolist()}
    stray = [text for text in texts.values() if not text.isdecimal()]
    if stray:
        raise NotApplicable(f"the token {stray[0]!r} is no number: numbers have to be one token each")
    return np.array([int(texts[i]) for i in ids.tolist()])


def number_ids(model: Model) -> Int[Tensor, " number"]:
    """Ids of 0, 1, 2, ... in running text, up to the first that is not one token; without a tokenizer, of the residues.

    Raises:
        NotApplicable: fewer than eight.
    """
    if model.tokenizer is None:
        try:
            return tasks.addition(model).numbers
        except NotApplicable as error:
            raise NotApplicable(
                "without a tokenizer only the residues of a modular adder are known to be numbers, and none was "
                "recognised: load the model with its tokenizer, or give rows of your own to `fourier_spectrum`"
            ) from error
    forms = number_forms(model)
    if forms:
        return forms[0]
    raise NotApplicable(f"fewer than {LEAST} of the numbers 0, 1, 2, ... are one token each")


def number_forms(model: Model) -> list[Int[Tensor, " number"]]:
    """Ids of 0, 1, 2, ... as a tokenizer writes them behind a space, and without one; those with eight at least."""
    speller, forms = Speller(model, bos="none"), []
    for joint in (" ", ""):
        tails = speller.tails("a" if joint else "+", [joint + str(i) for i in range(MOST)])
        singles = [tail[0] if tail is not None and len(tail) == 1 else None for tail in tails]
        ids = singles[: singles.index(None)] if None in singles else singles
        if len(set(ids)) == len(ids) >= LEAST:
            forms.append(torch.tensor(ids, dtype=torch.long))
    return forms


def ids_of_numbers(model: Model, stand: Int[Tensor, " token"], what: str) -> Int[Tensor, " number"]:
    """Ids of 0, 1, 2, ... in the form of some tokens, which all have to be among them.

    Raises:
        NotApplicable: they are not numbers of one token; `what` says what they are.
    """
    forms = [number_ids(model)] if model.tokenizer is None else number_forms(model)
    for ids in forms:
        if set(stand.tolist()) <= set(ids.tolist()):
            return ids
    raise NotApplicable(f"{what} are not all numbers of one token each, 0, 1, 2, ... without a gap")
