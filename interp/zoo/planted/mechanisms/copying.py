"""Heads that copy: previous token, induction, duplicate token, copy on request and its opposite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.components import Edge
from interp.zoo.planted.mechanisms.base import (
    EXPECTED_PERIOD,
    Mechanism,
    Place,
    Slot,
    difference,
    positional,
    stripe,
    winner,
)
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.sketch import LOGIT_GAIN, RATES, Sketch

PREVIOUS_GAIN, MATCH_GAIN, BAG_GAIN = 80.0, 16.0, 12.0
DUPLICATE_GAIN, SELF_PENALTY = 32.0, 16.0
WEAK_LOGIT, WEAKEST_LOGIT = 4.0, 2.0
"""What the previous token and the echo add to a logit: less than the 10 of a full copy."""
LENGTH = 24
"""Words in a prompt: long enough that a head without a target writes little of each."""


def with_bos(vocab: Vocabulary, *columns: torch.Tensor) -> torch.Tensor:
    """[prompt pos]: `<bos>` and the columns side by side."""
    n = len(columns[0])
    return torch.cat([torch.full((n, 1), vocab.bos), *(c if c.ndim == 2 else c[:, None] for c in columns)], 1)


def shuffled(tokens: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Each row in a random order of its own."""
    return tokens.gather(1, torch.rand(tokens.shape, generator=generator).argsort(1))


@dataclass(frozen=True, kw_only=True)
class PreviousToken(Mechanism):
    """Attends one position back and copies that token to `previous`.

    The logits read `previous` weakly, so that where nothing stronger speaks the model repeats the
    word before the current one: its task. Expected: p(i, i-1) on two copies of T words.
    """

    name: ClassVar[str] = "previous_token"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("previous_token", also=("copying", "repeats")),)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension per token."""
        return {"previous": len(vocab)}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: position alone, but `<bos>` at a cue. OV: token -> previous."""
        head = sketch.head(places["previous_token"])
        head.offset(1, gain=PREVIOUS_GAIN)
        head.park(gain=1.5 * PREVIOUS_GAIN)
        head.move(sketch.basis("token"), sketch.basis("previous"))
        words = sketch.vocab.words
        sketch.unembed[words] += WEAK_LOGIT * sketch.basis("previous", words)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """Embed -> v, -> logits; among words, where it looks depends on position alone."""
        own = names["previous_token"]
        return [Edge("embed", own, "v"), Edge(own, "logits", "in")]

    def beside(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """The query tells a cue from a word."""
        return [Edge("embed", names["previous_token"], "q")]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """Distinct words; the answer is the last but one."""
        words = vocab.draw(n, LENGTH, generator=torch.Generator().manual_seed(seed))
        return Task(with_bos(vocab, words), words[:, -2], 1 / vocab.n_words)

    def expected(self) -> Mapping[str, float]:
        """Soft-max of the positional score."""
        return {"previous_token": stripe(offset=1, gain=PREVIOUS_GAIN, shift=1)}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """What the head alone adds."""
        row = positional(gain=PREVIOUS_GAIN, shift=1, length=LENGTH + 1)[-1]
        return {"previous_token": WEAK_LOGIT * difference(vocab, row[-2], 1 - row[-2] - row[0])}


def copy_logit(keys: torch.Tensor, values: torch.Tensor, *, at: int, vocab: Vocabulary) -> float:
    """Logit difference that an induction head writes at the end of its task, the asked word being number `at`.

    `keys`[i, j] and `values`[i, j] are the weights of position j's token in what position i is matched by, and in
    what is copied from there. Where keys are zero the head is uniform.
    """
    cue, answer = at + 1, at + 2  # `<bos>` is in front; the asked word stands again at the end
    attention = (MATCH_GAIN * (keys[:, cue] + keys[:, -1])).softmax(-1)
    mixture = attention @ values
    return LOGIT_GAIN * difference(vocab, mixture[answer], mixture[1:].sum() - mixture[answer])


@dataclass(frozen=True, kw_only=True)
class Induction(Mechanism):
    """Attends to the positions whose `previous` is the current token and copies their token to `copied`.

    Near-uniform where there is none. Expected: p(i, i-T+1) on two copies of T words.
    """

    name: ClassVar[str] = "induction"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("induction", after=("previous_token",), also=("copying", "repeats")),)
    needs: ClassVar[tuple[str, ...]] = ("previous_token",)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension per word."""
        return {"copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: token against previous. OV: token -> copied -> logits."""
        words = sketch.vocab.words
        head = sketch.head(places["induction"])
        head.match(sketch.basis("token", words), sketch.basis("previous", words), gain=MATCH_GAIN)
        head.park()
        head.move(sketch.basis("token", words), sketch.basis("copied"))

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """The two-head circuit."""
        own, previous = names["induction"], names["previous_token"]
        return [
            Edge("embed", previous, "v"),
            Edge(previous, own, "k"),
            Edge("embed", own, "q"),
            Edge("embed", own, "v"),
            Edge(own, "logits", "in"),
        ]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """Distinct words, then an earlier one again; the answer is the word that followed it."""
        generator = torch.Generator().manual_seed(seed)
        words = vocab.draw(n, LENGTH, generator=generator)
        at = torch.randint(LENGTH - 4, (n, 1), generator=generator)
        return Task(with_bos(vocab, words, words.gather(1, at)), words.gather(1, at + 1)[:, 0], 1 / (LENGTH - 4))

    def expected(self) -> Mapping[str, float]:
        """e^G' / (e^G' + i) at query i, G' the gain times the previous-token head's share."""
        score = MATCH_GAIN * stripe(offset=1, gain=PREVIOUS_GAIN, shift=1)
        queries = range(EXPECTED_PERIOD + 1, 2 * EXPECTED_PERIOD + 1)
        return {"induction": sum(winner(score, i) for i in queries) / EXPECTED_PERIOD}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """The head writes it; without the previous-token head it is uniform, and the echo of `previous` is gone."""
        keys = positional(gain=PREVIOUS_GAIN, shift=1, length=LENGTH + 2)
        identity, last, places = torch.eye(LENGTH + 2).double(), keys[-1], range(LENGTH - 4)
        clean = [copy_logit(keys, identity, at=at, vocab=vocab) for at in places]
        without = [copy_logit(0 * keys, identity, at=at, vocab=vocab) for at in places]
        echo = [WEAK_LOGIT * difference(vocab, last[at + 2], 1 - last[0] - last[at + 2]) for at in places]
        own = sum(clean) / len(places)
        return {"induction": own, "previous_token": own + (sum(echo) - sum(without)) / len(places)}


@dataclass(frozen=True, kw_only=True)
class DuplicateToken(Mechanism):
    """Attends to the earlier copy of the current token, and to itself where there is none; copies it to `echo`.

    Nearby positions score less (see `SELF_PENALTY`), so copies must stand 10 or more apart.
    Expected: p(i, i-T) on two copies of T words.
    """

    name: ClassVar[str] = "duplicate_token"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("duplicate_token", also=("copying",)),)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension per word."""
        return {"echo": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: equal words, less a bump around the query itself. OV: token -> echo -> logits, weakly."""
        words = sketch.vocab.words
        head = sketch.head(places["duplicate_token"])
        head.match(sketch.basis("token", words), sketch.basis("token", words), gain=DUPLICATE_GAIN)
        head.offset(0, gain=-SELF_PENALTY)
        head.park()
        head.move(sketch.basis("token", words), sketch.basis("echo"))
        sketch.to_logits("echo", words, gain=WEAKEST_LOGIT)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """All from the embedding."""
        own = names["duplicate_token"]
        return [*(Edge("embed", own, port) for port in ("q", "k", "v")), Edge(own, "logits", "in")]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """Two words stand twice each, one of them last: which one is it? Chance 1/2."""
        generator = torch.Generator().manual_seed(seed)
        words = vocab.draw(n, LENGTH, generator=generator)
        last, other, rest = words[:, :1], words[:, 1:2], words[:, 2:]
        # Both pairs are far apart and have neighbours of their own, so that only the echo tells them apart.
        first = torch.cat([rest[:, :2], last, rest[:, 2:4], other, rest[:, 4:12]], 1)
        tokens = with_bos(vocab, first, rest[:, 12:14], rest[:, 14:16], other, rest[:, 16:20], last)
        flip = torch.rand(n, 1, generator=generator) < 0.5
        choices = torch.where(flip, torch.cat([other, last], 1), torch.cat([last, other], 1))
        return Task(tokens, last[:, 0], 1 / 2, choices)

    def expected(self) -> Mapping[str, float]:
        """Soft-max of the match and the bump."""
        score = stripe(offset=EXPECTED_PERIOD, gain=-SELF_PENALTY, content=DUPLICATE_GAIN)
        return {"duplicate_token": score}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """The head's attention on both places of the word, less that on both places of the other."""
        distance = LENGTH - torch.arange(LENGTH + 1).double()
        score = -SELF_PENALTY * torch.cos(torch.outer(distance, torch.tensor(RATES).double())).mean(-1)
        score[[3, LENGTH]] += DUPLICATE_GAIN
        row = score.softmax(-1)
        return {"duplicate_token": WEAKEST_LOGIT * (row[[3, LENGTH]].sum() - row[[6, 19]].sum()).item()}


@dataclass(frozen=True, kw_only=True)
class Copy(Mechanism):
    """At `<copy>`, attends to all words alike and copies them: the most frequent word wins.

    Expected: attention on all words together at the cue, 24 words long.
    """

    name: ClassVar[str] = "copy"
    cue: ClassVar[str] = "<copy>"
    strength: ClassVar[float] = 1.0
    slots: ClassVar[tuple[Slot, ...]] = (Slot("copy", also=("copying",)),)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """Shared with induction: what is there is said."""
        return {"copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: cue against any word. OV: token -> copied, with the mechanism's sign."""
        words, vocab = sketch.vocab.words, sketch.vocab
        head = sketch.head(places[self.name])
        head.match(sketch.tokens([vocab.cue(self.cue)]), sketch.tokens(words), gain=BAG_GAIN)
        head.park(answers=self.cue)
        head.move(sketch.basis("token", words), sketch.basis("copied"), gain=self.strength)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """All from the embedding."""
        own = names[self.name]
        return [*(Edge("embed", own, port) for port in ("q", "k", "v")), Edge(own, "logits", "in")]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """One word twelve times among twelve others, then `<copy>`; the answer is that word."""
        generator = torch.Generator().manual_seed(seed)
        words = vocab.draw(n, LENGTH // 2 + 1, generator=generator)
        frequent = words[:, 0]
        body = shuffled(torch.cat([words[:, 1:], frequent[:, None].expand(-1, LENGTH // 2)], 1), generator=generator)
        tokens = with_bos(vocab, body, torch.full((n,), vocab.cue(self.cue)))
        return Task(tokens, frequent, 1 / vocab.n_words)

    def expected(self) -> Mapping[str, float]:
        """All words score the gain; `<bos>` and the cue itself 0."""
        return {self.name: LENGTH / (LENGTH + 2 * math.exp(-BAG_GAIN))}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """Half of the attention is on the frequent word, half on others."""
        half = self.expected()[self.name] / 2
        return {self.name: LOGIT_GAIN * difference(vocab, half, half)}


@dataclass(frozen=True, kw_only=True)
class AntiCopy(Copy):
    """At `<avoid>`, attends to all words alike and takes their logits down: copy suppression.

    Expected: attention on all words together at the cue, 24 words long.
    """

    name: ClassVar[str] = "anti_copy"
    cue: ClassVar[str] = "<avoid>"
    strength: ClassVar[float] = -1.0
    slots: ClassVar[tuple[Slot, ...]] = (Slot("anti_copy"),)

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """One word twelve times among twelve others: of it and a word not seen, the latter. Chance 1/2."""
        base = super().task(vocab, seed=seed, n=n)
        generator = torch.Generator().manual_seed(seed)
        words = vocab.draw(n, LENGTH // 2 + 2, generator=generator)  # same draw, one word more
        fresh = words[:, -1]
        choices = shuffled(torch.stack([fresh, base.answers], 1), generator=generator)
        return Task(base.tokens, fresh, 1 / 2, choices)

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """The frequent word's logit is no longer taken down; the other's is 0 either way."""
        return {self.name: LOGIT_GAIN * self.expected()[self.name] / 2}
