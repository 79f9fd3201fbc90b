"""The same captures from one GPT-2-small shape by ours and its peers; each gives the last layer's, to compare."""

from __future__ import annotations

import beartype  # noqa: F401  (before nnsight)

# isort: split
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Int
from providers import bridge_tokenizer, gpt2_small
from torch import Tensor

import interp

CONTEXT = 1024
LAYERS = range(12)
Look = Callable[[], object]


def tokens(n: int) -> Int[Tensor, "batch pos"]:
    """One prompt of random tokens."""
    return torch.randint(50257, (1, n), generator=torch.Generator().manual_seed(0))


@cache
def model() -> interp.Model:
    """Ours."""
    return interp.load(gpt2_small(context=CONTEXT))


@cache
def _bridge() -> object:
    from transformer_lens.model_bridge import TransformerBridge

    module = gpt2_small("eager", context=CONTEXT)
    module.config.architectures = [type(module).__name__]
    return TransformerBridge.boot_transformers(
        "local/none", hf_model=module, tokenizer=bridge_tokenizer(), device="cpu"
    )


@cache
def _traced() -> object:
    from nnsight import TransformersModel

    return TransformersModel(gpt2_small(context=CONTEXT), tokenizer=bridge_tokenizer())


def plain(given: Tensor) -> Look:
    """transformers' forward pass with sdpa, logits included; the module that ours runs."""
    module = model().torch_module

    def run() -> None:
        with torch.no_grad():
            module(given, use_cache=False)

    return run


def ours(given: Tensor, kind: str) -> Look:
    """`Model.run` with a kind of site at every layer."""
    return lambda: model().run(given, capture=[kind])[f"L{LAYERS[-1]}.{kind}"]


def transformer_lens(given: Tensor, kind: str) -> Look:
    """`run_with_cache` of a bridge with the same names."""
    bridge = _bridge()
    names = [f"blocks.{i}.{'attn.hook_z' if kind == 'z' else 'hook_out'}" for i in LAYERS]

    def run() -> Tensor:
        with torch.no_grad():
            _, kept = bridge.run_with_cache(given, names_filter=names)
        return kept[names[-1]]

    return run


def nnsight(given: Tensor, kind: str) -> Look:
    """A trace that saves the same tensors."""
    from nnsight import save

    lm = _traced()

    def residuals() -> Tensor:
        with torch.no_grad(), lm.trace(given):
            kept = save([block.output for block in lm.transformer.h])
            logits = save(lm.output.logits)
        assert logits.shape[1] == given.shape[1]
        return kept[-1] if isinstance(kept[-1], Tensor) else kept[-1][0]

    def z() -> Tensor:
        with torch.no_grad(), lm.trace(given):
            kept = save([block.attn.c_proj.input for block in lm.transformer.h])
            logits = save(lm.output.logits)
        assert logits.shape[1] == given.shape[1]
        return kept[-1].unflatten(-1, (12, -1))

    return z if kind == "z" else residuals
