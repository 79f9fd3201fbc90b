"""`Anatomy`: the parts of a decoder, found in one short forward pass, whatever its model type.

Which module called attention, what its input came out of, what its output went into, what a layer adds to its input:
these are facts of the data flow (`watch`), the same for every architecture. `stream` finds the parts of the residual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from interp.attention import Call
from interp.backends.hf.shards import Shards, shards
from interp.backends.hf.stream import StreamPart, stream_part
from interp.backends.hf.watch import Event, input_device, source, watch
from interp.errors import BackendError

__all__ = ["Anatomy", "AttentionPart", "input_device", "observe"]


@dataclass(frozen=True, eq=False)
class AttentionPart:
    """One layer's attention as observed: modules around it and sizes of its call.

    `direct` says that the output projection takes z as attention gave it (no gate in between); `causal` that no query
    sees a later key; `share` is as in `Call`.
    """

    layer: int
    module: nn.Module
    block: nn.Module
    output: nn.Module
    norm_before: nn.Module | None
    norm_after: nn.Module | None
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    softcap: float | None
    sink_logits: bool
    direct: bool = True
    causal: bool = True
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The observed parts of a decoder.

    `overwrites` says that some module changes its input in place, `bundled` that layers give tuples; `shards` how heads
    are spread over processes, None where they are not; `n_logits` how many the unembedding gives, None if it was not
    called or is spread too.
    """

    blocks: nn.ModuleList
    attention: tuple[AttentionPart, ...]
    unembed: nn.Module
    final_norm: nn.Module | None
    stream: tuple[StreamPart, ...]
    overwrites: bool
    bundled: bool
    shards: Shards | None = None
    n_logits: int | None = None

    def part(self, layer: int) -> AttentionPart | None:
        """Attention of a layer, None where it has none."""
        return next((p for p in self.attention if p.layer == layer), None)


def observe(model: PreTrainedModel) -> Anatomy:
    """Parts of a stack of layers with self-attention, causal or both ways.

    Raises:
        BackendError: the model bypasses the attention interface, or a part cannot be told apart; the message names the
            module and what was looked for.
    """
    events, calls = watch(model)
    if not calls:
        raise BackendError(
            f"{type(model).__name__} never called the attention interface: no softmax attention to measure"
        )
    paths = {id(module): path for path, module in model.named_modules()}
    blocks = _blocks(model, next(iter(calls.values()))[0], paths)
    unembed = model.get_output_embeddings()
    if unembed is None:
        raise BackendError(
            f"{type(model).__name__} has no output embeddings: looked for the unembedding that gives logits"
        )
    parts = tuple(_part(layer, module, call, blocks, paths, events) for layer, (module, call) in sorted(calls.items()))
    reads = [e for e in events if e.module is unembed]
    final = source(events, reads[-1].took[0]) if reads else None
    by_layer = {part.layer: part for part in parts}
    stream = tuple(_stream(i, blocks, by_layer.get(i), paths, events) for i in range(len(blocks)))
    overwrites = any(e.overwritten for e in events)
    bundled = any(e.bundled for e in events if e.module is blocks[0])
    spread = shards(model)
    n_logits = reads[-1].outputs[0].shape[-1] if reads and spread is None else None
    return Anatomy(blocks, _gather(parts, spread), unembed, final, stream, overwrites, bundled, spread, n_logits)


def _gather(parts: tuple[AttentionPart, ...], spread: Shards | None) -> tuple[AttentionPart, ...]:
    """Attention with the heads of all processes counted."""
    if spread is None:
        return parts
    for p in parts:
        spread.agree((p.n_heads, p.n_kv_heads), f"numbers of heads and key-value heads of layer {p.layer}")
    n = spread.size
    return tuple(replace(p, n_heads=n * p.n_heads, n_kv_heads=n * p.n_kv_heads) for p in parts)


def _stream(
    layer: int, blocks: nn.ModuleList, part: AttentionPart | None, paths: dict[int, str], events: list[Event]
) -> StreamPart:
    block, before = blocks[layer], blocks[layer - 1] if layer else None
    attention = None if part is None else paths[id(part.module)]
    stream = stream_part(layer, paths[id(block)], attention, events)
    own = {e.module: e for e in events if e.module is block or e.module is before}
    if before is not None and not torch.equal(own[before].outputs[0].cpu(), own[block].inputs[0].cpu()):
        stream.missing["resid_pre"] = f"what enters layer {layer} is not what layer {layer - 1} gives"
    if part is not None and not part.direct:
        stream.missing["head_out"] = (
            f"layer {layer} changes z before its output projection, so heads do not write z W_O"
        )
    return stream


def _blocks(model: nn.Module, attention: nn.Module, paths: dict[int, str]) -> nn.ModuleList:
    path = paths[id(attention)].split(".")
    for depth in range(1, len(path)):
        module = model.get_submodule(".".join(path[:depth]))
        if isinstance(module, nn.ModuleList):
            return module
    raise BackendError(f"no list of layers above {paths[id(attention)]!r}: looked for the nn.ModuleList that holds it")


def _part(
    layer: int, module: nn.Module, call: Call, blocks: nn.ModuleList, paths: dict[int, str], events: list[Event]
) -> AttentionPart:
    path = paths[id(module)]
    n_heads, d_value = call.query.shape[1], call.value.shape[-1]
    start = next(i for i, e in enumerate(events) if e.path == "(attention)" and e.module is module)
    output = next((e for e in events[start:] if e.path.startswith(path + ".") and e.width == n_heads * d_value), None)
    if output is None:
        raise BackendError(
            f"no output projection in {path!r}: looked for a submodule of width {n_heads * d_value} after it"
        )
    own = next(e for e in events if e.path == path)
    before = source(events[:start], own.took[0])
    after = next((e.module for e in events if e.took[:1] == own.gave[:1] and e.is_norm), None)
    block = next((b for b in blocks if any(m is module for m in b.modules())), None)
    if block is None:
        raise BackendError(f"{path!r} is in none of the {len(blocks)} layers: looked for the layer that holds it")
    return AttentionPart(
        layer=layer,
        module=module,
        block=block,
        output=output.module,
        norm_before=before,
        norm_after=after,
        n_heads=n_heads,
        n_kv_heads=call.key.shape[1],
        d_head=call.query.shape[-1],
        d_value=d_value,
        softcap=call.softcap,
        sink_logits=call.sinks is not None,
        direct=output.took[:1] == events[start].gave[:1],
        causal=call.mask.is_causal,
        share=call.share,
    )
