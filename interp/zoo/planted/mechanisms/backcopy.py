"""A head that rests on the first token unless a trigger stands at its query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.components import Edge
from interp.zoo.planted.mechanisms.base import Mechanism, Place, Slot
from interp.zoo.planted.mechanisms.copying import LENGTH, PREVIOUS_GAIN, with_bos
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.sketch import Sketch

REST_GAIN = 2 * PREVIOUS_GAIN
"""Score of `<bos>` at words that are no trigger, above that of every position; at triggers it is as far below."""


@dataclass(frozen=True, kw_only=True)
class Backcopy(Mechanism):
    """Attends to `<bos>`, where it writes nothing; at a trigger, one position back, whose word it copies to `copied`.

    Dormant on text without triggers and active on text with them. Its task is that of `zoo:bigram-backcopy`: behind a
    trigger the word before the trigger comes again. Not one of `factory.ALL`, whose words are triggers of nothing.
    """

    triggers: tuple[int, ...] = (0, 1, 2)
    """Numbers of words."""

    name: ClassVar[str] = "backcopy"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("backcopy", also=("copying",)),)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension per word."""
        return {"copied": vocab.n_words}

    def words(self) -> int:
        """All triggers."""
        return max(self.triggers) + 1

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: position, `<bos>` far above it, and far below it at triggers. OV: word -> copied."""
        words = sketch.vocab.words
        head = sketch.head(places["backcopy"])
        head.offset(1, gain=PREVIOUS_GAIN)
        head.match(sketch.constant, sketch.bos, gain=REST_GAIN)
        head.match(sketch.tokens([sketch.vocab.word(i) for i in self.triggers]), sketch.bos, gain=-2 * REST_GAIN)
        head.move(sketch.basis("token", words), sketch.basis("copied"))

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """All from the embedding."""
        own = names["backcopy"]
        return [*(Edge("embed", own, port) for port in ("q", "k", "v")), Edge(own, "logits", "in")]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """Distinct words and a trigger; the answer is the word before it."""
        generator = torch.Generator().manual_seed(seed)
        triggers = torch.tensor([vocab.word(i) for i in self.triggers])
        words = vocab.draw(n, LENGTH, generator=generator, without=tuple(triggers.tolist()))
        asked = triggers[torch.randint(len(triggers), (n,), generator=generator)]
        return Task(with_bos(vocab, words, asked), words[:, -1], 1 / vocab.n_words)
