"""What heads raise when they run: logits of the tokens seen so far against those of others, on random tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import tasks
from interp.batch import Batch
from interp.errors import InterpError, NotApplicable
from interp.model import Model
from interp.sites import Site

LEAST = 4
"""Tokens of a prompt, and others, without which nothing is compared."""


@dataclass(frozen=True, eq=False)
class Raise:
    """Copying measured on what heads write, and the same about another prompt's tokens; NaN where nothing is raised."""

    score: Float[np.ndarray, "prompt layer head"]
    exchanged: Float[np.ndarray, "prompt layer head"]
    data: dict[str, object]


def token_raise(model: Model, *, n_prompts: int, length: int, n_tokens: int, seed: int) -> Raise:
    """Score (S - R) / (S + R) of every head, in [-1, 1] and 0 where the tokens seen are raised as much as any.

    With o_i the head's write at position i, N the linear part of the final norm and r_b(i) = max(0, N(o_i) . (W_U[b] -
    mean W_U)), S is the mean of r over positions i and the prompt's own tokens b up to i, R that over sampled tokens
    that the prompt does not have; the mean of W_U is over these. `exchanged` takes for S the next prompt's tokens that
    this one does not have.

    Raises:
        NotApplicable: the vocabulary or the context leaves fewer than 4 tokens to a prompt, or 4 others.
        BackendError: the unembedding cannot be read.
    """
    batch, start = _prompts(model, n_prompts=n_prompts, length=length, seed=seed)
    others = _others(model, batch, n_tokens=n_tokens, seed=seed)
    read = _reader(model, batch.ids[:, start:], others, start)
    sites = [Site("head_out", layer) for layer in model.info.attention_layers]
    run = model.run(batch, capture=dict.fromkeys(sites, read))
    found = torch.stack([run[site] for site in sites]).double().cpu().numpy()  # layer which prompt head
    score, exchanged = found.transpose(1, 2, 0, 3)
    data: dict[str, object] = {
        "random_tokens": {"n": len(batch.ids), "length": length, "sha256": tasks.fingerprint([batch])}
    }
    return Raise(score, exchanged, data)


def scores_or_reason(model: Model, **options: int) -> tuple[Raise | None, str]:
    """`token_raise`, or None and why it cannot be measured."""
    try:
        return token_raise(model, **options), ""
    except InterpError as error:
        return None, str(error)


def _prompts(model: Model, *, n_prompts: int, length: int, seed: int) -> tuple[Batch, int]:
    """Random distinct tokens behind what the model's prompts begin with; half of the vocabulary at most."""
    start = int(tasks.bos_id(model, "default") is not None)
    room = min(length, len(tasks.ordinary_tokens(model)) // 2, (model.info.context or length + start) - start)
    if room < LEAST:
        raise NotApplicable(f"copying on what heads write asks for {LEAST} distinct tokens and as many others")
    return tasks.random_prompts(model, n=n_prompts, length=room + start, bos="default", seed=seed), start


def _others(model: Model, batch: Batch, *, n_tokens: int, seed: int) -> Int[Tensor, " other"]:
    """Sampled ordinary tokens; those that a prompt has are masked there."""
    pool = tasks.ordinary_tokens(model)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return pool[order[: max(n_tokens, 2 * batch.ids.shape[1])]]


def _reader(
    model: Model, own: Int[Tensor, "prompt token"], others: Int[Tensor, " other"], start: int
) -> Callable[[Float[Tensor, "prompt pos head d_model"]], Float[Tensor, "two prompt head"]]:
    """Function from a layer's head writes to both scores, so that no write is kept."""
    w = model.weights()
    columns = w.source.columns(others).T.float()  # d_model other
    mean = columns.mean(-1, keepdim=True)
    seen = torch.stack([w.source.columns(ids).T.float() - mean for ids in own])  # prompt d_model token
    columns = columns - mean
    absent = ~(own[:, :, None] == others).any(1)  # prompt other
    before = torch.ones(own.shape[1], own.shape[1], dtype=torch.bool).tril()
    of_next = ~(own[:, :, None] == own.roll(1, 0)[:, None]).any(1)  # prompt token

    def read(writes: Tensor) -> Tensor:
        x = writes[:, start:].to(columns.device).float()
        x = x if w.final_norm is None else w.final_norm.to(columns.device).linear(x)
        rest = _mean_raise(x @ columns, absent[:, None, None])
        own_raise = torch.einsum("pihd,pdt->piht", x, seen)
        next_raise = torch.einsum("pihd,pdt->piht", x, seen.roll(1, 0))
        parts = (_mean_raise(own_raise, before[:, None]), _mean_raise(next_raise, of_next[:, None, None]))
        return torch.stack([(part - rest) / (part + rest) for part in parts])

    return read


def _mean_raise(
    logits: Float[Tensor, "prompt pos head token"], counted: Bool[Tensor, "..."]
) -> Float[Tensor, "prompt head"]:
    """Mean of what is above 0 over positions and the tokens counted."""
    counted = counted.expand(len(logits), logits.shape[1], 1, logits.shape[3])
    return (logits.relu() * counted).sum((1, 3)) / counted.sum((1, 3))
