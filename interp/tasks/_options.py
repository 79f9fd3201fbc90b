"""Answers among options that stand in the prompt, lettered or named, and the probability that they get together."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NotApplicable, TaskError, nearest
from interp.model import Model
from interp.tasks.haystacks import dataset
from interp.tasks.metrics import AnswerKey, answer_logits
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.synthetic import bos_id, ordinary_tokens

LETTERS = "ABCDEFGH"
ASKED = ("letter", "name")
"""What is asked for: the letter of an option whose name is said, or the name of one whose letter is said."""
HEAD, ITEM, ASK = "Options:", "{letter} is {name}.", {"letter": "The letter of {name} is", "name": "{letter} is"}


def options(
    model: Model,
    *,
    n: int = 32,
    n_options: int = 4,
    asked: str = "name",
    bos: str = "default",
    seed: int = 0,
) -> PromptTask:
    """Prompts that list options and ask for one of them; the twin asks for another one of the same list.

    Models that read the words get "Options: A is red. B is lamp. ... The letter of lamp is", others pairs of random
    tokens and one of a pair again. Wrong answers are those of the other options. Spans: "option 1" ..., "right",
    the one asked for, and "question".

    Args:
        model: whose tokens are used.
        n: prompts.
        n_options: options in each, 2 to 8.
        asked: "letter" or "name".
        bos: "default", "forced" or "none".
        seed: of everything that is drawn.

    Raises:
        NotApplicable: too few distinct tokens, or a context that is too short.
        TaskError: an unknown kind of question, or a number of options that is none of these.
    """
    if asked not in ASKED:
        raise TaskError(f"unknown kind of question {asked!r}; {nearest(str(asked), ASKED)}")
    if not 2 <= n_options <= len(LETTERS):  # noqa: PLR2004
        raise TaskError(f"{n_options} options; a prompt has 2 to {len(LETTERS)}")
    rng, first = Random(seed), bos_id(model, bos)
    words = _words(model)
    rows = [_row(model, rng, words, n_options, asked, first) for _ in range(n)]
    longest = max(len(row["clean"]) for row in rows)
    if model.info.context is not None and longest > model.info.context:
        raise NotApplicable(f"{n_options} options take {longest} tokens; the context has {model.info.context}")
    return collate(
        "options",
        [(row["clean"], row["corrupt"]) for row in rows],
        answers=[row["answers"] for row in rows],
        wrong=[row["wrong"] for row in rows],
        roles=[{"RIGHT": row["at"]} for row in rows],
        templates=[asked] * n,
        spans={name: [row["spans"][name] for row in rows] for name in rows[0]["spans"]},
        corruption="another option",
        metric="logit_diff",
        record={"source": "pairs of random tokens" if words is None else "words", "bos": bos, "seed": seed},
    )


def option_mass(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """sum over options of softmax(l)[option] at each prompt's END: the right answer and the wrong ones that are named.

    1 less this is what goes to no option, the most that other wordings of them can have taken.
    """
    at = answer_logits(logits, task)
    ids = torch.cat([task.answers, task.wrong], dim=1).to(at.device)
    p = at.softmax(-1).gather(1, ids.clamp(min=0))
    return (p * (ids >= 0)).sum(1)


def _words(model: Model) -> tuple[list[int], list[int]] | None:
    """Letters and words that are one token behind a space, where the tokenizer knows what is said; None otherwise."""
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        return None
    said = _encode(tokenizer, " ".join([HEAD, ITEM, *ASK.values()]).format(letter="A", name="A"))
    letters, names = ([_encode(tokenizer, f" {w}") for w in some] for some in (LETTERS, dataset()["words"]))
    unknown, top = tokenizer.unk_token_id, model.info.d_vocab
    known = [[t[0] for t in some if len(t) == 1 and t[0] != unknown and t[0] < top] for some in (letters, names)]
    if unknown in said or max(said, default=top) >= top or len(known[0]) < len(LETTERS) or len(known[1]) < len(LETTERS):
        return None
    return known[0], known[1]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _row(
    model: Model, rng: Random, words: tuple[list[int], list[int]] | None, n: int, asked: str, first: int | None
) -> dict[str, Any]:
    """Ids, answers and spans of one prompt and its twin."""
    if words is None:
        pool = ordinary_tokens(model).tolist()
        if len(pool) < 2 * n:
            raise NotApplicable(f"{2 * n} distinct tokens are needed for {n} options; the vocabulary has {len(pool)}")
        drawn = rng.sample(pool, 2 * n)
        letters, names = drawn[:n], drawn[n:]
    else:
        letters, names = words[0][:n], rng.sample(words[1], n)
    right, other = rng.sample(range(n), 2)
    ids = ([] if first is None else [first]) + _written(model, words, HEAD, None, None)
    spans: dict[str, tuple[int, int]] = {}
    for i, (letter, name) in enumerate(zip(letters, names, strict=True)):
        begin = len(ids)
        ids = [*ids, *_written(model, words, ITEM, letter, name)]
        spans[f"option {i + 1}"] = (begin, len(ids))
    clean, corrupt = (
        [*ids, *_written(model, words, ASK[asked], letters[i], names[i], only=asked)] for i in (right, other)
    )
    spans |= {"right": spans[f"option {right + 1}"], "question": (len(ids), len(clean))}
    answers: Sequence[int] = letters if asked == "letter" else names
    wrong = [token for i, token in enumerate(answers) if i != right]
    begin, end = spans["right"]
    at = begin + clean[begin:end].index(answers[right])
    return {
        "clean": clean, "corrupt": corrupt, "answers": [answers[right]], "wrong": wrong, "spans": spans, "at": at
    }  # fmt: skip


def _written(
    model: Model, words: tuple[list[int], list[int]] | None, text: str, letter: int | None, name: int | None,
    *, only: str | None = None,
) -> list[int]:  # fmt: skip
    """A text with a letter's and a name's token in it; the tokens alone where words are not read."""
    slots = {"{letter}": letter, "{name}": name}
    if words is None:
        asked_for = {"letter": "{letter}", "name": "{name}"}.get(only or "")
        return [token for slot, token in slots.items() if slot != asked_for and token is not None]
    ids: list[int] = []
    rest = text
    while rest:
        at = min((rest.find(slot) for slot in slots if slot in rest), default=len(rest))
        ids += _encode(model.tokenizer, rest[:at].rstrip()) if rest[:at].strip() else []
        slot = next((s for s in slots if rest[at:].startswith(s)), "")
        ids += [token] if slot and (token := slots[slot]) is not None else []
        rest = rest[at + len(slot) :]
    return ids
