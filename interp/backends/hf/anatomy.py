"""`Anatomy`: the parts of a decoder, found in one short forward pass, whatever its model type.

Which module called attention, what its input came out of, what its output went into, what a layer adds to its input:
these are facts of the data flow (`watch`), the same for every architecture. `stream` finds the parts of the residual.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.attention import Call, Recorder, intercept, number_layers
from interp.backends.hf.embeddings import Embeddings, embeddings
from interp.backends.hf.neurons import router, routers
from interp.backends.hf.shards import Shards, shards
from interp.backends.hf.stream import StreamPart, chain, stream_part
from interp.backends.hf.watch import PROBE, Event, identity, input_device, source, watch
from interp.errors import BackendError

__all__ = ["Anatomy", "AttentionPart", "input_device", "observe"]


@dataclass(frozen=True, eq=False)
class AttentionPart:
    """One layer's attention as observed: modules around it and sizes of its call.

    `direct` says that the output projection takes z as attention gave it (no gate or norm in between), `sliced` that
    what it takes still falls into heads, each from its own z but for one factor of all; `whole` that attention gives z
    at once and not in pieces. `write` is the event of what attention writes, behind its projection; `stray` says why
    its matrices are no maps from stream to stream, empty where they are. `causal`: no query sees a later key; `share`
    is as in `Call`; `biased` that scores have a bias. `altered` names those of q, k and v that are no projection's
    output as it is.
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
    sliced: bool = True
    whole: bool = True
    write: Event | None = None
    stray: str = ""
    biased: bool = False
    altered: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The observed parts of a decoder.

    `unembed` is None where nothing reads tokens off the stream (an encoder); `aside` are attention modules of layers
    with two that are not the ones looked at. `overwrites` says that some module changes its input in
    place, `bundled` that layers give tuples, `carries` that these hold one more tensor, which all hand on (T5's bias of
    positions); `width` is that of the stream; `shards` how heads are spread over processes, None where they are not;
    `n_logits` how many the unembedding gives, None if it was not called or is spread too; `embeds` what embeds tokens
    and positions; `capped` says that logits are not the unembedding's output as it is.
    """

    blocks: nn.ModuleList
    attention: tuple[AttentionPart, ...]
    unembed: nn.Module | None
    final_norm: nn.Module | None
    stream: tuple[StreamPart, ...]
    overwrites: bool
    bundled: bool
    width: int
    shards: Shards | None = None
    n_logits: int | None = None
    aside: frozenset[nn.Module] = frozenset()
    carries: bool = False
    embeds: Embeddings = field(default_factory=Embeddings)
    capped: bool = False

    @property
    def gated(self) -> frozenset[int]:
        """Layers whose z stands inside attention alone: something changes it before the output projection takes it."""
        return frozenset(p.layer for p in self.attention if not p.direct)

    @property
    def n_kv_heads(self) -> int:
        """Key-value heads of every layer; those of layers with fewer count several times, once for each group."""
        return max(p.n_kv_heads for p in self.attention)

    def part(self, layer: int) -> AttentionPart | None:
        """Attention of a layer, None where it has none."""
        return next((p for p in self.attention if p.layer == layer), None)


def observe(model: PreTrainedModel) -> Anatomy:
    """Parts of a stack of layers with self-attention, causal or both ways.

    Raises:
        BackendError: the model bypasses the attention interface, or a part cannot be told apart; the message names the
            module and what was looked for.
    """
    events, calls, logits = watch(model)
    calls, aside = _of_one_kind(calls, to_source=getattr(model, "stack", None) == "cross")
    if aside:
        object.__setattr__(model, "aside", aside)
    if not calls:
        raise BackendError(
            f"{type(model).__name__} never called the attention interface: no softmax attention to measure"
        )
    paths = {id(module): path for path, module in model.named_modules()}
    blocks = _blocks(model, calls[0][0], paths)
    by_layer = _layers(calls, blocks, paths)
    number_layers({module: layer for layer, (module, _) in by_layer.items()})
    unembed = model.get_output_embeddings()
    if unembed is None and getattr(model, "stack", None) != "encoder":
        raise BackendError(
            f"{type(model).__name__} has no output embeddings: looked for the unembedding that gives logits"
        )
    parts = tuple(_part(layer, *by_layer[layer], blocks[layer], paths, events) for layer in sorted(by_layer))
    reads = [e for e in events if e.module is unembed]
    final = _final_norm(events, reads[-1]) if reads else None
    final = (
        None if any(final is m for m in blocks.modules()) else final
    )  # the stream that leaves them is normed already
    parts = _sliced(model, parts)
    at = {part.layer: part for part in parts}
    experts = routers(model)
    stream = tuple(_stream(i, blocks, at.get(i), paths, events, experts) for i in range(len(blocks)))
    overwrites = any(e.overwritten for e in events)
    bundled = any(e.bundled for e in events if e.module is blocks[0])
    more = {e.gave[1:] for e in events if e.module in set(blocks)}
    spread = shards(model)
    n_logits = reads[-1].outputs[0].shape[-1] if reads and spread is None else None
    width = next(e.width for e in events if e.module is blocks[0])
    parts = _gather(parts, spread)
    plain = logits is not None and bool(reads) and torch.equal(reads[-1].outputs[0].float(), logits.float())
    capped = unembed is not None and not plain
    embeds = embeddings(model, paths[id(blocks)], next(e for e in events if e.module is blocks[0]), events)
    return Anatomy(
        blocks,
        parts,
        unembed,
        final,
        stream,
        overwrites,
        bundled,
        width,
        spread,
        n_logits,
        aside,
        more != {()} and len(more) == 1,
        embeds,
        capped,
    )


def _of_one_kind(
    calls: list[tuple[nn.Module, Call]], *, to_source: bool
) -> tuple[list[tuple[nn.Module, Call]], frozenset[nn.Module]]:
    """Calls of attention among the probe's own tokens, or of that to a source, and the modules of the others."""
    kinds: tuple[list[tuple[nn.Module, Call]], ...] = ([], [])
    for module, call in calls:
        kinds[call.key.shape[2] != PROBE].append((module, call))
    return kinds[to_source], frozenset(module for module, _ in kinds[not to_source])


def _final_norm(events: list[Event], unembed: Event) -> nn.Module | None:
    """The norm before the unembedding, with at most a multiplier in between (T5's), which `decompose.head` finds."""
    norm, x = source(events, unembed.took[0]), unembed.inputs[0].double()
    for event in reversed(events):
        if norm is None and event.is_norm and event.outputs and event.outputs[0].shape == x.shape:
            y = event.outputs[0].to(unembed.inputs[0]).double()
            factor = (x * y).sum() / y.square().sum().clamp(min=1e-30)
            norm = event.module if bool((x - factor * y).abs().max() <= 1e-5 * x.abs().max()) else None
    return norm


def _layers(
    calls: list[tuple[nn.Module, Call]], blocks: nn.ModuleList, paths: dict[int, str]
) -> dict[int, tuple[nn.Module, list[Call]]]:
    """The attention module of each layer that has one, with its calls: one, or several that weigh other values alike.

    Raises:
        BackendError: attention outside of the layers, several in one layer, or a layer that is run more than once.
    """
    holders: dict[int, list[int]] = {}
    for i, block in enumerate(blocks):
        for module in block.modules():
            holders.setdefault(id(module), []).append(i)
    result: dict[int, tuple[nn.Module, list[Call]]] = {}
    for module, call in calls:
        path, layers = paths[id(module)], holders.get(id(module), [])
        if not layers:
            raise BackendError(f"{path!r} is in none of the {len(blocks)} layers: looked for the layer that holds it")
        own, before = result.get(layers[0], (module, []))
        alike = all(torch.equal(c.query, call.query) and torch.equal(c.key, call.key) for c in before)
        if len(layers) > 1 or (before and own is module and not alike):
            raise BackendError(
                f"{path!r} is run more than once in a pass, each time on another stream, so that no layer has an "
                "attention of its own to measure"
            )
        if own is not module:
            raise BackendError(
                f"layer {layers[0]} has two attentions, {paths[id(own)]!r} and {path!r}; a layer is measured by one"
            )
        result[layers[0]] = (module, [*before, call])
    return result


def _sliced(model: PreTrainedModel, parts: tuple[AttentionPart, ...]) -> tuple[AttentionPart, ...]:
    """Parts with `sliced` as it is, tried on one layer of each kind of attention that changes z."""
    kinds: dict[type[nn.Module], bool] = {}
    for p in parts:
        if not p.direct and type(p.module) not in kinds:
            kinds[type(p.module)] = p.whole and p.output is not p.module and falls_into_heads(model, p)
    return tuple(p if p.direct else replace(p, sliced=kinds[type(p.module)]) for p in parts)


def falls_into_heads(model: PreTrainedModel, part: AttentionPart) -> bool:
    """Whether what a projection takes is zero at a head whose z is, and the same at the others but for one factor."""
    took: list[Tensor] = []

    def silent(layer: int, z: Tensor) -> Tensor:
        if layer != part.layer or len(took) == 0:
            return z
        z = z.clone()
        z[:, :, 0] = 0.0
        return z

    handle = part.output.register_forward_pre_hook(lambda _, args: took.append(args[0].detach()))
    tokens = torch.arange(PROBE, device=input_device(model))[None]
    try:
        for _ in range(2):
            with torch.no_grad(), intercept(model, Recorder(edit=silent)):
                model(tokens, use_cache=False)
    finally:
        handle.remove()
    full, without = (x.reshape(PROBE, part.n_heads, -1).double() for x in took)
    rest, others = without[:, 1:].flatten(1), full[:, 1:].flatten(1)
    factor = (rest * others).sum(1) / others.square().sum(1).clamp(min=1e-30)
    error = (rest - factor[:, None] * others).abs().max()
    return not bool(without[:, 0].any()) and float(error) <= 1e-4 * float(rest.abs().max())


def _gather(parts: tuple[AttentionPart, ...], spread: Shards | None) -> tuple[AttentionPart, ...]:
    """Attention with the heads of all processes counted."""
    if spread is None:
        return parts
    for p in parts:
        spread.agree((p.n_heads, p.n_kv_heads), f"numbers of heads and key-value heads of layer {p.layer}")
    n = spread.size
    return tuple(replace(p, n_heads=n * p.n_heads, n_kv_heads=n * p.n_kv_heads) for p in parts)


def _stream(
    layer: int,
    blocks: nn.ModuleList,
    part: AttentionPart | None,
    paths: dict[int, str],
    events: list[Event],
    experts: tuple[tuple[type[nn.Module], int], ...],
) -> StreamPart:
    block, before = blocks[layer], blocks[layer - 1] if layer else None
    attention = None if part is None or part.write is None else (paths[id(part.module)], part.write)
    stream = stream_part(layer, paths[id(block)], attention, events)
    inside = [e for e in events if e.within(paths[id(block)])]
    chosen = router(experts, [e for e in inside if part is None or not e.within(paths[id(part.module)])])
    if chosen is None:
        stream.missing["router_logits"] = f"layer {layer} has no mixture of experts whose router transformers names"
    else:
        event, at = chosen
        stream = replace(stream, router=event.module, router_at=at, router_last=not event.bundled)
    own = {e.module: e for e in events if e.module is block or e.module is before}
    if before is not None and not torch.equal(own[before].outputs[0].cpu(), own[block].inputs[0].cpu()):
        stream.missing["resid_pre"] = f"what enters layer {layer} is not what layer {layer - 1} gives"
    if part is not None and not part.sliced:
        stream.missing["head_out"] = (
            f"layer {layer} mixes the z of its heads before its output projection, so heads have no writes of their own"
        )
    if part is not None and not part.whole:
        stream.missing["z"] = f"attention of layer {layer} weighs its values in several pieces, which are then combined"
    return stream


def _blocks(model: nn.Module, attention: nn.Module, paths: dict[int, str]) -> nn.ModuleList:
    path = paths[id(attention)].split(".")
    for depth in range(1, len(path)):
        module = model.get_submodule(".".join(path[:depth]))
        if isinstance(module, nn.ModuleList):
            return module
    raise BackendError(f"no list of layers above {paths[id(attention)]!r}: looked for the nn.ModuleList that holds it")


def _part(
    layer: int, module: nn.Module, calls: list[Call], block: nn.Module, paths: dict[int, str], events: list[Event]
) -> AttentionPart:
    path, call = paths[id(module)], calls[-1]
    n_heads, d_value = call.query.shape[1], call.value.shape[-1]
    start = next(i for i, e in enumerate(events) if e.path == "(attention)" and e.module is module)
    own = next(e for e in events if e.path == path)
    output = _output(own, events[start:], paths[id(block)], n_heads * d_value)
    block_event = next(e for e in events if e.path == paths[id(block)])
    before, stray = _reads(layer, own, block_event, [e for e in events[:start] if e.within(block_event.path)])
    if output is None:
        stray = f"{path!r} has no one output projection: looked for a module that takes {n_heads * d_value} numbers"
    write = own if output is None or output.within(path) else output
    after = next((e.module for e in events if e.took[:1] == write.gave[:1] and e.is_norm), None)
    return AttentionPart(
        layer=layer,
        module=module,
        block=block,
        output=module if output is None else output.module,
        norm_before=before,
        norm_after=after,
        n_heads=n_heads,
        n_kv_heads=call.key.shape[1],
        d_head=call.query.shape[-1],
        d_value=d_value,
        softcap=call.softcap,
        sink_logits=call.sinks is not None,
        direct=output is not None and output.took[:1] == events[start].gave[:1],
        causal=call.mask.is_causal,
        share=call.softmax_share,
        whole=len(calls) == 1,
        write=write,
        stray=stray,
        biased=call.bias is not None,
        altered=_altered(call, [e for e in events[:start] if e.within(path)]),
    )


def _reads(layer: int, own: Event, block: Event, inside: list[Event]) -> tuple[nn.Module | None, str]:
    """The norm through which attention reads the layer's stream, None without; and why it does not read that, or ""."""
    took, stream = own.inputs[0], block.inputs[0]
    norms = [e for e in inside if e.is_norm and e.outputs and _same(e.outputs[0], took)]
    norm = next((e for e in norms if e.gave[0] == own.took[0]), norms[-1] if norms else None)
    if _same(stream if norm is None else norm.inputs[0], took if norm is None else stream):
        return (None if norm is None else norm.module), ""
    why = f"attention of layer {layer} reads something else than the layer's stream, as it is or through one norm"
    return (None if norm is None else norm.module), why


def _altered(call: Call, before: list[Event]) -> frozenset[str]:
    """Those of q, k and v whose numbers are not all among what projections in front of attention gave."""
    outputs = [e.outputs[0].flatten() for e in before if e.is_projection and e.outputs]
    pool = torch.cat(outputs) if outputs else call.query.new_zeros(0)
    tensors = {"q": call.query, "k": call.key, "v": call.value}
    return frozenset(name for name, x in tensors.items() if not bool(torch.isin(x.to(pool), pool).all()))


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, but for their shape."""
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.to(one).flatten())


def _output(own: Event, after: list[Event], block: str, width: int) -> Event | None:
    """The output projection: in the attention module, or in its layer behind it, taking what it gives.

    In the module, it is what makes the module's output (a gate may take tensors of the same width), else what takes z.
    """
    fitting = [e for e in after if e.width == width and not e.is_norm and next(e.module.parameters(), None) is not None]
    inside = [e for e in fitting if e.within(own.path)]
    behind = [e for e in fitting if e.within(block) and e.took[:1] == own.gave[:1]]
    made = [e for e in inside if identity(own.outputs[0]) in map(identity, chain(e.outputs[0], after))]
    direct = [e for e in inside if e.took[:1] == after[0].gave[:1]]
    return next(iter([*made, *direct, *inside, *behind]), None)
