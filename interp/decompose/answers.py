"""Answers as token ids, and means over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import NotApplicable, TaskError
from interp.model import Model

Answers = int | str | Sequence[int | str] | Tensor


def token_ids(model: Model, answers: Answers, size: int) -> Int[Tensor, "batch k"]:
    """Ids of one answer per prompt, or of k where a tensor [batch k] gives so many (-1 fills up).

    Raises:
        TaskError: a text that is not one token, an id outside the vocabulary, or not one answer per prompt.
    """
    if isinstance(answers, Tensor):
        ids = answers.cpu().long()
    elif isinstance(answers, int | str):
        ids = torch.tensor([token_id(model, answers)] * size)
    elif isinstance(answers, Iterable):
        ids = torch.tensor([token_id(model, x) for x in answers])
    else:
        raise TaskError(f"answers are token ids or texts, one for all prompts or one a prompt; got {answers!r:.40}")
    ids = ids.expand(size) if ids.ndim == 0 else ids
    ids = ids[:, None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or len(ids) != size:
        raise TaskError(f"answers of shape {tuple(ids.shape)} for {size} prompts; give one answer, or one per prompt")
    if model.info.n_logits == 0:
        raise NotApplicable(
            f"{model.info.name}: an encoder gives no logits of answers; load its decoder (stack='decoder')"
        )
    n_logits = model.info.n_logits or model.info.d_vocab
    if int(ids.max()) >= n_logits or int(ids.min()) < -1 or bool((ids < 0).all(1).any()):
        raise TaskError(f"answers {ids.tolist()}: expected ids from 0 to {n_logits - 1}, one at least per prompt")
    return ids


def mean_over(of: Callable[[Tensor], Tensor], ids: Int[Tensor, "batch k"]) -> Float[Tensor, "batch ..."]:
    """Mean of a quantity per token over each prompt's ids."""
    real = ids >= 0
    values = of(ids.clamp(min=0).flatten()).unflatten(0, ids.shape)
    weight = (real / real.sum(1, keepdim=True)).to(values)
    return (values * weight.view(*weight.shape, *(1,) * (values.ndim - 2))).sum(1)


def token_id(model: Model, answer: int | str | Tensor) -> int:
    """Id of an answer that is one token; ids are checked against the logits there are.

    Raises:
        TaskError: a text of several tokens (names the form of it that is one: with, or without, a space before it) or
            unknown to the tokenizer, or an id that has no logit.
    """
    if isinstance(answer, Integral) or (isinstance(answer, Tensor) and not answer.is_floating_point()):
        n_logits, number = model.info.n_logits or model.info.d_vocab, int(answer)
        if isinstance(answer, bool) or not 0 <= number < n_logits:
            raise TaskError(f"answer {answer}: expected ids from 0 to {n_logits - 1}")
        return number
    if not isinstance(answer, str):
        raise TaskError(f"an answer is a text or a token id; got {type(answer).__name__}: {answer!r:.40}")
    try:
        return model.single_token(answer)
    except TaskError as error:
        raise TaskError(f"answer {error}") from error
