"""`Weights` of a bridge: read as those of any module, with q, k and v caught by the operations of its attention."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from interp.attention import Call, CausalMask, StopForward
from interp.backends.hf.anatomy import Anatomy, AttentionPart
from interp.backends.hf.feed import Feeder
from interp.backends.hf.read_weights import ModuleSource
from interp.backends.lens.eager import EagerAttention
from interp.backends.lens.parts import LensParts, resolve
from interp.backends.lens.writes import read_reads, read_writes
from interp.errors import BackendError
from interp.numerics import evaluating, exactly
from interp.weights.stream import Reads, Writes
from interp.weights.weights import Weights


def read_weights(bridge: Any, parts: LensParts, softcap: float | None) -> Weights:
    """Weights of a bridge as they are now: folded or centred if TransformerLens did so."""
    model = bridge.original_model
    attention = tuple(_part(parts, layer, softcap) for layer in parts.attention)
    unembed = model.get_output_embeddings()
    unembed = resolve(unembed, "original_component") or unembed
    final = resolve(bridge, "ln_final.original_component")
    anatomy = Anatomy(parts.blocks, attention, unembed, final, (), False, bool(parts.tuples), parts.d_model)
    source = BridgeSource(model, anatomy, parts)
    source.reader.feeder = LensFeeder(model, attention)
    return Weights(source)


class BridgeSource(ModuleSource):
    """Source of `Weights` in the module inside a bridge."""

    def __init__(self, model: Any, anatomy: Anatomy, parts: LensParts) -> None:
        super().__init__(model, anatomy)
        self.bridge_parts = parts

    def around(self, layer: int) -> tuple[Writes, Reads]:
        """What a layer writes and reads."""
        return read_writes(self.bridge_parts, layer), read_reads(self.bridge_parts, layer)

    def foreign(self, module: nn.Module) -> bool:
        """Whether a module is TransformerLens's, whose hooks are the user's."""
        return resolve(module, "original_component") is not None or hasattr(module, "hook_out")


def _part(parts: LensParts, layer: int, softcap: float | None) -> AttentionPart:
    block: Any = parts.blocks[layer]
    if resolve(block, "attn.o.original_component") is None:
        raise BackendError(f"layer {layer}: the bridge has no one output projection of its attention, so no W_O")
    return AttentionPart(
        layer=layer,
        module=parts.attention[layer],
        block=block,
        output=block.attn.o.original_component,
        norm_before=resolve(block, "ln1.original_component"),
        norm_after=resolve(block, "ln1_post.original_component"),
        n_heads=parts.n_heads,
        n_kv_heads=parts.n_kv_heads,
        d_head=parts.d_head,
        d_value=parts.d_value,
        softcap=softcap,
        sink_logits=parts.sink_logits,
        direct=True,
    )


class LensFeeder(Feeder):
    """A `Feeder` for attention that computes its scores by itself."""

    def _call(self, part: AttentionPart, hidden: Tensor, args: tuple, kwargs: dict) -> Call:
        """q, k and v of a batch; row by row where the other arguments are of one prompt (BLOOM's position bias)."""
        try:
            return self._once(part, hidden, args, kwargs)
        except (RuntimeError, ValueError):
            if len(hidden) == 1:
                raise
        calls = [self._once(part, row[None], args, kwargs) for row in hidden]
        q, k, v = (torch.cat([getattr(call, name) for call in calls]) for name in ("query", "key", "value"))
        mask = CausalMask(len(hidden), hidden.shape[1], hidden.shape[1], device=hidden.device)
        return Call(q, k, v, calls[-1].scale, mask, part.softcap)

    def _once(self, part: AttentionPart, hidden: Tensor, args: tuple, kwargs: dict) -> Call:
        tensors: dict[str, Tensor] = {}

        def visit(layer: int, kind: str, x: Tensor) -> Tensor:
            tensors[kind] = x
            if kind == "v":
                raise StopForward
            return x

        mode = EagerAttention(visit, n_heads=part.n_heads, n_kv_heads=part.n_kv_heads)
        mode.enter(part.layer, hidden.shape[0], hidden.shape[1])
        with evaluating(self.model), torch.no_grad():
            try:
                with mode:
                    if args:
                        exactly(part.module, hidden, *args[1:], **kwargs)
                    else:
                        exactly(part.module, **{**kwargs, "hidden_states": hidden})
            except StopForward:
                mask = CausalMask(hidden.shape[0], hidden.shape[1], hidden.shape[1], device=hidden.device)
                return Call(tensors["q"], tensors["k"], tensors["v"], _scale(tensors, part), mask, part.softcap)
        raise BackendError(f"layer {part.layer}: its attention module ran without a product of pattern and values")

    def _arguments(self, positions: tuple[int, ...]) -> dict[int, tuple[tuple, dict]]:
        arguments: dict[int, tuple[tuple, dict]] = {}

        def keep(layer: int) -> Any:
            def hook(module: Any, args: tuple, kwargs: dict) -> None:
                arguments[layer] = (args, kwargs)

            return hook

        if positions in self._inputs:
            return self._inputs[positions]
        with ExitStack() as stack:
            for part in self.parts:
                handle = part.module.register_forward_pre_hook(keep(part.layer), with_kwargs=True)
                stack.callback(handle.remove)
            with evaluating(self.model), torch.no_grad():
                self.model(**self._tokens(positions))
        self._inputs[positions] = arguments
        while len(self._inputs) > 2:
            self._inputs.popitem(last=False)
        return arguments


def _scale(tensors: dict[str, Tensor], part: AttentionPart) -> float:
    """Scale of the scores: score over q . k of the first token with itself, free of mask and position."""
    group = part.n_heads // part.n_kv_heads
    product = (tensors["q"][:, :, 0] * tensors["k"][:, ::1, 0].repeat_interleave(group, 1)).sum(-1).double()
    score = tensors["scores"][:, :, 0, 0].double()
    if part.softcap is not None:
        score = part.softcap * torch.atanh((score / part.softcap).clamp(-0.999999, 0.999999))
    if not bool((product != 0).any()):
        return 1.0
    return float((score * product).sum() / product.square().sum())
