"""A first-token sink, and a massive activation at the first token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.zoo.mechanisms.base import EXPECTED_PERIOD, Mechanism, Place, Slot, winner
from interp.zoo.mechanisms.copying import LENGTH, with_bos
from interp.zoo.mechanisms.sketch import CONSTANT, Sketch
from interp.zoo.mechanisms.vocabulary import Task, Vocabulary
from interp.zoo.truth import Edge

SINK_GAIN = 12.0


@dataclass(frozen=True, kw_only=True)
class FirstTokenSink(Mechanism):
    """Attends to `<bos>` from everywhere and writes a single dimension, `anchored`.

    Its task is to say whether there is a `<bos>`. Expected: alpha_1, the mean of p(i, `<bos>`)
    over all queries of T + 1 tokens.
    """

    name: ClassVar[str] = "sink"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("sink"),)

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension."""
        return {"anchored": 1}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """QK: anything against `<bos>`. OV: `<bos>` -> anchored, compared with 1/2 by the logits."""
        head = sketch.head(places["sink"])
        head.match(sketch.constant, sketch.bos, gain=SINK_GAIN)
        head.move(sketch.bos, sketch.basis("anchored"))
        compared = 4.0 * (sketch.basis("anchored") - sketch.constant / 2)[0]
        sketch.unembed[sketch.vocab.cue("<with>")] += compared
        sketch.unembed[sketch.vocab.cue("<without>")] -= compared

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """All from the embedding."""
        own = names["sink"]
        return [*(Edge("embed", own, port) for port in ("q", "k", "v")), Edge(own, "logits", "in")]

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task:
        """Distinct words, after `<bos>` in every other prompt: `<with>` or `<without>`? Chance 1/2."""
        words = vocab.draw(n, LENGTH + 1, generator=torch.Generator().manual_seed(seed))
        tokens = torch.where(torch.arange(n)[:, None] % 2 == 0, with_bos(vocab, words[:, 1:]), words)
        choices = torch.tensor([vocab.cue("<with>"), vocab.cue("<without>")]).expand(n, -1)
        return Task(tokens, choices[0][torch.arange(n) % 2], 1 / 2, choices)

    def expected(self) -> Mapping[str, float]:
        """Mean over queries i = 0..T of e^G / (e^G + i)."""
        queries = range(EXPECTED_PERIOD + 1)
        return {"sink": sum(winner(SINK_GAIN, i) for i in queries) / len(queries)}


@dataclass(frozen=True, kw_only=True)
class MassiveActivation(Mechanism):
    """An MLP neuron that adds `size` to one dimension of the stream at `<bos>`, the first token.

    Behind a norm the rest of the stream is then next to nothing there, as in trained models. Heads
    that look for `<bos>` therefore read the massive dimension too. `layer` counts from the end
    where negative.
    """

    layer: int = 0
    dimension: int | None = None
    """Dimension of the stream; None: any that is free. In `gpt2` its twin stands d_model / 2 later, negated."""
    size: float = 200.0

    name: ClassVar[str] = "massive_activation"

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension."""
        return {"massive": 1}

    def neurons(self) -> int:
        """One."""
        return 1

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """`<bos>` -> massive."""
        layer = self.layer % sketch.shape.n_layers
        read = sketch.basis("token", [sketch.vocab.bos])
        sketch.neuron(layer, read=read, write=self.size * sketch.basis("massive"))

    def behind_norm(self) -> float:
        """What one unit of the dimension reads as: 1 / |x| of an ordinary position, the norm's constant."""
        return 1 / math.sqrt(CONSTANT**2 + 2)
