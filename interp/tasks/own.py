"""Two prompts of one's own as a task: tokens side by side, answers by a stated rule, roles by position or by word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from interp.batch import Batch, Prompts
from interp.decompose.answers import token_id
from interp.errors import TaskError, nearest
from interp.model import Model
from interp.tasks.metrics import AnyMetric
from interp.tokens.texts import bare_ids, token_texts

OneOrMore = int | str | Sequence[Any] | Tensor
"""An answer for all prompts, one for each, or several for each (a list in the list, or ids [batch k]; -1 fills up)."""
Place = int | str | Sequence[int] | Tensor
"""Where a role stands: a position in all prompts, one for each, or the text of its token."""


RULES = ("one", "first", "all")
"""What an answer of several tokens stands for: nothing (it is refused), its first token, or each token fed in."""


def pair_parts(
    model: Model,
    clean: Prompts,
    corrupt: Prompts,
    answer: OneOrMore,
    wrong: OneOrMore | None = None,
    *,
    roles: Mapping[str, Place] | None = None,
    metric: AnyMetric | None = None,
    templates: Sequence[str] | None = None,
    spans: Mapping[str, Any] | None = None,
    answer_tokens: str = "one",
    name: str = "pair",
    corruption: str = "own",
) -> dict[str, Any]:
    """What `collate` takes for a task of one's own prompts; arguments and errors of `interp.pair`."""
    batch = model.batch(Batch.of(clean, model.tokenizer, keep_end=not model.info.causal, spans=spans))
    rows, twins = _rows(batch), _rows(model.batch(corrupt))
    if len(rows) != len(twins):
        raise TaskError(f"{len(rows)} clean prompts and {len(twins)} corrupted ones: give as many of each")
    for i, (row, twin) in enumerate(zip(rows, twins, strict=True)):
        _side_by_side(model, i, row, twin)
    if rows == twins:
        raise TaskError("clean and corrupted prompts are the same tokens: there is nothing to patch")
    if answer_tokens not in RULES:
        raise TaskError(
            f"unknown rule {answer_tokens!r} for answers of several tokens; {nearest(answer_tokens, RULES)}"
        )
    if answer_tokens == "all" and wrong is not None:
        raise TaskError(
            "answers of several tokens, each fed in, are judged by their own probability: leave `wrong` out, or "
            "compare first tokens (answer_tokens='first')"
        )
    fed_answers = _whole_answers(model, answer, len(rows)) if answer_tokens == "all" else []
    firsts = {"first": answer_tokens == "first"}
    right_ids = fed_answers or _answers(model, answer, len(rows), "answer", **firsts)
    wrong_ids: list[list[int]] = [[]] * len(rows)
    if wrong is not None:
        wrong_ids = _answers(model, wrong, len(rows), "wrong", **firsts)
    for i, (right, other) in enumerate(zip(right_ids, wrong_ids, strict=True)):
        if set(right) & set(other):
            raise TaskError(f"prompt {i}: the token {min(set(right) & set(other))} is a right and a wrong answer")
    if templates is not None and len(templates) != len(rows):
        raise TaskError(f"{len(templates)} templates for {len(rows)} prompts; give the name of each prompt's")
    places = {role: _positions(model, role, place, rows) for role, place in (roles or {}).items()}
    default = "logit_diff" if wrong is not None else "loss_nats" if fed_answers else "prob"
    parts = {
        "name": name,
        "pairs": list(zip(rows, twins, strict=True)),
        "answers": right_ids,
        "wrong": wrong_ids,
        "roles": [{role: at[i] for role, at in places.items()} for i in range(len(rows))],
        "templates": [name] * len(rows) if templates is None else list(templates),
        "spans": batch.padded_on("right").to("cpu").spans,
        "corruption": corruption,
        "metric": default if metric is None else metric,
    }
    return _fed(parts, fed_answers) if fed_answers else parts


def _fed(parts: dict[str, Any], answers: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Teacher forcing: a pair for each token of an answer, behind the tokens before it; their mean is the answer's."""
    steps = [(i, k) for i, answer in enumerate(answers) for k in range(len(answer))]
    width = max(len(parts["pairs"][i][0]) + k for i, k in steps)
    rows = [i for i, _ in steps]
    return {
        **parts,
        "pairs": [tuple([*side, *answers[i][:k]] for side in parts["pairs"][i]) for i, k in steps],
        "answers": [[answers[i][k]] for i, k in steps],
        "wrong": [[]] * len(steps),
        "roles": [parts["roles"][i] for i in rows],
        "templates": [parts["templates"][i] for i in rows],
        "spans": {name: pad(mask[rows], (0, width - mask.shape[1])) for name, mask in parts["spans"].items()},
        "record": {"answer_tokens": "all", "n_answers": len(answers)},
    }


def _whole_answers(model: Model, answers: OneOrMore, size: int) -> list[list[int]]:
    """All ids of each prompt's answer, a text or one id."""
    one = isinstance(answers, str) or not isinstance(answers, Sequence | Tensor | np.ndarray)
    entries: list[Any] = [answers] * size if one else list(answers)  # type: ignore[arg-type]  # here a sequence
    if len(entries) != size:
        raise TaskError(f"{len(entries)} entries of `answer` for {size} prompts: give one for each prompt")
    if any(isinstance(x, list | tuple) for x in entries):
        raise TaskError("answers of several tokens: give one text for each prompt, no list of right ones")
    ids = [bare_ids(x, model.tokenizer) if isinstance(x, str) else [token_id(model, x)] for x in entries]
    if not all(ids):
        raise TaskError(f"prompt {[bool(x) for x in ids].index(False)} has no entry in `answer`")
    return ids


def _rows(batch: Batch) -> list[list[int]]:
    """Ids of each prompt, padding left out."""
    return [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]


def _side_by_side(model: Model, number: int, clean: list[int], corrupt: list[int]) -> None:
    if len(clean) == len(corrupt):
        return
    first = next(
        (i for i, (a, b) in enumerate(zip(clean, corrupt, strict=False)) if a != b), min(len(clean), len(corrupt))
    )
    sides = (" ".join(_texts(model, side[first : first + 4])) or "nothing more" for side in (clean, corrupt))
    raise TaskError(
        f"prompt {number}: the clean prompt has {len(clean)} tokens, the corrupted one {len(corrupt)}; they part at "
        f"token {first} ({', '.join(sides)}): change one by words of as many tokens"
    )


def _texts(model: Model, ids: Sequence[int]) -> list[str]:
    texts = token_texts(ids, model.tokenizer)
    return texts if model.tokenizer is None else [repr(text) for text in texts]


def _answers(model: Model, answers: OneOrMore, size: int, what: str, *, first: bool = False) -> list[list[int]]:
    """Ids of every prompt's answers; of texts of several tokens the first one's, if that is the rule."""

    def id_of(answer: Any) -> int:
        if first and isinstance(answer, str) and (ids := bare_ids(answer, model.tokenizer)):
            return token_id(model, ids[0])
        return token_id(model, answer)

    if isinstance(answers, str) or not isinstance(answers, Sequence | Tensor | np.ndarray):
        return [[id_of(answers)]] * size
    entries = list(answers) if isinstance(answers, Sequence) else answers.tolist()
    entries = entries if isinstance(entries, list) else [entries] * size  # a number in a tensor
    if len(entries) != size:
        raise TaskError(
            f"{len(entries)} entries of `{what}` for {size} prompts: give one for each prompt, several right ones of a "
            "prompt as a list in the list"
        )
    several = [list(x) if isinstance(x, list | tuple | Tensor) else [x] for x in entries]
    ids = [[id_of(x) for x in entry if x != -1] for entry in several]
    if not all(ids):
        raise TaskError(f"prompt {[bool(entry) for entry in ids].index(False)} has no entry in `{what}`")
    return ids


def _positions(model: Model, role: str, place: Place, rows: Sequence[Sequence[int]]) -> list[int]:
    """Where a role stands in each prompt."""
    if isinstance(place, str):
        return [_of_word(model, role, place, number, row) for number, row in enumerate(rows)]
    entries = [place] * len(rows) if isinstance(place, int) else [int(x) for x in place]
    if len(entries) != len(rows):
        raise TaskError(f"role {role!r}: {len(entries)} positions for {len(rows)} prompts; give one, or one for each")
    for number, (at, row) in enumerate(zip(entries, rows, strict=True)):
        if not -len(row) <= at < len(row):
            raise TaskError(f"role {role!r}: position {at} is outside prompt {number} of {len(row)} tokens")
    return [at % len(row) for at, row in zip(entries, rows, strict=True)]


def position_of(model: Model, role: str, word: str, prompt: Any, number: int) -> int:
    """Where the one token of this text stands in a prompt, as `model.batch` reads it; `number` is for the error.

    Raises:
        TaskError: it is not there, or several times.
    """
    (row,) = _rows(model.batch(prompt if isinstance(prompt, str) else [list(prompt)]))
    return _of_word(model, role, word, number, row)


def _of_word(model: Model, role: str, word: str, number: int, row: Sequence[int]) -> int:
    """The one place of a token, spaces around it left aside."""
    if model.tokenizer is None:
        raise TaskError(f"role {role!r}: this checkpoint has no tokenizer; give a position instead of {word!r}")
    at = [i for i, text in enumerate(token_texts(row, model.tokenizer)) if text.strip() == word.strip()]
    if len(at) != 1:
        where = f"at positions {', '.join(map(str, at))}" if at else f"not among {', '.join(_texts(model, row))}"
        raise TaskError(f"role {role!r}: the token {word!r} stands {where} in prompt {number}; give its position")
    return at[0]
