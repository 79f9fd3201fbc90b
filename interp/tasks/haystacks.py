"""Haystacks and needle formats: sentences or random tokens, in a model's own ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from string import Formatter
from typing import Any, NamedTuple

from interp import data
from interp.errors import NotApplicable, TaskError, UnknownTask, nearest
from interp.model import Model
from interp.tasks.synthetic import bos_id, ordinary_tokens

HAYSTACKS = ("prose", "tokens")
LEAST = 16
"""Tokens of haystack below which finding something is no feat."""


@dataclass(frozen=True)
class Format:
    """Wording of a needle and of the question for it.

    Attributes:
        needle: text with `{value}`, and with `{key}` where several needles are to be told apart.
        question: what stands before the answer: the needle's own beginning for models that complete text.
        haystack: "prose", sentences of `datasets/needles` (keys and values are its words); "tokens", distinct random
            ordinary tokens (keys and values are such tokens as well).
        text: to hide needles in instead of the data set's sentences; one paragraph a line.
    """

    needle: str
    question: str
    haystack: str = "prose"
    text: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """A value to be found, and a known haystack."""
        if self.haystack not in HAYSTACKS:
            raise UnknownTask(f"unknown haystack {self.haystack!r}; {nearest(self.haystack, HAYSTACKS)}")
        if "{value}" not in self.needle or "{value}" in self.question:
            raise TaskError(f"the needle must hold {{value}} and the question must not; got {self!r}")
        if ("{key}" in self.needle) != ("{key}" in self.question):
            raise TaskError(f"{{key}} stands in both needle and question or in neither; got {self!r}")


PAIRS = Format("{key}{value}", "{key}", "tokens")
"""Key-value pairs: what models that were never taught a question can learn from the prompt itself."""


@cache
def dataset() -> Mapping[str, Any]:
    """Content of `datasets/needles/needles.json`."""
    return data.read_json(data.path("needles", "needles.json"))


class Statement(NamedTuple):
    """A needle or a question in tokens, and where the value begins and ends in it (for a question: at its end)."""

    ids: list[int]
    value: slice


@dataclass(frozen=True, eq=False)
class Writer:
    """Writes words, needles and haystack in a model's tokens."""

    format: Format
    length: int
    bos: int | None
    tokenizer: Any

    def draw(self, rng: Random, count: int) -> list[Any]:
        """Different keys and values."""
        raise NotImplementedError

    def tell(self, text: str, key: Any, value: Sequence[Any]) -> Statement:
        """A text with its slots filled."""
        raise NotImplementedError

    def haystack(self, rng: Random, room: int, *, avoid: Sequence[Any]) -> list[list[int]]:
        """Pieces between which a needle may stand, `room` tokens in all."""
        raise NotImplementedError


def writer_for(model: Model, form: Format, *, length: int, bos: str) -> Writer:
    """Writer of this format for a model, in prompts of at most `length` tokens; NotApplicable where there is none."""
    first = bos_id(model, bos)
    if form.haystack == "prose":
        if model.tokenizer is None:
            raise NotApplicable("needles in prose need a tokenizer, and this checkpoint has none")
        return _Prose(form, length, first, model.tokenizer)
    pool = ordinary_tokens(model).tolist()
    return _Tokens(form, min(length, len(pool)), first, model.tokenizer, pool)


@dataclass(frozen=True, eq=False)
class _Tokens(Writer):
    """Random tokens, all different, so that nothing but the needle repeats itself."""

    pool: list[int]

    def draw(self, rng: Random, count: int) -> list[int]:
        if len(self.pool) < count + LEAST:
            raise NotApplicable(f"{count + LEAST} distinct tokens are needed; the vocabulary has {len(self.pool)}")
        return rng.sample(self.pool, count)

    def tell(self, text: str, key: int, value: Sequence[int]) -> Statement:
        ids: list[int] = []
        where = slice(0, 0)
        for literal, slot, _, _ in Formatter().parse(text):
            if literal.strip():
                if self.tokenizer is None:
                    raise TaskError(f"the format says {literal!r}, and this checkpoint has no tokenizer")
                ids += self.tokenizer(literal.strip(), add_special_tokens=False)["input_ids"]
            if slot == "value":
                where = slice(len(ids), len(ids) + len(value))
                ids += value
            elif slot == "key":
                ids.append(key)
        return Statement(ids, where)

    def haystack(self, rng: Random, room: int, *, avoid: Sequence[int]) -> list[list[int]]:
        candidates = [token for token in self.pool if token not in set(avoid)]
        return [[token] for token in rng.sample(candidates, min(room, len(candidates)))]


@dataclass(frozen=True, eq=False)
class _Prose(Writer):
    """Sentences; keys and values are common words that occur in none of them."""

    def draw(self, rng: Random, count: int) -> list[str]:
        return rng.sample(dataset()["words"], count)

    def tell(self, text: str, key: str, value: Sequence[str]) -> Statement:
        # A question ends before its value, without the space: tokens of most vocabularies begin with theirs.
        text = (
            text if text.endswith(" {value}") or not text.endswith("{value}") else text[: -len("{value}")] + " {value}"
        )
        lead_text = text.partition("{value}")[0].rstrip(" ").format(key=key)
        full_text = text.partition("{value}")[0].format(key=key) + " ".join(value)
        prefix, upto = self._encode(lead_text), self._encode(full_text)
        start = next(
            (i for i, (a, b) in enumerate(zip(prefix, upto, strict=False)) if a != b), min(len(prefix), len(upto))
        )
        whole = self._encode(text.format(key=key, value=" ".join(value)))
        # A tokenizer that merges the value's end with what follows would hide where it ends: then it is cut there.
        tail = whole[len(upto) :] if whole[: len(upto)] == upto else self._encode(text.partition("{value}")[2])
        return Statement([*upto, *tail], slice(start, len(upto)))

    def haystack(self, rng: Random, room: int, *, avoid: Sequence[str]) -> list[list[int]]:
        pieces: list[list[int]] = []
        for piece in self._pieces(rng):
            pieces.append(piece[:room])
            room -= len(pieces[-1])
            if room <= 0:
                break
        return pieces

    def _pieces(self, rng: Random) -> Iterator[list[int]]:
        """Sentences for ever: the caller's from a random line on, over and over, or new ones of the data set."""
        if self.format.text is None:
            while True:
                yield from self._batch([_sentence(rng) for _ in range(16)])
        lines = self._batch([line for line in self.format.text.splitlines() if line.strip()])
        if not any(lines):
            raise TaskError("the haystack's text is empty")
        yield from itertools.islice(itertools.cycle(lines), rng.randrange(len(lines)), None)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    def _batch(self, lines: list[str]) -> list[list[int]]:
        return [list(ids) for ids in self.tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]]


def _sentence(rng: Random) -> str:
    lists = dataset()
    parts = []
    for literal, slot, _, _ in Formatter().parse(rng.choice(lists["sentences"])):
        word = "" if slot is None else rng.choice(lists["slots"][slot.lower()])
        parts.append(literal + (word[:1].upper() + word[1:] if slot and slot[0].isupper() else word))
    return "".join(parts)
