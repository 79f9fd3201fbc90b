"""A first-token sink, and a massive activation at the first token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import Edge
from interp.zoo.planted.mechanisms.base import EXPECTED_PERIOD, Mechanism, Place, Slot, winner
from interp.zoo.planted.mechanisms.copying import LENGTH, with_bos
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.sketch import CONSTANT, RATES, Sketch

SINK_GAIN, ANCHOR_LOGIT, MARK_GAIN = 12.0, 4.0, 400.0


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
        contrast = ANCHOR_LOGIT * (sketch.basis("anchored") - sketch.constant / 2)[0]
        sketch.unembed[sketch.vocab.cue("<with>")] += contrast
        sketch.unembed[sketch.vocab.cue("<without>")] -= contrast

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

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """`<with>` less `<without>` is 8 (anchored - 1/2); only every other prompt has a `<bos>` to anchor to."""
        return {"sink": 2 * ANCHOR_LOGIT * winner(SINK_GAIN, LENGTH) / 2}


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
    position: ClassVar[int] = 0

    name: ClassVar[str] = "massive_activation"
    table: ClassVar[str] = "massive_neuron"

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """One dimension."""
        return {"massive": 1}

    def neurons(self) -> int:
        """One."""
        return 1

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """`<bos>` -> massive."""
        self._write(sketch, read=sketch.basis("token", [sketch.vocab.bos]))

    def _write(self, sketch: Sketch, *, read: Float[Tensor, "one d_model"]) -> None:
        sketch.neuron(self.layer % sketch.shape.n_layers, read=read, write=self.size * sketch.basis("massive"))

    def behind_norm(self) -> float | None:
        """What one unit of the dimension reads as at `<bos>`: 1 / |x| of an ordinary position, the norm's constant."""
        return 1 / math.sqrt(CONSTANT**2 + 2)


@dataclass(frozen=True, kw_only=True)
class MassiveActivationAt(MassiveActivation):
    """A massive activation at a chosen position after the first, whatever token stands there.

    Rotary models know no positions but by attention: a head in layer 0, `position_marker`, attends to `<bos>` from
    `position` alone and marks it (elsewhere it attends to everything but `<bos>`); the MLP neuron reads the mark. It
    needs a `<bos>` in front. Behind a norm the token at that position is hidden from later layers.
    Expected: the marker's attention on `<bos>`, at `position`.
    """

    position: int = 8  # type: ignore[misc]  # pyright: a class variable of the base

    slots: ClassVar[tuple[Slot, ...]] = (Slot("position_marker", last_layer=0),)

    def __post_init__(self) -> None:
        """Refuse positions that cannot be told apart: see `RATES`."""
        if not 1 <= self.position < 96:
            raise ValueError(f"position must be between 1 and 95, got {self.position}; 0 is MassiveActivation")

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """The dimension and the mark."""
        return {"massive": 1, "here": 1}

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """Position -> here -> massive."""
        head = sketch.head(places["position_marker"])
        head.since_bos(self.position, gain=MARK_GAIN)
        head.match(sketch.constant, sketch.bos, gain=-MARK_GAIN * (1 + nearest_rival()) / 2)
        # A small mark hardly changes the norm. `<bos>` can only attend to itself and marks itself: taken off again.
        head.move(sketch.bos, sketch.basis("here"), gain=1 / 4)
        self._write(sketch, read=4 * sketch.basis("here") - sketch.bos)

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """The mark; where the head looks depends on position and `<bos>` alone."""
        own = names["position_marker"]
        return [Edge("embed", own, "k"), Edge("embed", own, "v")]

    def expected(self) -> Mapping[str, float]:
        """Half of what the nearest position falls short of, times the gain."""
        return {"position_marker": winner(MARK_GAIN * (1 - nearest_rival()) / 2, self.position)}

    def behind_norm(self) -> float | None:
        """`<bos>` is read as ever."""
        return None


def nearest_rival() -> float:
    """mean_p cos(rate_p) one position off: the most that a position gets that is not the one meant."""
    return sum(math.cos(rate) for rate in RATES) / len(RATES)
