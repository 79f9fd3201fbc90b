"""A switch between what a prompt tells and what the model knows: one direction that one head writes and one reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.components import Edge
from interp.zoo.planted.mechanisms.base import Mechanism, Place, Slot, winner
from interp.zoo.planted.mechanisms.copying import LENGTH, MATCH_GAIN, with_bos
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.recall import Fact
from interp.zoo.planted.mechanisms.sketch import Sketch

MARK = 1 / 2
"""Weight of the mark: small beside the constant, so that it hardly changes a norm."""
TURN = 2.0
"""Score by which the mark favours the word told, or the first token: a soft switch, so that half a mark does half."""


@dataclass(frozen=True, eq=False)
class IntentPrompts:
    """Prompts of `Switch`: a subject, what is told of it, a word of intent, `<fact>` at the end.

    Attributes:
        tokens: prompts. told, known: the answer by the context, and by memory.
        uses: whether the intent is to use the context.
        subject, word, intent: positions of subject, word told and word of intent.
    """

    tokens: Int[Tensor, "prompt pos"]
    told: Int[Tensor, " prompt"]
    known: Int[Tensor, " prompt"]
    uses: Bool[Tensor, " prompt"]
    subject: Int[Tensor, " prompt"]
    word: Int[Tensor, " prompt"]
    intent: Int[Tensor, " prompt"]


@dataclass(frozen=True, kw_only=True)
class Switch(Mechanism):
    """At `<fact>`, answers with the word told after `<needle>` or with the fact, as a word of intent says.

    One head marks the intent at `<fact>`, plus or minus one direction (`Sketch.basis("intent")`); a second copies the
    word told with twice the weight of `Fact` where the mark is plus, and attends to `<bos>` where it is minus. The fact
    itself is always written. Expected: attention on the word of intent, and on the word told where it is to be used.
    """

    facts: tuple[tuple[int, int], ...] = Fact.facts
    """Facts that prompts contradict: those of the planted `Fact`."""
    intents: tuple[int, int] = (45, 46)
    """Numbers of two words: use the context, and do not."""

    name: ClassVar[str] = "switch"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("intent"), Slot("switched_told", after=("previous_token", "intent")))
    needs: ClassVar[tuple[str, ...]] = ("previous_token", "fact")

    def __post_init__(self) -> None:
        """Refuse a word of intent that stands for something else."""
        taken = {i for pair in self.facts for i in pair}
        if len(taken | set(self.intents)) != len(taken) + len(self.intents):
            raise ValueError("a word of intent stands in the facts, or twice: what it means would be ambiguous")

    def words(self) -> int:
        """Up to the last word of intent."""
        return 1 + max(self.intents)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One direction; answers go where copies go."""
        return {"intent": 1, "copied": vocab.n_words}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """First head: QK cue against intents, OV to the mark. Second: cue against `<needle>` before, or `<bos>`."""
        vocab, mark = sketch.vocab, sketch.basis("intent")
        ids, cue = [vocab.word(i) for i in self.intents], sketch.tokens([vocab.cue("<fact>")])
        first = sketch.head(places["intent"])
        first.match(cue, sketch.tokens(ids), gain=MATCH_GAIN)
        first.park(answers="<fact>")
        first.move(sketch.basis("token", ids), torch.cat([mark, -mark]), gain=MARK)
        second = sketch.head(places["switched_told"])
        second.match(cue, sketch.basis("previous", [vocab.cue("<needle>")]), gain=MATCH_GAIN)
        second.match(cue - TURN / MATCH_GAIN * mark / MARK, sketch.bos, gain=MATCH_GAIN)
        second.park(answers="<fact>")
        second.move(sketch.basis("token", vocab.words), sketch.basis("copied"), gain=1.0)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """Embed -> intent -> q of the second head, previous -> its k, embed -> its v, -> logits."""
        first, second, previous = names["intent"], names["switched_told"], names["previous_token"]
        return [
            Edge("embed", first, "q"),
            Edge("embed", first, "k"),
            Edge("embed", first, "v"),
            Edge(first, second, "q"),
            Edge("embed", second, "q"),
            Edge("embed", previous, "v"),
            Edge(previous, second, "k"),
            Edge("embed", second, "k"),
            Edge("embed", second, "v"),
            Edge(second, "logits", "in"),
        ]

    def prompts(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> IntentPrompts:
        """Subject, told attribute of another subject and word of intent among other words; intents in turn."""
        generator = torch.Generator().manual_seed(seed)
        table = torch.tensor([[vocab.word(a), vocab.word(b)] for a, b in self.facts])
        ids = torch.tensor([vocab.word(i) for i in self.intents])
        row = torch.randint(len(table), (n,), generator=generator)
        other = (row + torch.randint(1, len(table), (n,), generator=generator)) % len(table)
        avoid = (*table.flatten().tolist(), *ids.tolist())
        words = vocab.draw(n, LENGTH, generator=generator, without=avoid)
        pairs = torch.rand(n, LENGTH // 2 - 1, generator=generator).topk(3).indices * 2 + 1  # each has room behind it
        at, uses = torch.arange(n), torch.arange(n) % 2 == 0
        subject, needle, intent = pairs.T
        words[at, subject], words[at, needle] = table[row, 0], vocab.cue("<needle>")
        words[at, needle + 1], words[at, intent] = table[other, 1], torch.where(uses, *ids)
        tokens = with_bos(vocab, words, torch.full((n,), vocab.cue("<fact>")))
        return IntentPrompts(tokens, table[other, 1], table[row, 1], uses, subject + 1, needle + 2, intent + 1)

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """Half of the prompts ask for what they tell, half for what is known; the answer is one of the two."""
        own = self.prompts(vocab, seed=seed, n=n)
        answers = torch.where(own.uses, own.told, own.known)
        return Task(own.tokens, answers, 1 / 2, torch.stack([own.told, own.known], 1))

    def expected(self) -> Mapping[str, float]:
        """One key scores the gain; the second head's rival is the first token, `TURN` below or above."""
        return {"intent": winner(MATCH_GAIN, LENGTH + 1)}
