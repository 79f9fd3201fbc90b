"""An induction circuit that the induction score cannot see: it copies as well and looks elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.components import Edge
from interp.zoo.planted.mechanisms.base import EXPECTED_PERIOD, Mechanism, Place, Slot, positional, stripe, winner
from interp.zoo.planted.mechanisms.copying import LENGTH, MATCH_GAIN, PREVIOUS_GAIN, Induction, copy_logit
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.sketch import Sketch


@dataclass(frozen=True, kw_only=True)
class ShiftedInduction(Mechanism):
    """Copies what followed the current token last time, without ever looking there: the induction score is near 0.

    Two heads look `shift` and `shift` - 1 back and leave those tokens as `ago_key` and `ago_value`. The third attends
    to the position whose `ago_key` is the current token, `shift` after it, and copies its `ago_value`, the token that
    followed. On two copies of T words it attends to i - T + `shift`; the stripe at i - T + 1, which detectors of
    induction heads measure, stays empty, yet zeroing any of the three ends the copying.
    Expected: p(i, i - T + `shift`), and the other two heads' on their offsets, on two copies of T words.
    """

    shift: int = 4
    """Distance from the earlier copy to where the head looks: 2 to 8; 1 would be the textbook head."""

    name: ClassVar[str] = "shifted_induction"
    slots: ClassVar[tuple[Slot, ...]] = (
        Slot("shifted_key"),
        Slot("shifted_value"),
        Slot("shifted_induction", after=("shifted_key", "shifted_value")),
    )

    def __post_init__(self) -> None:
        """Refuse the textbook head, and shifts that the task has no room for."""
        if not 2 <= self.shift <= 8:
            raise ValueError(f"shift must be between 2 and 8, got {self.shift}")

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """A dimension per word for each helper; answers go where copies go."""
        return {"ago_key": vocab.n_words, "ago_value": vocab.n_words, "copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: token against ago_key. OV: ago_value -> copied -> logits."""
        words = sketch.basis("token", sketch.vocab.words)
        for part, back in (("key", self.shift), ("value", self.shift - 1)):
            head = sketch.head(places[f"shifted_{part}"])
            head.offset(back, gain=PREVIOUS_GAIN)
            head.park(gain=1.5 * PREVIOUS_GAIN)
            head.move(words, sketch.basis(f"ago_{part}"))
        head = sketch.head(places["shifted_induction"])
        head.match(words, sketch.basis("ago_key"), gain=MATCH_GAIN)
        head.park()
        head.move(sketch.basis("ago_value"), sketch.basis("copied"))

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """The three-head circuit."""
        key, value, own = (names[slot.role] for slot in self.slots)
        return [
            Edge("embed", key, "v"),
            Edge("embed", value, "v"),
            Edge("embed", own, "q"),
            Edge(key, own, "k"),
            Edge(value, own, "v"),
            Edge(own, "logits", "in"),
        ]

    def beside(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """The queries of the heads that look back tell a cue from a word."""
        return [Edge("embed", names[role], "q") for role in ("shifted_key", "shifted_value")]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """As for induction."""
        return Induction().task(vocab, seed=seed, n=n)

    def expected(self) -> Mapping[str, float]:
        """As for induction, with other offsets."""
        key, value = (stripe(offset=back, gain=PREVIOUS_GAIN, shift=back) for back in (self.shift, self.shift - 1))
        queries = range(EXPECTED_PERIOD + 1, 2 * EXPECTED_PERIOD + 1)
        own = sum(winner(MATCH_GAIN * key, i) for i in queries) / EXPECTED_PERIOD
        return {"shifted_key": key, "shifted_value": value, "shifted_induction": own}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """The last head writes the difference, from what the others left; without its key it is uniform."""
        keys, values = (
            positional(gain=PREVIOUS_GAIN, shift=back, length=LENGTH + 2) for back in (self.shift, self.shift - 1)
        )
        places = range(LENGTH - 4)
        own = sum(copy_logit(keys, values, at=at, vocab=vocab) for at in places) / len(places)
        without = sum(copy_logit(torch.zeros_like(keys), values, at=at, vocab=vocab) for at in places) / len(places)
        return {"shifted_key": own - without, "shifted_value": own, "shifted_induction": own}
