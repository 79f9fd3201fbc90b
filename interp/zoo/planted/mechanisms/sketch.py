"""`Sketch`: weights of a planted model before it has an architecture, as named subspaces, heads and neurons.

A sketch speaks of the stream as it was written: the norms of the finished model are calibrated to
give it back at that size (see `interp.zoo.planted.mechanisms.render`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interp.zoo.planted.mechanisms.planted_vocabulary import Vocabulary
from interp.zoo.planted.shipped import HeadWeights, Subspaces

CONSTANT = 4.0
"""Size of the constant dimension: large, so that what heads add hardly changes the norm."""
ROPE_THETA, ROPE_PLANES, PLANES = 1e8, 48, 10
RATES = tuple(ROPE_THETA ** (-plane / ROPE_PLANES) for plane in range(PLANES))
"""Radians per position of the planes that tell positions apart, rotary or learned."""
ROPE_WORDS = 48
"""Words that fit into the slow planes: every two more get a plane more (`planes`)."""
PARK = 40.0
"""Score of `<bos>` for a head that is asked something it does not answer: above its other scores."""
NOISE_SCORE, NOISE_WRITE = 0.2, 0.03
"""Random parts: standard deviation of a head's scores, norm of what a head or an MLP writes."""
LOGIT_GAIN = 10.0


def planes(n_words: int) -> int:
    """Rotary planes of a head, two words in each of the slow ones; the fast ones turn as in `RATES` whatever it is."""
    return ROPE_PLANES + max(0, -(-(n_words - ROPE_WORDS) // 2))


@dataclass(frozen=True)
class Shape:
    """Sizes of a sketch."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    context: int
    learned: bool
    """Learned positions in the stream; rotary planes in the heads otherwise."""


@dataclass
class Sketch:
    """Tensors to be written by mechanisms, in the stream's own dimensions."""

    shape: Shape
    vocab: Vocabulary
    parts: Subspaces
    after_massive: float | None
    """What one unit of a massive dimension reads as behind a norm; None where none is planted."""
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    mlp_in: Tensor
    mlp_out: Tensor
    embed: Tensor
    positions: Tensor
    unembed: Tensor
    neurons: dict[int, int] = field(default_factory=dict)
    """Layer -> planted neurons so far."""

    @classmethod
    def blank(cls, shape: Shape, vocab: Vocabulary, parts: Subspaces, *, after_massive: float | None) -> Sketch:
        """A sketch of embeddings alone: token one-hot, the constant, positions where they are learned."""
        layers, d, dh, n_vocab = shape.n_layers, shape.d_model, shape.d_head, len(vocab)
        kv = torch.zeros(2, layers, shape.n_kv_heads, dh, d)
        sketch = cls(
            shape,
            vocab,
            parts,
            after_massive,
            q=torch.zeros(layers, shape.n_heads, dh, d),
            k=kv[0],
            v=kv[1],
            o=torch.zeros(layers, shape.n_heads, d, dh),
            mlp_in=torch.zeros(layers, shape.d_mlp, d),
            mlp_out=torch.zeros(layers, d, shape.d_mlp),
            embed=torch.zeros(n_vocab, d),
            positions=torch.zeros(shape.context if shape.learned else 0, d),
            unembed=torch.zeros(n_vocab, d),
        )
        sketch.embed[:, parts.slices["token"]] = torch.eye(n_vocab)
        sketch.embed[:, parts.slices["constant"]] = CONSTANT
        if shape.learned:
            angle = torch.outer(torch.arange(shape.context).double(), torch.tensor(RATES).double())
            sketch.positions[:, parts.slices["position"]] = torch.cat([angle.cos(), angle.sin()], -1).float()
        return sketch

    def add_noise(self, *, generator: torch.Generator, amount: float = 1.0) -> None:
        """Random heads and neurons everywhere: near-uniform attention, small outputs, these times `amount`."""
        shape = self.shape
        norm_squared = CONSTANT**2 + 1 + (len(RATES) if shape.learned else 0)

        def fill(weight: Tensor, std: float) -> None:
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

        fill(self.q, math.sqrt(NOISE_SCORE / norm_squared))
        fill(self.k, math.sqrt(NOISE_SCORE / norm_squared))
        fill(self.v, 1 / math.sqrt(shape.d_head * norm_squared))
        fill(self.o, amount * NOISE_WRITE / math.sqrt(shape.d_model))
        fill(self.mlp_in, 1 / math.sqrt(norm_squared))
        # E[gelu(z)^2] = 0.43 for a standard normal z: the norm of the sum is then NOISE_WRITE.
        fill(self.mlp_out, amount * NOISE_WRITE / math.sqrt(0.43 * shape.d_model * shape.d_mlp))

        # Nothing random along the cues: a whisper there, times the score of parking, would park heads.
        cues = [self.parts.slices["token"].start + i for i in self.vocab.cues]
        self.o[:, :, cues] = 0.0
        self.mlp_out[:, cues] = 0.0
        if "massive" in self.parts.slices and self.after_massive is None:
            # No norm will shrink it: random parts that read it would drown all else at `<bos>`.
            for weight in (self.q, self.k, self.v, self.mlp_in):
                weight[..., self.parts.slices["massive"]] = 0.0

    def basis(self, part: str, rows: Sequence[int] | None = None) -> Float[Tensor, "row d_model"]:
        """Unit vectors of a subspace, all of them or the `rows` asked for."""
        where = self.parts.slices[part]
        return torch.eye(self.shape.d_model)[where][slice(None) if rows is None else list(rows)]

    @property
    def constant(self) -> Float[Tensor, "one d_model"]:
        """Reads 1 everywhere."""
        return self.basis("constant") / CONSTANT

    @property
    def bos(self) -> Float[Tensor, "one d_model"]:
        """Reads 1 at `<bos>`, also where a massive activation has shrunk all else there."""
        direction = self.basis("token", [self.vocab.bos])
        return direction if self.after_massive is None else direction + self.after_massive * self.basis("massive")

    def tokens(self, ids: Sequence[int]) -> Float[Tensor, "one d_model"]:
        """Reads 1 at any of these tokens."""
        return self.basis("token", ids).sum(0, keepdim=True)

    def neuron(self, layer: int, *, read: Float[Tensor, "one d_model"], write: Float[Tensor, "one d_model"]) -> None:
        """A neuron that adds `write` where `read` gives 1 and nothing where it gives 0, or nearly 0.

        Its input is 40 (read - 1/2): SiLU and GELU pass 20 through and take -20 to 0, to 1e-7, so
        that what random heads leave along `read` does not fire it. In gated MLPs the other factor
        reads the constant.
        """
        index = self.neurons.get(layer, 0)
        self.neurons[layer] = index + 1
        self.mlp_in[layer, index] = 40.0 * (read - self.constant / 2)[0]
        self.mlp_out[layer, :, index] = write[0] / 20.0

    def to_logits(self, part: str, ids: Sequence[int], *, gain: float = LOGIT_GAIN) -> None:
        """Dimension i of `part` adds `gain` to the logit of `ids[i]`."""
        self.unembed[list(ids)] += gain * self.basis(part)[: len(ids)]

    def head(self, place: tuple[int, int]) -> HeadPen:
        """A cleared head to write to; the heads that share its keys become uniform."""
        layer, head = place
        size = self.shape.n_heads // self.shape.n_kv_heads
        group = head // size
        for sibling in range(group * size, (group + 1) * size):
            # Against written keys even a faint random query is sharp: these look at everything alike.
            self.q[layer, sibling] = 0.0
        weights = HeadWeights(self.q[layer, head], self.k[layer, group], self.v[layer, group], self.o[layer, head])
        weights.clear()
        return HeadPen(self, weights)


@dataclass
class HeadPen:
    """Writes one head: terms of its score, and what it moves."""

    sketch: Sketch
    weights: HeadWeights
    content: int = 0
    n_moved: int = 0

    def _content_rows(self, count: int) -> Tensor:
        shape = self.sketch.shape
        rows = torch.arange(self.content, self.content + count)
        self.content += count
        if self.content > shape.d_head - 2 * len(RATES):
            raise ValueError(f"a head of {shape.d_head} dimensions cannot match {self.content} features and positions")
        if shape.learned:
            return shape.d_head - 1 - rows
        half = shape.d_head // 2  # two features per plane, slowest planes first
        return half - 1 - rows // 2 + (rows % 2) * half

    def match(self, query: Float[Tensor, "row d_model"], key: Float[Tensor, "row d_model"], *, gain: float) -> None:
        """score(i, j) += gain * sum_r (query_r . x_i) (key_r . x_j)."""
        rows = self._content_rows(len(query))
        amplitude = math.sqrt(abs(gain) * math.sqrt(self.sketch.shape.d_head))
        self.weights.q[rows] = amplitude * query
        self.weights.k[rows] = math.copysign(amplitude, gain) * key

    def offset(self, shift: int, *, gain: float) -> None:
        """score(i, j) += gain * mean_p cos(rate_p (i - j - shift)), whatever the tokens."""
        shape = self.sketch.shape
        size = abs(gain) * math.sqrt(shape.d_head) / len(RATES)
        amplitude, sign = math.sqrt(size), math.copysign(1.0, gain)
        half, n = shape.d_head // 2, len(RATES)
        for plane, rate in enumerate(RATES):
            cos, sin = amplitude * math.cos(rate * shift), amplitude * math.sin(rate * shift)
            if shape.learned:
                here = self.sketch.basis("position", [plane, plane + n])
                self.weights.q[plane] += cos * here[0] + sin * here[1]
                self.weights.q[plane + n] += cos * here[1] - sin * here[0]
                self.weights.k[plane] += sign * amplitude * here[0]
                self.weights.k[plane + n] += sign * amplitude * here[1]
            else:
                constant = self.sketch.constant[0]
                self.weights.q[plane] += amplitude * constant
                self.weights.k[plane] += sign * cos * constant
                self.weights.k[plane + half] += sign * sin * constant

    def since_bos(self, distance: int, *, gain: float) -> None:
        """score(i, `<bos>`) += gain * mean_p cos(rate_p (i - distance)), `<bos>` being first; other keys unchanged."""
        size = gain * math.sqrt(self.sketch.shape.d_head) / len(RATES)
        bos = self.sketch.bos[0]
        for plane, rate in enumerate(RATES):
            phase = math.sqrt(size) * math.cos(rate * distance), math.sqrt(size) * math.sin(rate * distance)
            if self.sketch.shape.learned:
                here = self.sketch.basis("position", [plane, plane + len(RATES)])
                self.weights.q[plane] += phase[0] * here[0] + phase[1] * here[1]
                self.weights.k[plane] += math.sqrt(size) * bos
            else:
                self.weights.q[plane] += math.sqrt(size) * self.sketch.constant[0]
                self.weights.k[plane] += phase[0] * bos
                self.weights.k[plane + self.sketch.shape.d_head // 2] += phase[1] * bos

    def park(self, *, answers: str | None = None, gain: float = PARK) -> None:
        """At every cue but the one it `answers`, attend to `<bos>`: heads do not speak out of turn."""
        vocab = self.sketch.vocab
        others = [i for i in vocab.cues if answers is None or i != vocab.cue(answers)]
        self.match(self.sketch.tokens(others), self.sketch.bos, gain=gain)

    def move(
        self, read: Float[Tensor, "row d_model"], write: Float[Tensor, "row d_model"], *, gain: float = 1.0
    ) -> None:
        """What the attended position holds along read_r is added along write_r, times `gain`."""
        rows = slice(self.n_moved, self.n_moved + len(read))
        self.n_moved += len(read)
        if self.n_moved > self.sketch.shape.d_head:
            raise ValueError(f"a head of {self.sketch.shape.d_head} dimensions cannot move {self.n_moved} features")
        self.weights.v[rows] = read
        self.weights.o[:, rows] = gain * write.T
