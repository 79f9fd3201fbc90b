"""Where the parts of a decoder are, found by watching one short forward pass instead of by model type.

Two tokens are run with our attention function and a hook on every module. Which module called attention, what its input
came out of, what its output went into: these are facts of the data flow, the same for every architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.attention import Call, Recorder, intercept
from interp.errors import BackendError

PROBE = 2  # tokens; one would hide the difference between causal and not


@dataclass(frozen=True, eq=False)
class AttentionPart:
    """One layer's attention as observed: modules around it and sizes of its call."""

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


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The observed parts of a decoder."""

    blocks: nn.ModuleList
    attention: tuple[AttentionPart, ...]
    unembed: nn.Module
    final_norm: nn.Module | None


@dataclass(frozen=True, eq=False)
class _Event:
    """A module that ran: the identities of the tensors it took and gave."""

    path: str
    module: nn.Module
    took: tuple[tuple[int, int], ...]
    gave: tuple[tuple[int, int], ...]
    width: int


def observe(model: PreTrainedModel) -> Anatomy:
    """Parts of a causal decoder.

    Raises:
        BackendError: the model is not causal, bypasses the attention interface, or a part cannot be told apart; the
            message names the module and what was looked for.
    """
    events, calls, kept = _watch(model)
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
    final = _source(events, reads[-1].took[0]) if reads else None
    del kept
    return Anatomy(blocks, parts, unembed, final)


def _watch(model: PreTrainedModel) -> tuple[list[_Event], dict[int, tuple[nn.Module, Call]], list[Tensor]]:
    """Events of a two-token pass, the attention calls by layer, and the tensors (kept so that no address is reused)."""
    events: list[_Event] = []
    calls: dict[int, tuple[nn.Module, Call]] = {}
    kept: list[Tensor] = []

    def note(path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            took = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            gave = [t for t in (output if isinstance(output, tuple | list) else [output]) if isinstance(t, Tensor)]
            kept.extend((*took, *gave))
            width = took[0].shape[-1] if took and took[0].ndim else 0
            events.append(_Event(path, module, tuple(map(_identity, took)), tuple(map(_identity, gave)), width))

        return hook

    recorder = Recorder()

    def keep(layer: int, call: Call) -> None:
        calls[layer] = (recorder.modules[layer], call)
        kept.extend((call.query, call.key, call.value))
        events.append(_Event("(attention)", recorder.modules[layer], (), (), 0))

    recorder.watch = keep
    handles = [m.register_forward_hook(note(path), with_kwargs=True) for path, m in model.named_modules()]
    tokens = torch.zeros(1, PROBE, dtype=torch.long, device=input_device(model))
    try:
        with torch.no_grad(), intercept(model, recorder):
            model(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return events, calls, kept


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go in."""
    return next(model.get_input_embeddings().parameters()).device


def _identity(t: Tensor) -> tuple[int, int]:
    return t.data_ptr(), t.numel()


def _blocks(model: nn.Module, attention: nn.Module, paths: dict[int, str]) -> nn.ModuleList:
    path = paths[id(attention)].split(".")
    for depth in range(1, len(path)):
        module = model.get_submodule(".".join(path[:depth]))
        if isinstance(module, nn.ModuleList):
            return module
    raise BackendError(f"no list of layers above {paths[id(attention)]!r}: looked for the nn.ModuleList that holds it")


def _part(
    layer: int, module: nn.Module, call: Call, blocks: nn.ModuleList, paths: dict[int, str], events: list[_Event]
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
    before = _source(events[:start], own.took[0])
    after = next((e.module for e in events if e.took[:1] == own.gave[:1] and _is_norm(e)), None)
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
    )


def _source(events: list[_Event], tensor: tuple[int, int]) -> nn.Module | None:
    """The norm that produced a tensor, None when something else did (a residual stream, say)."""
    return next((e.module for e in reversed(events) if tensor in e.gave and _is_norm(e)), None)


def _is_norm(event: _Event) -> bool:
    """Norms are leaves with at most a gain and a bias per channel; dropout has no parameters."""
    own = list(event.module.parameters(recurse=False))
    leaf = next(event.module.children(), None) is None
    return leaf and 0 < len(own) <= 2 and all(p.ndim == 1 and p.numel() == event.width for p in own)
