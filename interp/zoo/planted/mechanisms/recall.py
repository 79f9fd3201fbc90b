"""Heads that answer from a list, a table or a needle: successor, fact, retrieval, what is told against a fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.components import Edge
from interp.zoo.planted.mechanisms.base import Mechanism, Place, Slot, difference, positional, winner
from interp.zoo.planted.mechanisms.copying import LENGTH, MATCH_GAIN, PREVIOUS_GAIN, with_bos
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.sketch import LOGIT_GAIN, Sketch

HALF = 0.5
"""Weight with which these heads write: where they are not asked, their diffuse output is small."""


def _with_one(vocab: Vocabulary, cue: str, items: torch.Tensor, avoid: tuple[int, ...], *, seed: int) -> torch.Tensor:
    """Random words, one of them replaced by the prompt's item, then the cue."""
    generator = torch.Generator().manual_seed(seed)
    n = len(items)
    words = vocab.draw(n, LENGTH, generator=generator, without=avoid)
    words[torch.arange(n), torch.randint(1, LENGTH, (n,), generator=generator)] = items
    return with_bos(vocab, words, torch.full((n,), vocab.cue(cue)))


@dataclass(frozen=True, kw_only=True)
class Successor(Mechanism):
    """At `<next>`, attends to the one ordinal word and writes the word after it in its class.

    MLP 0 turns an ordinal word into its place in the order (`ordinal`); the order itself is in the
    head's OV. The last of a class has no successor. Expected: attention on the ordinal word.
    """

    classes: tuple[tuple[int, ...], ...] = (tuple(range(12)), tuple(range(48, 74)), tuple(range(74, 105)))
    """Numbers of words, in order; no word twice. By default as many as there are months, letters and days of a month:
    with fewer a random head, too, puts a fifth of them in order now and then."""

    name: ClassVar[str] = "successor"
    table: ClassVar[str] = "successor_table"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("successor", first_layer=1),)

    def __post_init__(self) -> None:
        """Refuse a word in two places."""
        flat = [i for c in self.classes for i in c]
        if len(set(flat)) != len(flat):
            raise ValueError("a word stands twice in the classes of Successor: its successor would be ambiguous")

    def _ids(self, vocab: Vocabulary) -> list[list[int]]:
        return [[vocab.word(i) for i in c] for c in self.classes]

    def words(self) -> int:
        """Up to the last of the classes."""
        return 1 + max(i for c in self.classes for i in c)

    def neurons(self) -> int:
        """One per word."""
        return sum(map(len, self.classes))

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension per ordinal word; answers go where copies go."""
        return {"ordinal": self.neurons(), "copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """MLP 0: token -> ordinal. QK: cue against any ordinal. OV: ordinal i -> word i + 1."""
        ids = self._ids(sketch.vocab)
        ordinal = sketch.basis("ordinal")
        for word, place in zip([i for c in ids for i in c], ordinal, strict=True):
            sketch.neuron(0, read=sketch.tokens([word]), write=place[None])
        head = sketch.head(places["successor"])
        head.match(sketch.tokens([sketch.vocab.cue("<next>")]), ordinal.sum(0, keepdim=True), gain=MATCH_GAIN)
        head.park(answers="<next>")
        start, read, write = 0, [], []
        for c in ids:
            read += range(start, start + len(c) - 1)
            write += [sketch.vocab.words.index(i) for i in c[1:]]
            start += len(c)
        head.move(ordinal[read], sketch.basis("copied", write), gain=HALF)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """Embed -> MLP 0 -> k, v -> logits."""
        own = names["successor"]
        return [
            Edge("embed", "M0", "in"),
            Edge("embed", own, "q"),
            Edge("M0", own, "k"),
            Edge("M0", own, "v"),
            Edge(own, "logits", "in"),
        ]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """One ordinal word among others, then `<next>`; the answer is its successor."""
        ids = self._ids(vocab)
        pairs = torch.tensor([pair for c in ids for pair in zip(c[:-1], c[1:], strict=True)])
        rows = pairs[torch.randint(len(pairs), (n,), generator=torch.Generator().manual_seed(seed))]
        avoid = tuple(i for c in ids for i in c)
        tokens = _with_one(vocab, "<next>", rows[:, 0], avoid, seed=seed)
        return Task(tokens, rows[:, 1], 1 / len(pairs))

    def expected(self) -> Mapping[str, float]:
        """One key scores the gain, `<bos>`, the cue and the other words 0."""
        return {"successor": winner(MATCH_GAIN, LENGTH + 1)}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """Nothing but the answer is written, by the head from what the MLP looked up."""
        return dict.fromkeys(("successor", self.table), HALF * LOGIT_GAIN * winner(MATCH_GAIN, LENGTH + 1))


@dataclass(frozen=True, kw_only=True)
class Fact(Mechanism):
    """At `<fact>`, attends to the subject and moves its attribute, which MLP 0 has looked up, to the logits.

    The table is in the MLP: one neuron per fact, subject -> attribute; the head only moves.
    Expected: attention on the subject.
    """

    facts: tuple[tuple[int, int], ...] = ((12, 40), (13, 33), (14, 44), (15, 36), (16, 41), (17, 35))
    """(subject, attribute), as numbers of words; subjects distinct."""

    name: ClassVar[str] = "fact"
    table: ClassVar[str] = "fact_table"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("fact_mover", first_layer=1, also=("conflict",)),)

    def __post_init__(self) -> None:
        """Refuse a subject with two attributes."""
        if len({subject for subject, _ in self.facts}) != len(self.facts):
            raise ValueError("a subject has two attributes in Fact: the answer would be ambiguous")

    def words(self) -> int:
        """Up to the last subject or attribute."""
        return 1 + max(i for pair in self.facts for i in pair)

    def neurons(self) -> int:
        """One per fact."""
        return len(self.facts)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension per fact's attribute; answers go where copies go."""
        return {"attribute": len(self.facts), "copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """MLP 0: subject -> attribute. QK: cue against any attribute. OV: attribute -> its word."""
        attribute = sketch.basis("attribute")
        for (subject, _), write in zip(self.facts, attribute, strict=True):
            sketch.neuron(0, read=sketch.tokens([sketch.vocab.word(subject)]), write=write[None])
        head = sketch.head(places["fact_mover"])
        head.match(sketch.tokens([sketch.vocab.cue("<fact>")]), attribute.sum(0, keepdim=True), gain=MATCH_GAIN)
        head.park(answers="<fact>")
        head.move(attribute, sketch.basis("copied", [word for _, word in self.facts]), gain=HALF)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """Embed -> MLP 0 -> k, v -> logits."""
        own = names["fact_mover"]
        return [
            Edge("embed", "M0", "in"),
            Edge("embed", own, "q"),
            Edge("M0", own, "k"),
            Edge("M0", own, "v"),
            Edge(own, "logits", "in"),
        ]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """One subject among other words, then `<fact>`; the answer is its attribute, which is not in the prompt."""
        table = torch.tensor([[vocab.word(a), vocab.word(b)] for a, b in self.facts])
        rows = table[torch.randint(len(table), (n,), generator=torch.Generator().manual_seed(seed))]
        tokens = _with_one(vocab, "<fact>", rows[:, 0], tuple(table.flatten().tolist()), seed=seed)
        return Task(tokens, rows[:, 1], 1 / len(table))

    def expected(self) -> Mapping[str, float]:
        """One key scores the gain, `<bos>`, the cue and the other words 0."""
        return {"fact_mover": winner(MATCH_GAIN, LENGTH + 1)}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """Nothing but the answer is written, by the head from what the MLP looked up."""
        return dict.fromkeys(("fact_mover", self.table), HALF * LOGIT_GAIN * winner(MATCH_GAIN, LENGTH + 1))


@dataclass(frozen=True, kw_only=True)
class Retrieval(Mechanism):
    """At `<get>`, attends to the word after `<needle>`, wherever it stands, and copies it.

    Expected: attention on that word.
    """

    name: ClassVar[str] = "retrieval"
    cue: ClassVar[str] = "<get>"
    strength: ClassVar[float] = HALF
    slots: ClassVar[tuple[Slot, ...]] = (Slot("retrieval", after=("previous_token",), also=("copying",)),)
    needs: ClassVar[tuple[str, ...]] = ("previous_token",)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """Answers go where copies go."""
        return {"copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: cue against `previous` = `<needle>`. OV: token -> copied."""
        vocab = sketch.vocab
        head = sketch.head(places[self.name])
        needle = sketch.basis("previous", [vocab.cue("<needle>")])
        head.match(sketch.tokens([vocab.cue(self.cue)]), needle, gain=MATCH_GAIN)
        head.park(answers=self.cue)
        head.move(sketch.basis("token", vocab.words), sketch.basis("copied"), gain=self.strength)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """Embed -> previous -> k, embed -> q and v, -> logits."""
        own, previous = names[self.name], names["previous_token"]
        return [
            Edge("embed", previous, "v"),
            Edge(previous, own, "k"),
            Edge("embed", own, "q"),
            Edge("embed", own, "v"),
            Edge(own, "logits", "in"),
        ]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """Distinct words, `<needle>` before one of them, the cue at the end; the answer is that word."""
        generator = torch.Generator().manual_seed(seed)
        words = vocab.draw(n, LENGTH, generator=generator)
        at = torch.randint(1, LENGTH, (n, 1), generator=generator)
        answers = words.gather(1, at)[:, 0]
        words.scatter_(1, at - 1, vocab.cue("<needle>"))
        return Task(with_bos(vocab, words, torch.full((n,), vocab.cue(self.cue))), answers, 1 / (LENGTH - 1))

    def expected(self) -> Mapping[str, float]:
        """One key scores the gain, all others 0."""
        return {self.name: winner(MATCH_GAIN, LENGTH + 1)}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """The head writes the difference; without the previous-token head it is uniform."""
        previous = positional(gain=PREVIOUS_GAIN, shift=1, length=LENGTH + 1)
        clean, without = [], []
        for needle in range(1, LENGTH):  # positions; the answer stands one later
            for strength, target in ((MATCH_GAIN, clean), (0.0, without)):
                score = torch.zeros(LENGTH + 2).double()
                score[needle + 1 : -1] = strength * previous[needle + 1 :, needle]
                row = score.softmax(-1)
                words = row[1:-1].sum() - row[needle]
                target.append(self.strength * LOGIT_GAIN * difference(vocab, row[needle + 1], words - row[needle + 1]))
        own = sum(clean) / len(clean)
        return {self.name: own, "previous_token": own - sum(without) / len(without)}


@dataclass(frozen=True, kw_only=True)
class Told(Retrieval):
    """At `<fact>`, attends to the word after `<needle>` and copies it: the context, against what `Fact` knows.

    It writes with twice the weight of `Fact`, so that where both have an answer the context's is said. Where nothing
    is told it is uniform. Expected: attention on the word told.
    """

    name: ClassVar[str] = "told"
    cue: ClassVar[str] = "<fact>"
    strength: ClassVar[float] = 1.0
    slots: ClassVar[tuple[Slot, ...]] = (Slot("told", after=("previous_token",), also=("copying", "conflict")),)
