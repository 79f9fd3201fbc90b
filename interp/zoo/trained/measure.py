"""Plain, dense measurements on repeated random tokens: what the zoo's cards and tests report.

They read eager attention matrices and share no code with `interp.attention`, so that neither can
hide a mistake of the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from interp.zoo.trained.tokenizer import SPECIALS

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
def patterns(model: PreTrainedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer batch head query key"]:
    """Attention probabilities of every head, from eager attention; the setting is put back."""
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    try:
        return torch.stack(model(tokens, output_attentions=True, use_cache=False).attentions)
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def streams(model: PreTrainedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer batch pos d_model"]:
    """The residual stream behind every block; transformers' own list has the last one only behind the final norm."""
    states: list[Tensor] = []

    def keep(_module: torch.nn.Module, _args: object, out: Tensor | tuple[Tensor, ...]) -> None:
        states.append(out if isinstance(out, Tensor) else out[0])

    blocks = [module for name, module in model.named_modules() if re.search(r"\.(layers|h)\.\d+$", name)]
    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        model(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(states)


def head_scores(
    model: PreTrainedModel, tokens: Int[Tensor, "batch pos"], *, period: int
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
def second_copy_scores(model: PreTrainedModel, tokens: Int[Tensor, "batch pos"], *, period: int) -> dict[str, float]:
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
def zeroed(
    model: PreTrainedModel, heads: Iterable[tuple[int, int]] = (), *, neurons: Iterable[tuple[int, int]] = ()
) -> Iterator[None]:
    """While open, what the (layer, head) pairs and the (layer, neuron) pairs hand to their output projection is zero.

    Works on Llamas and GPT-2s, by plain torch hooks.
    """
    n_heads = model.config.num_attention_heads
    handles = [
        *_silencers(model, "attention", heads, parts=n_heads),
        *_silencers(model, "mlp", neurons, parts=-1),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_OUTPUTS = {"attention": ("self_attn.o_proj", "attn.c_proj"), "mlp": ("mlp.down_proj", "mlp.c_proj")}
"""Where Llama and GPT-2 keep the last matrix of a part."""


def _silencers(
    model: PreTrainedModel, kind: str, places: Iterable[tuple[int, int]], *, parts: int
) -> list[RemovableHandle]:
    """Hooks that zero the given parts of what goes into an output projection, cut into `parts` (-1: single numbers)."""
    by_layer: dict[int, list[int]] = {}
    for layer, index in places:
        by_layer.setdefault(layer, []).append(index)

    def silence(indices: list[int]):
        def hook(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0].unflatten(-1, (parts, -1) if parts > 0 else (-1, 1)).clone()
            x[..., indices, :] = 0.0
            return (x.flatten(-2), *args[1:])

        return hook

    modules = dict(model.named_modules())
    return [
        next(
            module
            for name, module in modules.items()
            if name.endswith(tuple(f".{layer}.{path}" for path in _OUTPUTS[kind]))
        ).register_forward_pre_hook(silence(indices))
        for layer, indices in by_layer.items()
    ]
