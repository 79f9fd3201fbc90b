"""An IOI-like circuit of three heads: who stands twice, who must not be said, who is said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.components import Edge
from interp.zoo.planted.mechanisms.base import Mechanism, Place, Slot, winner
from interp.zoo.planted.mechanisms.copying import LENGTH, MATCH_GAIN, with_bos
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.recall import HALF
from interp.zoo.planted.mechanisms.sketch import LOGIT_GAIN, Sketch

INHIBITION_GAIN = 120.0


@dataclass(frozen=True, kw_only=True)
class TwoHop(Mechanism):
    """Duplicate -> inhibition -> mover: of two names, one of which stands twice, says the other at `<to>`.

    The duplicate head attends from a name to `<bos>` and every copy of it up to itself, all alike,
    and writes the name: with weight 1/2 at a first mention, 2/3 at a second. No position is needed
    to leave itself out. The inhibition head attends from `<to>` to the strongest such mark and
    writes the name to `inhibited`; the mover attends to names, less the inhibited one, and copies.
    Expected: the three heads' attention on S1, S2 and IO, at S2, `<to>` and `<to>`.
    """

    names: tuple[int, ...] = (20, 21, 22, 23, 24, 25)
    """Numbers of words."""

    name: ClassVar[str] = "two_hop"
    slots: ClassVar[tuple[Slot, ...]] = (
        Slot("name_duplicate"),
        Slot("inhibition", after=("name_duplicate",)),
        Slot("name_mover", after=("inhibition",)),
    )

    def words(self) -> int:
        """Up to the last name."""
        return 1 + max(self.names)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """Two marks per name; answers go where copies go."""
        return {"mentioned": len(self.names), "inhibited": len(self.names), "copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """See the class."""
        vocab = sketch.vocab
        ids = [vocab.word(i) for i in self.names]
        token, mentioned, inhibited = sketch.basis("token", ids), sketch.basis("mentioned"), sketch.basis("inhibited")
        cue = sketch.tokens([vocab.cue("<to>")])

        head = sketch.head(places["name_duplicate"])
        # Not parked: it is silent at cues by itself, and 1/2 against 2/3 leaves no room for a leak.
        head.match(token, token + sketch.bos, gain=MATCH_GAIN)
        head.move(token, mentioned)

        head = sketch.head(places["inhibition"])
        head.match(cue, mentioned.sum(0, keepdim=True), gain=INHIBITION_GAIN)
        head.park(answers="<to>")
        head.move(mentioned, inhibited, gain=3 / 2)

        head = sketch.head(places["name_mover"])
        head.match(cue, token.sum(0, keepdim=True), gain=MATCH_GAIN)
        head.match(inhibited, token, gain=-MATCH_GAIN)
        head.park(answers="<to>")
        head.move(token, sketch.basis("copied", self.names), gain=HALF)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """The whole circuit."""
        duplicate, inhibition, mover = (names[slot.role] for slot in self.slots)
        return [
            *(Edge("embed", duplicate, port) for port in ("q", "k", "v")),
            Edge(duplicate, inhibition, "k"),
            Edge(duplicate, inhibition, "v"),
            Edge("embed", inhibition, "q"),
            Edge(inhibition, mover, "q"),
            *(Edge("embed", mover, port) for port in ("q", "k", "v")),
            Edge(mover, "logits", "in"),
        ]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """Names A, B, then A or B again, among other words, then `<to>`; which stands once? Chance 1/2."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.tensor([vocab.word(i) for i in self.names])
        pair = ids[torch.rand(n, len(ids), generator=generator).topk(2).indices]
        words = vocab.draw(n, LENGTH, generator=generator, without=tuple(ids.tolist()))
        second = torch.randint(2, (n, 1), generator=generator)
        at = torch.rand(n, LENGTH - 2, generator=generator).topk(3).indices.sort().values + 1
        words.scatter_(1, at, torch.cat([pair, pair.gather(1, second)], 1))
        tokens = with_bos(vocab, words, torch.full((n,), vocab.cue("<to>")))
        return Task(tokens, pair.gather(1, 1 - second)[:, 0], 1 / 2, pair)

    def expected(self) -> Mapping[str, float]:
        """1/3 by construction; the mover's rivals all score 0, S1 and S2 among them."""
        return {
            "name_duplicate": 1 / 3,
            "inhibition": winner(INHIBITION_GAIN / 6, 2),
            "name_mover": winner(MATCH_GAIN, LENGTH + 1),
        }

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """Without a mark or its reader the mover attends to all three names alike, hence to the wrong one twice."""
        right = winner(MATCH_GAIN, LENGTH + 1)
        wrong = 2 * right * math.exp(-MATCH_GAIN)
        alike = 1 / (3 + (LENGTH - 1) * math.exp(-MATCH_GAIN))
        own = HALF * LOGIT_GAIN * (right - wrong)
        blind = own + HALF * LOGIT_GAIN * alike
        return {"name_duplicate": blind, "inhibition": blind, "name_mover": own}
