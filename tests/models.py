"""Tiny random models of eleven architectures, hand-made attention calls, and every question to ask of them.

Test modules get at this file through the fixtures of conftest.py.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers

import interp
from interp.attention import (
    ByDistance,
    Call,
    CausalMask,
    Distance,
    Entropy,
    KeyMass,
    Mean,
    Offset,
    Pairs,
    Received,
    Rows,
    SumSquares,
    TopKeys,
)
from interp.attention.masks import causal, everything
from interp.batch import Batch
from interp.measurement.checks.backend import random_module
from interp.measurement.checks.laws.subject import Subject

D_VOCAB, D_MODEL, N_HEADS, N_LAYERS, CONTEXT, WINDOW = 64, 64, 8, 2, 700, 17
SIDES = ("unpadded", "right", "left")
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_BASE = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 96,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": CONTEXT,
    **_NO_TOKENS,
}
_GROUPED = {**_BASE, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": D_VOCAB, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": CONTEXT}
_OPT = {k: v for k, v in _BASE.items() if k != "intermediate_size"} | {"ffn_dim": 96, "word_embed_proj_dim": D_MODEL}
CONFIGS = {
    "gpt2": ("GPT2Config", {**_GPT2, **_NO_TOKENS}),
    "llama": ("LlamaConfig", _GROUPED),
    "gpt_neox": ("GPTNeoXConfig", _BASE),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {
            **_GROUPED,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 3.0,
        },
    ),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": WINDOW}),
    "gpt_oss": (
        "GptOssConfig",
        {**_GROUPED, "head_dim": 16, "sliding_window": WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "opt": ("OPTConfig", _OPT),
    "phi": ("PhiConfig", _BASE),
    "olmo2": ("Olmo2Config", _GROUPED),
}
ARCHITECTURES = tuple(CONFIGS)
SPANNING = ("gpt2", "llama", "gpt_neox", "qwen3", "gemma2", "gpt_oss", "olmo2")
"""Every kind of position, norm, grouping, window, sink and residual at least once; what is built on laws that hold for
all eleven is tested on these."""
MOST = tuple(pytest.param(n, marks=[] if n in SPANNING else [pytest.mark.slow]) for n in ARCHITECTURES)
"""All eleven, those that are like one of these left to `make slow`."""
WINDOWED = ("gemma2", "mistral", "gpt_oss")


def build(name: str, *, seed: int = 0, scale: float = 6.0) -> transformers.PreTrainedModel:
    """A new model of one architecture, eager attention, eval mode."""
    config_class, options = CONFIGS[name]
    return random_module(getattr(transformers, config_class)(**options), seed=seed, scale=scale)


@cache
def tiny(name: str) -> interp.Model:
    """The shared model of one architecture. Do not change it: `build` makes one of your own."""
    return interp.load(build(name))


def subject(name: str, batch: Batch) -> Subject:
    """The shared model of one architecture and prompts, for a law of `interp.measurement.checks`."""
    return Subject(tiny(name), tiny(name).torch_module, batch)


def ragged(n: int, side: str, *, lengths: tuple[int, ...] = (), seed: int = 0) -> Batch:
    """Prompts of random tokens, the longest of n tokens, padded on one side ("unpadded": all of n)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = lengths or (n, n - n // 4, 13)
    rows = [torch.randint(3, D_VOCAB, (n,), generator=generator).tolist() for _ in lengths]
    if side == "unpadded":
        return Batch.of(torch.tensor(rows))
    return Batch.of([row[:length] for row, length in zip(rows, lengths, strict=True)], side=side)


def first_token(batch: Batch) -> torch.Tensor:
    """Indicator of each prompt's first real token."""
    return torch.nn.functional.one_hot(batch.first, batch.ids.shape[1]).bool()


def questions(batch: Batch, *, seed: int = 0) -> dict[str, object]:
    """Every statistic, with options that reach their corners, for prompts of a batch."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    size, n = batch.ids.shape
    real = batch.mask.nonzero()
    b, i = real[torch.randint(0, len(real), (400,), generator=generator)].T
    j = (draw(400) * (i + 1)).long()
    pairs = Pairs(*torch.unique(torch.stack([b, i, j]), dim=1))
    first, half, some = first_token(batch), draw(size, n) < 0.5, draw(size, n) < 0.3
    chosen = torch.randint(0, n, (size, 5), generator=generator)
    chosen[0, 0] = -1
    return {
        "offset 0": Offset(0),
        "offset 1": Offset(1),
        "offset 40": Offset(40),
        "offset beyond": Offset(n + 3),
        "pairs": pairs,
        "first token": KeyMass(first),
        "half the keys": KeyMass(half),
        "readout": KeyMass(draw(size, n)),
        "distance": Distance(),
        "entropy": Entropy(),
        "sum of squares": SumSquares(),
        "received": Received(),
        "received, weighted": Received(draw(size, n)),
        "received, some rows": Received(some.float()),
        "by distance": ByDistance(),
        "by distance, weighted": ByDistance(draw(size, n)),
        "by distance, some rows": ByDistance(some.float()),
        "rows": Rows(chosen),
        "top 3": TopKeys(chosen, k=3),
        "top without first": TopKeys(chosen, k=1, exclude=first),
        "mean of some rows": Mean(Offset(2), rows=some),
        "mean of no row": Mean(Offset(2), rows=torch.zeros_like(some)),
        "mean of entropy": Mean(Entropy()),
    }


def window(width: int, *, both: bool = False):
    """Predicate of a sliding window: the query itself and the width - 1 keys before it, as many behind it if `both`."""

    def visible(batch, head, query, key):
        return (key < query + width if both else key <= query) & (key > query - width)

    return visible


def padding(n: int, lengths: tuple[int, ...], side: str) -> torch.Tensor:
    """Which keys are real, [batch, key]."""
    position = torch.arange(n)
    length = torch.tensor(lengths)[:, None]
    return position < length if side == "right" else position >= n - length


def make_call(
    n: int = 70,
    *,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    d_head: int = 8,
    width: int | None = None,
    both: bool = False,
    softcap: float | None = None,
    sinks: bool = False,
    real: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Call:
    """Random attention inputs whose scores have a standard deviation of about 2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    visible = (
        {"predicate": everything if both else causal} if width is None else {"predicate": window(width, both=both)}
    )
    mask = CausalMask(batch, n, n, padding=real, **visible)
    q, k, v = draw(batch, heads, n, d_head), draw(batch, kv_heads, n, d_head), draw(batch, kv_heads, n, d_head)
    slots = torch.linspace(-1, 3, heads).to(dtype) if sinks else None
    return Call(q, k, v, 2 * d_head**-0.5, mask, softcap, slots)


VARIANTS = {
    "plain": {},
    "window": {"width": 17},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "window, softcap, sinks": {"width": 17, "softcap": 3.0, "sinks": True},
    "both ways": {"both": True},
    "both ways, window": {"both": True, "width": 17},
    "both ways, softcap, sinks": {"both": True, "softcap": 3.0, "sinks": True},
}


def encoder(*, uniform: bool = False) -> transformers.PreTrainedModel:
    """Llama with attention both ways, as embedding models have it; without queries if `uniform`."""
    sizes = {"vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, intermediate_size=32, is_causal=False, max_position_embeddings=64)
    module = random_module(config)
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight.mul_(not uniform)
    return module
