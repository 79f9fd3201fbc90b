"""Plain, dense measurements on repeated random tokens: what the zoo's cards and tests report.

They read eager attention matrices and share no code with `interp.attention`, so that neither can
hide a mistake of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from interp.zoo.tokenizer import SPECIALS

BOS = SPECIALS.index("<bos>")


def layers_of(model: LlamaForCausalLM) -> list[LlamaDecoderLayer]:
    """The decoder layers, first to last, under their own type (a ModuleList forgets it)."""
    return [cast(LlamaDecoderLayer, layer) for layer in model.model.layers]


def repeated_tokens(
    *, batch: int, period: int, repeats: int, n_words: int, generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    """`<bos>` and a block of `period` distinct random words, `repeats` times.

    pos = 1 + period * repeats; copy c of block token t (both from 0) sits at 1 + c * period + t.
    Raises ValueError where a block would need more distinct words than there are.
    """
    if period > n_words:
        raise ValueError(f"period {period} needs more distinct words than the {n_words} there are")
    noise = torch.rand(batch, n_words, generator=generator)
    block = noise.topk(period, dim=-1).indices + len(SPECIALS)
    bos = torch.full((batch, 1), BOS)
    return torch.cat([bos, block.repeat(1, repeats)], dim=1)


@torch.no_grad()
def patterns(model: LlamaForCausalLM, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer batch head query key"]:
    """Attention probabilities of every head, from eager attention; the setting is put back."""
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    try:
        return torch.stack(model(tokens, output_attentions=True, use_cache=False).attentions)
    finally:
        model.set_attn_implementation(before)


def head_scores(
    model: LlamaForCausalLM, tokens: Int[Tensor, "batch pos"], *, period: int
) -> dict[str, Float[Tensor, "layer head"]]:
    """Mean attention probability per head on four keys, over the batch and second-copy queries.

    With T = `period` and queries i > T: `previous` A[i, i-1], `duplicate` A[i, i-T], `induction`
    A[i, i-T+1], `first` A[i, 0]. Probabilities; a head that attends uniformly scores about
    log(2) / T on each. Beyond two copies only the latest earlier copy counts.
    """
    pattern = patterns(model, tokens).mean(dim=1)
    offsets = {"previous": 1, "duplicate": period, "induction": period - 1}
    scores = {
        name: pattern.diagonal(-offset, dim1=-2, dim2=-1)[..., period + 1 - offset :].mean(-1)
        for name, offset in offsets.items()
    }
    return {**scores, "first": pattern[..., period + 1 :, 0].mean(-1)}


@torch.no_grad()
def second_copy(model: LlamaForCausalLM, tokens: Int[Tensor, "batch pos"], *, period: int) -> dict[str, float]:
    """Greedy accuracy (fraction) and loss (nats) on the second copy and later.

    The first token of the second copy is left out: nothing before it says that a copy begins.
    """
    logits = model(tokens, use_cache=False).logits[:, period + 1 : -1].float()
    targets = tokens[:, period + 2 :]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets)
    return {
        "accuracy": (logits.argmax(-1) == targets).float().mean().item(),
        "loss": loss.item(),
    }


@contextmanager
def zeroed(model: LlamaForCausalLM, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
    """While open, the outputs of the (layer, head) pairs are zero before the output projection."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)

    def silence(chosen: list[int]):
        def hook(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].unflatten(-1, (model.config.num_attention_heads, -1)).clone()
            z[..., chosen, :] = 0.0
            return (z.flatten(-2), *args[1:])

        return hook

    handles = [
        layers_of(model)[layer].self_attn.o_proj.register_forward_pre_hook(silence(chosen))
        for layer, chosen in by_layer.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
