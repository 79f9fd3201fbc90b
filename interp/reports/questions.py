"""The user's own prompts, checked: what is asked of the model before any work is done on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from interp.batch import Batch
from interp.decompose.answers import token_ids
from interp.errors import TaskError
from interp.model import Model
from interp.several import several
from interp.tasks import fingerprint

LONGEST = 4096  # tokens of a prompt that is taken apart


@dataclass(frozen=True)
class Question:
    """A prompt of the user's with the answer that is looked for.

    Attributes:
        prompt: a text, or token ids.
        answer: the next token whose logit is explained, as text of one token or an id; the likeliest where None.
        wrong: the token it is compared with; the mean over the vocabulary where None.
    """

    prompt: Any
    answer: int | str | None = None
    wrong: int | str | None = None


@dataclass(frozen=True)
class TokenQuestion:
    """A question in token ids: it can be run. `chosen` tells that the model chose the answer itself."""

    ids: tuple[int, ...]
    answer: int
    wrong: int | None
    chosen: bool

    @property
    def fingerprint(self) -> str:
        """Hash of the prompt's token ids."""
        return fingerprint([Batch.of(list(self.ids))])


def token_questions(model: Model, prompts: Any) -> list[TokenQuestion]:
    """Each question checked; (prompt, answer) and (prompt, answer, wrong) stand for a `Question`.

    Raises:
        TaskError: a prompt that cannot be run, an answer that is not one token of this model, or a wrong answer that is
            the right one.
    """
    questions = several(prompts, "prompts", one=(str, Question, Mapping))
    return [_token_question(model, q if isinstance(q, Question) else _question(q)) for q in questions]


def question_line(question: TokenQuestion) -> dict[str, str]:
    """The line of the provenance table."""
    length = str(len(question.ids))
    return {
        "analysis": "direct attribution",
        "data": "own prompt",
        "prompts": "1",
        "lengths": length,
        "method": "final norm frozen",
        "hash": question.fingerprint,
    }


def _question(prompt: Any) -> Question:
    """From a bare prompt, or from a tuple that begins with one."""
    if not isinstance(prompt, tuple):
        return Question(prompt)
    if not 1 <= len(prompt) <= 3:
        raise TaskError(f"a question of {len(prompt)} parts; expected (prompt, answer) or (prompt, answer, wrong)")
    return Question(*prompt)


def _token_question(model: Model, question: Question) -> TokenQuestion:
    batch = model.batch(question.prompt)
    if len(batch.ids) != 1:
        raise TaskError(f"{len(batch.ids)} prompts where one was expected; ask one question for each")
    ids = batch.ids[0][batch.mask[0]].tolist()
    if len(ids) > LONGEST:
        raise TaskError(f"a prompt of {len(ids)} tokens; at most {LONGEST} are taken apart in a report")
    answer = None if question.answer is None else _token(model, question.answer)
    wrong = None if question.wrong is None else _token(model, question.wrong)
    by_model = answer is None
    if answer is None:
        answer = _likeliest(model, ids)
    if answer == wrong:
        raise TaskError(f"the wrong answer {question.wrong!r} is the right one: their difference is 0")
    return TokenQuestion(tuple(ids), answer, wrong, by_model)


def _token(model: Model, token: int | str) -> int:
    return int(token_ids(model, token, 1)[0, 0])


@torch.no_grad()
def _likeliest(model: Model, ids: list[int]) -> int:
    logits = model.run(ids).logits
    assert logits is not None  # the run has no `stop`
    return int(logits[0, -1].argmax())
