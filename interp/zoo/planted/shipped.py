"""Models whose mechanism is written into the weights: ordinary Llamas, no training.

The residual stream is cut into named orthogonal subspaces; a mechanism is a few functions
`write_*` that set one head's weights to read some of them and write another. Rotary position
gives every head two kinds of planes: the fast ones tell near positions apart, the slow ones do not
turn within the context and so compare content.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.zoo.ground_truth import Truth
from interp.zoo.trained.measure import layers_of
from interp.zoo.trained.tokenizer import SPECIALS, word_tokenizer

N_WORDS, N_HEADS, D_MODEL, D_HEAD, D_MLP, CONTEXT = 64, 8, 256, 128, 64, 512
ROPE_THETA = 1e8
POSITION_PLANES = 8
"""Fastest rotary planes, used for position; the 32 slowest (turning by < 0.06 rad over the whole
context) carry the 64 words."""
PREVIOUS_GAIN, INDUCTION_GAIN, LOGIT_GAIN = 50.0, 12.0, 10.0
"""Attention score of the right key (the others lie near 0 for content, and at most 0.87 of the
gain for position), and logit of a word copied with weight 1."""
NOISE_SCORE, NOISE_WRITE, NOISE_MLP = 0.2, 0.2, 0.1
"""Random heads: standard deviation of the scores where inputs have unit norm, and norm of what a
head (an MLP) adds to the stream, in units of an embedding's token part."""
EXPECTED_PERIOD = 32


@dataclass
class Subspaces:
    """Allocator of orthogonal, axis-aligned parts of the residual stream."""

    d_model: int
    slices: dict[str, slice] = field(default_factory=dict)

    def claim(self, name: str, size: int) -> slice:
        """The next `size` free dimensions, under a new name; ValueError where they do not fit."""
        start = max((part.stop for part in self.slices.values()), default=0)
        if name in self.slices or start + size > self.d_model:
            raise ValueError(
                f"cannot claim {size} dimensions as {name!r}: {self.d_model - start} "
                f"are free, names in use: {sorted(self.slices)}"
            )
        self.slices[name] = slice(start, start + size)
        return self.slices[name]


@dataclass(frozen=True)
class HeadWeights:
    """Views into one head's weights: writing to them changes the model."""

    q: Float[Tensor, "d_head d_model"]
    k: Float[Tensor, "d_head d_model"]
    v: Float[Tensor, "d_head d_model"]
    o: Float[Tensor, "d_model d_head"]

    @classmethod
    def of(cls, model: LlamaForCausalLM, layer: int, head: int) -> HeadWeights:
        """Views of L`layer`H`head`; the model has one KV head per query head."""
        attention = layers_of(model)[layer].self_attn
        rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
        return cls(
            q=attention.q_proj.weight[rows],
            k=attention.k_proj.weight[rows],
            v=attention.v_proj.weight[rows],
            o=attention.o_proj.weight[:, rows],
        )

    def clear(self) -> None:
        """Set all four to zero: the head reads and writes nothing."""
        for weight in (self.q, self.k, self.v, self.o):
            weight.zero_()


def write_copy(head: HeadWeights, *, read: slice, write: slice) -> None:
    """OV circuit: what the attended position holds in `read` is added to `write` unchanged."""
    i = torch.arange(read.stop - read.start)
    head.v[i, read.start + i] = 1.0
    head.o[write.start + i, i] = 1.0


def write_previous_token(head: HeadWeights, *, constant: slice, rates: Sequence[float], gain: float) -> None:
    """QK circuit: attend one position back, whatever the tokens.

    Query and key are fixed vectors read off the `constant` dimension; the key is turned ahead by
    one position in each plane (dimensions p and p + d_head/2 in Llama's layout), so that
    score(i, j) = gain * mean_p cos(rates[p] * (i - j - 1)).
    """
    amplitude = math.sqrt(gain * math.sqrt(D_HEAD) / len(rates))
    for plane, rate in enumerate(rates):
        head.q[plane, constant] = amplitude
        head.k[plane, constant] = amplitude * math.cos(rate)
        head.k[plane + D_HEAD // 2, constant] = amplitude * math.sin(rate)


def write_induction(head: HeadWeights, *, current: slice, previous: slice, gain: float) -> None:
    """QK circuit: attend to the positions whose previous token is the current token.

    Score = gain where `previous` at the key equals `current` at the query, 0 elsewhere, compared
    in the slowest planes. Without a match (first copy) attention is diffuse.
    """
    amplitude = math.sqrt(gain * math.sqrt(D_HEAD))
    word = torch.arange(current.stop - current.start)
    plane = D_HEAD // 2 - 1 - word // 2  # two words per plane, slowest planes first
    rows = plane + (word % 2) * (D_HEAD // 2)
    head.q[rows, current.start + word] = amplitude
    head.k[rows, previous.start + word] = amplitude


def write_noise(model: LlamaForCausalLM, *, generator: torch.Generator) -> None:
    """Random heads and MLPs: attention near uniform with some dependence on content and position."""

    def fill(weight: Tensor, std: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    for layer in layers_of(model):
        attention, mlp = layer.self_attn, layer.mlp
        for projection in (attention.q_proj, attention.k_proj):
            fill(projection.weight, math.sqrt(NOISE_SCORE))
        fill(attention.v_proj.weight, 1 / math.sqrt(D_HEAD))
        fill(attention.o_proj.weight, NOISE_WRITE / math.sqrt(D_MODEL))
        for projection in (mlp.gate_proj, mlp.up_proj):
            fill(projection.weight, 1 / math.sqrt(3))
        # E[silu(z)^2] = 0.36 for a standard normal z: the norm of the sum is then NOISE_MLP.
        fill(mlp.down_proj.weight, NOISE_MLP / math.sqrt(0.36 * D_MODEL * D_MLP))


def write_norms(model: LlamaForCausalLM) -> None:
    """Norm weights that give each part of the stream back at the size it was written with.

    RMSNorm divides by |x| / sqrt(d_model). |x|^2 counts 1 for each of token, constant and, once
    written, previous and copied, plus what the seven random heads and the MLP of a layer add.
    """
    heads, mlp = (N_HEADS - 1) * NOISE_WRITE**2, NOISE_MLP**2
    first, second = layers_of(model)
    squared_norms = {
        first.input_layernorm: 2,
        first.post_attention_layernorm: 3 + heads,
        second.input_layernorm: 3 + heads + mlp,
        second.post_attention_layernorm: 4 + 2 * heads + mlp,
        model.model.norm: 4 + 2 * heads + 2 * mlp,
    }
    for norm, norm_squared in squared_norms.items():
        norm.weight.fill_(math.sqrt(norm_squared / D_MODEL))


def blank(*, d_vocab: int) -> LlamaForCausalLM:
    """A two-layer Llama of the planted shape, to be overwritten; the global seed is untouched."""
    config = LlamaConfig(
        vocab_size=d_vocab,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=2,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        head_dim=D_HEAD,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-8,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        bos_token_id=SPECIALS.index("<bos>"),
        eos_token_id=SPECIALS.index("<eos>"),
        pad_token_id=SPECIALS.index("<pad>"),
    )
    with torch.random.fork_rng(devices=[]):
        return LlamaForCausalLM(config).eval()


def position_rates() -> list[float]:
    """Radians per position of the planes that carry position, fastest first."""
    return [ROPE_THETA ** (-2 * plane / D_HEAD) for plane in range(POSITION_PLANES)]


def expected_scores(*, period: int) -> dict[str, float]:
    """Closed-form scores of the planted heads on `<bos>` and two copies of `period` words.

    Mean attention probability on the role's key over the queries of the second copy, with the
    random heads' noise left out: for the previous-token head the soft-max of its positional score;
    for the induction head e^G / (e^G + i) at query i, G being its gain times the weight with
    which the previous-token head wrote the matching token.
    """
    rates = torch.tensor(position_rates(), dtype=torch.float64)
    queries = torch.arange(period + 1, 2 * period + 1)
    distance = torch.arange(2 * period + 1)  # of query from key
    score = PREVIOUS_GAIN * torch.cos(torch.outer(distance - 1, rates)).mean(-1)
    previous = torch.stack([score[: i + 1].softmax(-1)[1] for i in queries]).mean()
    right = torch.exp(INDUCTION_GAIN * previous)
    induction = (right / (right + queries)).mean()
    return {"previous_token": previous.item(), "induction": induction.item()}


@torch.no_grad()
def planted_induction(*, seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Truth]:
    """Two-layer Llama with one previous-token head, one induction head and 14 random heads.

    The seed draws the places of the two heads and all random weights; the same seed gives the
    same bytes. float32, eval mode, 64 words and four special tokens, context 512.
    """
    generator = torch.Generator().manual_seed(seed)
    places = [int(h) for h in torch.randint(N_HEADS, (2,), generator=generator)]
    tokenizer = word_tokenizer(n_words=N_WORDS, max_length=CONTEXT)
    d_vocab = len(tokenizer)
    words = slice(len(SPECIALS), d_vocab)

    parts = Subspaces(D_MODEL)
    token, previous, copied = (parts.claim(n, d_vocab) for n in ("token", "previous", "copied"))
    constant = parts.claim("constant", 1)

    def only_words(part: slice) -> slice:
        return slice(part.start + words.start, part.start + words.stop)

    model = blank(d_vocab=d_vocab)
    write_noise(model, generator=generator)
    write_norms(model)
    model.model.embed_tokens.weight.zero_()[:, token] = torch.eye(d_vocab)
    model.model.embed_tokens.weight[:, constant] = 1.0
    model.lm_head.weight.zero_()[words, only_words(copied)] = LOGIT_GAIN * torch.eye(N_WORDS)

    head = HeadWeights.of(model, 0, places[0])
    head.clear()
    write_previous_token(head, constant=constant, rates=position_rates(), gain=PREVIOUS_GAIN)
    write_copy(head, read=token, write=previous)

    head = HeadWeights.of(model, 1, places[1])
    head.clear()
    write_induction(head, current=only_words(token), previous=only_words(previous), gain=INDUCTION_GAIN)
    write_copy(head, read=only_words(token), write=only_words(copied))

    roles = {"previous_token": ((0, places[0]),), "induction": ((1, places[1]),)}
    return model, tokenizer, Truth(roles, expected_scores(period=EXPECTED_PERIOD), DOCS)


DOCS = f"""\
The previous-token head attends one position back and copies that token's one-hot vector to the
subspace `previous`. The induction head attends to the positions whose `previous` is the current
token and copies their token to the subspace `copied`, the only one that the unembedding reads.
On a first copy the induction head has no target and is diffuse: near uniform, not on `<bos>`.
The fourteen other heads and both MLPs are random: near-uniform attention, small outputs.
`expected` holds for `<bos>` and two copies of {EXPECTED_PERIOD} distinct words, queries in the
second copy; other lengths: `interp.zoo.planted.shipped.expected_scores`.
"""
