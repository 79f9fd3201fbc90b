"""A fact that depends on a time: two heads bring subject and time together, an MLP knows what goes with both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.components import ARROW, Edge, head_name, mlp_name, parse_head
from interp.zoo.planted.mechanisms.base import Mechanism, Place, Slot, winner
from interp.zoo.planted.mechanisms.copying import LENGTH, MATCH_GAIN, with_bos
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.recall import HALF
from interp.zoo.planted.mechanisms.sketch import LOGIT_GAIN, Sketch

MARK = 1 / 4
"""Weight of a mark: small, so that it hardly changes the norm in front of the MLP."""


@dataclass(frozen=True, kw_only=True)
class Dated(Mechanism):
    """At `<when>`, one head attends to the subject and one to the time; an MLP looks up what goes with the two.

    The heads mark whom and when at the last position; the MLP of the later one's layer has a neuron for each pair,
    which fires where both are there. Nothing else in the model depends on a time.
    Expected: attention on the subject, and on the time.
    """

    subjects: tuple[int, ...] = (18, 19, 26, 27)
    times: tuple[int, ...] = (28, 29)
    answers: tuple[tuple[int, ...], ...] = ((30, 31), (32, 34), (37, 38), (39, 42))
    """Numbers of words: for each subject, what goes with it at each time."""

    name: ClassVar[str] = "dated"
    table: ClassVar[str] = "dated_table"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("dated_subject"), Slot("dated_time"))
    named: ClassVar[tuple[str, ...]] = ("dated_input", "dated_source")

    def __post_init__(self) -> None:
        """Refuse a table with gaps, and words that would stand for two things."""
        if len(self.answers) != len(self.subjects) or any(len(row) != len(self.times) for row in self.answers):
            raise ValueError(
                f"Dated needs an answer for each of {len(self.subjects)} subjects and {len(self.times)} times"
            )
        flat = self._numbers()
        if len(set(flat)) != len(flat):
            raise ValueError("a word stands twice in Dated: what it means would be ambiguous")

    def _numbers(self) -> tuple[int, ...]:
        return (*self.subjects, *self.times, *(i for row in self.answers for i in row))

    def lookup(self, vocab: Vocabulary) -> dict[tuple[int, int], int]:
        """(subject, time) -> answer, as ids."""
        return {
            (vocab.word(s), vocab.word(t)): vocab.word(answer)
            for s, row in zip(self.subjects, self.answers, strict=True)
            for t, answer in zip(self.times, row, strict=True)
        }

    def words(self) -> int:
        """Up to the last word of the table."""
        return 1 + max(self._numbers())

    def neurons(self) -> int:
        """One per subject and time."""
        return len(self.subjects) * len(self.times)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """Whom and when; answers go where copies go."""
        return {"whom": len(self.subjects), "when": len(self.times), "copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: cue against any subject, any time. OV: token -> whom, when. MLP: both -> answer."""
        vocab = sketch.vocab
        for role, part, numbers in (("dated_subject", "whom", self.subjects), ("dated_time", "when", self.times)):
            ids = [vocab.word(i) for i in numbers]
            head = sketch.head(places[role])
            head.match(sketch.tokens([vocab.cue("<when>")]), sketch.tokens(ids), gain=MATCH_GAIN)
            head.park(answers="<when>")
            head.move(sketch.basis("token", ids), sketch.basis(part), gain=MARK)
        layer = max(layer for layer, _ in places.values())
        both = (sketch.basis("whom").sum(0) + sketch.basis("when").sum(0))[None]
        for whom, row in zip(sketch.basis("whom"), self.answers, strict=True):
            for when, answer in zip(sketch.basis("when"), row, strict=True):
                # 1 where both are there, below 1/2 otherwise. Half of what is taken off is the marks themselves: a norm
                # that shrinks them then changes the answer less.
                marks = (whom + when)[None] - 3 / 8 * both
                read = marks / MARK - sketch.constant / 4
                sketch.neuron(layer, read=read, write=HALF * sketch.basis("copied", [answer]))

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """Embed -> both heads -> the later one's MLP -> logits."""
        heads = [names[slot.role] for slot in self.slots]
        mlp = mlp_name(max(parse_head(head)[0] for head in heads))
        return [
            *(Edge("embed", head, port) for head in heads for port in ("q", "k", "v")),
            *(Edge(head, mlp, "in") for head in heads),
            Edge(mlp, "logits", "in"),
        ]

    def other_parts(self, names: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        """Both heads as inputs of the MLP; the tokens that those of its own layer bring from, by their role there."""
        places = {
            role: parse_head(names[slot.role]) for slot, role in zip(self.slots, ("SUBJECT", "TIME"), strict=True)
        }
        layer = max(layer for layer, _ in places.values())
        return {
            "dated_input": [f"{head_name(*place)}{ARROW}{mlp_name(layer)}" for place in places.values()],
            "dated_source": [f"{mlp_name(layer)}<{role}" for role, (own, _) in places.items() if own == layer],
        }

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """A subject and a time among other words, then `<when>`; the answer is what goes with both."""
        generator = torch.Generator().manual_seed(seed)
        table = torch.tensor([[*pair, answer] for pair, answer in self.lookup(vocab).items()])
        rows = table[torch.randint(len(table), (n,), generator=generator)]
        words = vocab.draw(n, LENGTH, generator=generator, without=tuple(table.flatten().tolist()))
        at = torch.rand(n, LENGTH - 1, generator=generator).topk(2).indices + 1
        words.scatter_(1, at, rows[:, :2])
        return Task(with_bos(vocab, words, torch.full((n,), vocab.cue("<when>"))), rows[:, 2], 1 / len(table))

    def expected(self) -> Mapping[str, float]:
        """One key scores the gain, all others 0."""
        return dict.fromkeys(("dated_subject", "dated_time"), winner(MATCH_GAIN, LENGTH + 1))

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """Nothing but the answer is written, by one neuron with input 40 (5/4 p - 3/4), p being each head's share."""
        activation = 2 * (5 / 4 * winner(MATCH_GAIN, LENGTH + 1) - 3 / 4)
        return dict.fromkeys(("dated_subject", "dated_time", self.table), HALF * LOGIT_GAIN * activation)
