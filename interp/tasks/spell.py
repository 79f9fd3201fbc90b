"""`Speller`: words as token ids, for any tokenizer, however it writes spaces or numbers.

What a word's tokens are is read off texts that differ by that word alone, so "one token" always means: one token in
this place. A prompt is refused where a role's words do not end at a token's end, or where the twins do not align;
it is then drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interp.errors import NotApplicable
from interp.model import Model
from interp.tasks.source import Template
from interp.tasks.synthetic import bos_id

MUTE = "needs text, and this checkpoint has no tokenizer"
"""Why a task of text cannot be asked."""


@dataclass(frozen=True)
class Example:
    """One pair in words: a template filled in twice."""

    template: Template
    clean: Mapping[str, str]
    corrupt: Mapping[str, str]
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    key: str
    """Decides whether the example is held out."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Slot -> role, for slots whose role depends on the variant."""
    variant: str = ""
    """Kind of sentence within the template, as ABBA; part of the template's name."""
    after: Mapping[str, str] = field(default_factory=dict)
    """Role -> role it stands one token behind."""
    contexts: tuple[str, ...] = ()
    """Where given, answers are a closed class that may merge with the prompt ("17" + "00"): the token of one that does
    is read behind the first of these texts where it stays apart."""


@dataclass(frozen=True)
class EncodedPair:
    """One pair in ids."""

    clean: list[int]
    corrupt: list[int]
    answers: list[int]
    wrong: list[int]
    roles: dict[str, int]
    template: str


class Speller:
    """A model's tokenizer, asked about texts; BOS by policy, no other special token.

    Raises:
        NotApplicable: the checkpoint has no tokenizer.
    """

    def __init__(self, model: Model, *, bos: str) -> None:
        if model.tokenizer is None:
            raise NotApplicable(MUTE)
        self.tokenizer: Any = model.tokenizer
        first = bos_id(model, bos)
        self.start = [] if first is None else [first]
        self.unknown = getattr(self.tokenizer, "unk_token_id", None)
        self._ids: dict[str, tuple[int, ...]] = {}

    def ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each text, without special tokens."""
        new_texts = [text for text in dict.fromkeys(texts) if text not in self._ids]
        if new_texts:
            encodings = self.tokenizer(new_texts, add_special_tokens=False, verbose=False)["input_ids"]
            self._ids |= {text: tuple(ids) for text, ids in zip(new_texts, encodings, strict=True)}
        return [self._ids[text] for text in texts]

    def tails(self, before: str, texts: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Tokens that each text adds behind `before`; None where it changes what stands there, or is unknown."""
        base, *whole = self.ids([before, *(before + text for text in texts)])
        tails = [ids[len(base) :] if ids[: len(base)] == base else None for ids in whole]
        return [None if tail is None or not tail or self.unknown in tail else tail for tail in tails]

    def lone_space(self, before: str, words: Sequence[str], *, joint: str = " ") -> int:
        """Tokens that the space before these words is, where it is the same by itself before every one; else 0."""
        if not joint:
            return 0
        space, *tails = self.tails(before, [joint, *(joint + word for word in words)])
        apart = space is not None and all(tail is not None and tail[: len(space)] == space for tail in tails)
        return len(space) if apart and space is not None else 0

    def single(self, words: Sequence[str], *, before: str = "the", joint: str = " ") -> tuple[str, ...]:
        """Those words that are one token in running text."""
        tails = self.tails(before, [joint + word for word in words])
        return tuple(word for word, tail in zip(words, tails, strict=True) if tail is not None and len(tail) == 1)

    def encode(self, example: Example, *, first_token: bool = False) -> EncodedPair | None:
        """The pair in ids; None where it does not align or an answer is not one token.

        With `first_token`, a longer answer is stood for by its first token, which must differ from the wrong ones'.
        """
        clean = self._prompt(example, example.clean)
        corrupt = self._prompt(example, example.corrupt)
        if clean is None or corrupt is None:
            return None
        (text, ids, places), (_, other, other_places) = clean, corrupt
        if len(ids) != len(other) or places != other_places or ids == other:
            return None
        joint = example.template.joint
        reader = self._closed_answers if example.contexts else self._answers
        answers, wrong = (
            reader(text, [joint + word for word in words], example.contexts or (), first_token=first_token)
            for words in (example.answers, example.wrong)
        )
        if answers is None or wrong is None or set(answers) & set(wrong):
            return None
        shift = len(self.start)
        roles = {role: shift + at for role, at in places.items()}
        roles |= {role: roles[base] + 1 for role, base in example.after.items()}
        name = f"{example.variant} {example.template.name}".strip()
        return EncodedPair([*self.start, *ids], [*self.start, *other], answers, wrong, roles, name)

    def _prompt(self, example: Example, words: Mapping[str, str]) -> tuple[str, tuple[int, ...], dict[str, int]] | None:
        text, ends = example.template.fill(words, example.roles)
        whole, *parts = self.ids([text, *(text[:end] for end in ends.values())])
        if self.unknown in whole or any(whole[: len(part)] != part for part in parts):
            return None
        return text, whole, {role: len(part) - 1 for role, part in zip(ends, parts, strict=True)}

    def _answers(
        self, text: str, continuations: Sequence[str], _: Sequence[str], *, first_token: bool
    ) -> list[int] | None:
        """Ids of the answers: the first behind the whole prompt, the others behind its last words alone."""
        tails = [*self.tails(text, continuations[:1]), *self.tails(_tail(text), continuations[1:])]
        if any(ids is None or (len(ids) > 1 and not first_token) for ids in tails):
            return None
        return list(dict.fromkeys(ids[0] for ids in tails if ids is not None))

    def _closed_answers(
        self, text: str, continuations: Sequence[str], contexts: Sequence[str], *, first_token: bool
    ) -> list[int] | None:
        first_ids: dict[str, int] = {}
        for before in (_tail(text), *contexts):
            open_continuations = [c for c in continuations if c not in first_ids]
            for continuation, ids in zip(open_continuations, self.tails(before, open_continuations), strict=True):
                if ids is not None and (len(ids) == 1 or first_token):
                    first_ids[continuation] = ids[0]
            if len(first_ids) == len(continuations):
                return [first_ids[c] for c in continuations]
            if not first_ids:  # a class of which no member is one token here is one token nowhere
                return None
        return None


def _tail(text: str) -> str:
    """The last two words: what an answer can merge with, and a little more."""
    return text[text.rfind(" ", 0, max(text.rstrip().rfind(" "), 0)) + 1 :]
