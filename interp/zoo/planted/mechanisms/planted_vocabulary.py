"""`Vocabulary` of planted models, and `Task`: prompts made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.zoo.trained.tokenizer import SPECIALS, word_tokenizer

CUES = ("<with>", "<without>", "<copy>", "<avoid>", "<next>", "<needle>", "<get>", "<fact>", "<to>", "<when>")
"""Special tokens after the words: the answers of the sink's task, and what asks a gated mechanism."""

NEEDLE_FORMAT = {"needle": "<needle>{value}", "question": "<get>", "haystack": "tokens"}
"""How a needle is told and asked for in these models (a `haystacks.Format`), carried by their tokenizer."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids: four specials, then `n_words` ordinary words, then the cues. Random prompts hold words only."""

    n_words: int

    def __len__(self) -> int:
        return len(SPECIALS) + self.n_words + len(CUES)

    @property
    def bos(self) -> int:
        """Id of `<bos>`."""
        return SPECIALS.index("<bos>")

    @property
    def words(self) -> list[int]:
        """Ids of the ordinary words."""
        return list(range(len(SPECIALS), len(SPECIALS) + self.n_words))

    @property
    def cues(self) -> list[int]:
        """Ids of the cues."""
        return list(range(len(self) - len(CUES), len(self)))

    def word(self, number: int) -> int:
        """Id of the `number`-th word; ValueError where there is none."""
        if not 0 <= number < self.n_words:
            raise ValueError(f"word {number} does not exist; words are numbered 0 to {self.n_words - 1}")
        return self.words[number]

    def cue(self, name: str) -> int:
        """Id of a cue."""
        return self.cues[CUES.index(name)]

    def tokenizer(self, *, context: int) -> PreTrainedTokenizerFast:
        """One word is one token; the cues are special tokens, so that no random prompt holds one."""
        fast = word_tokenizer(n_words=self.n_words, max_length=context)
        fast.add_special_tokens({"extra_special_tokens": list(CUES)})
        fast.init_kwargs["needle_format"] = dict(NEEDLE_FORMAT)  # read by interp.tasks.needles, kept by save_pretrained
        return fast

    def draw(self, n: int, length: int, *, generator: torch.Generator, without: tuple[int, ...] = ()) -> Tensor:
        """[n length] ids of distinct random words per row, none of `without`.

        Raises ValueError where that many words do not exist.
        """
        pool = torch.tensor([w for w in self.words if w not in without])
        if len(pool) < length:
            raise ValueError(f"a prompt needs {length} distinct words; {len(pool)} of {self.n_words} may be used")
        return pool[torch.rand(n, len(pool), generator=generator).topk(length, dim=-1).indices]


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts whose last position is answered by one mechanism."""

    tokens: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, " prompt"]
    chance: float
    """Accuracy of a guess that knows which answers occur: any word, a word of the prompt, or `choices`."""
    choices: Int[Tensor, "prompt choice"] | None = None
    """Where given, the prediction is the choice with the largest logit."""

    def accuracy(self, logits: Tensor) -> float:
        """Share of prompts answered, from logits [prompt pos d_vocab] or of the last position alone."""
        last = logits[:, -1] if logits.ndim == 3 else logits
        if self.choices is None:
            prediction = last.argmax(-1)
        else:
            best = last.gather(1, self.choices).argmax(-1, keepdim=True)
            prediction = self.choices.gather(1, best)[:, 0]
        return (prediction == self.answers).double().mean().item()

    def logit_difference(self, logits: Tensor, words: Sequence[int]) -> float:
        """Mean over prompts of the answer's logit less its rivals' mean: the other choices, or all other `words`.

        Logits as in `accuracy`.
        """
        last = logits[:, -1] if logits.ndim == 3 else logits
        among = self.choices if self.choices is not None else torch.tensor(words).expand(len(last), -1)
        candidates = last.double().gather(1, among)
        right = among == self.answers[:, None]
        rivals = candidates.masked_fill(right, 0.0).sum(-1) / (~right).sum(-1)
        return (candidates.masked_fill(~right, 0.0).sum(-1) - rivals).mean().item()
