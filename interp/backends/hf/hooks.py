"""`Hooks`: a pass on a transformers model, as hooks at the modules concerned, removed afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interp.attention import StopForward
from interp.backends.hf.anatomy import Anatomy
from interp.backends.hf.head_out import HeadWriter
from interp.backends.hf.read_norms import read_norm
from interp.backends.hf.shards import takes_part
from interp.backends.plan.capture import Pass
from interp.backends.plan.checks import check_finite
from interp.backends.plan.places import Place
from interp.sites import DIVISORS, MODULE, Site

Visit = Callable[[Tensor], Tensor]


class Hooks:
    """Registers what a `Pass` needs on the modules of one model."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, plan: Pass) -> None:
        self.model, self.anatomy, self.plan = model, anatomy, plan
        self.resid: dict[int, Tensor] = {}
        self.z: dict[int, Tensor] = {}
        self._stack = contextlib.ExitStack()
        # Parts are read by calling them, so before any hook stands on them, and anew each time: weights may change.
        asked = dict.fromkeys((*plan.captures, *plan.edits))
        self.writers = {i: HeadWriter(anatomy, i) for kind, i in asked if kind == "head_out" and i is not None}
        self.norms = {place: read_norm(norm, _width(norm, anatomy.width)) for place, norm in self._read_norms()}

    def _read_norms(self) -> Iterator[tuple[Place, nn.Module]]:
        """Norms whose divisor is asked for, by place."""
        for kind, layer in self.plan.captures:
            norm = self._norm_at(kind, layer) if kind in DIVISORS else None
            if norm is not None:
                yield (kind, layer), norm

    def _norm_at(self, kind: str, layer: int | None) -> nn.Module | None:
        if layer is None:
            return self.anatomy.final_norm
        part, stream = self.anatomy.part(layer), self.anatomy.stream[layer]
        if kind in ("norm_scale", "attn_out_norm_scale"):
            return None if part is None else part.norm_before if kind == "norm_scale" else part.norm_after
        return stream.mlp_norm if kind == "mlp_norm_scale" else stream.mlp_norm_after

    @contextlib.contextmanager
    def installed(
        self, *, start: tuple[int, Tensor] | None = None, stop: int | None = None, finite: bool = False
    ) -> Iterator[None]:
        """Context in which the model carries out the pass; `start` and `stop` as in `Model.run`.

        `finite` checks the stream behind the last layer: NaN anywhere before it ends up there.
        """
        with self._stack:
            first = 0 if start is None else start[0]
            last = len(self.anatomy.blocks) - 1 if stop is None else stop
            for layer in range(first):
                self._stack.enter_context(
                    _passing(self.anatomy.blocks[layer], self.anatomy.bundled, self.anatomy.carries)
                )
            busy = {layer for _, layer in (*self.plan.captures, *self.plan.edits)} | {first}
            for layer in (layer for layer in range(first, last + 1) if layer in busy):
                self._layer(layer, start[1] if start is not None and layer == first else None, layer == first)
            self._ends()
            if finite:
                self._after(self.anatomy.blocks[last], lambda x: self._check(last, x))
            if stop is not None:
                self._after(self.anatomy.blocks[stop], _stop)
            yield

    def _layer(self, layer: int, resid: Tensor | None, first: bool) -> None:
        plan, block, part = self.plan, self.anatomy.blocks[layer], self.anatomy.part(layer)
        enters = resid is not None or (first and plan.gradients) or (layer == 0 and plan.asks(None, "embed"))
        middle = plan.edited(layer, "resid_mid") or (plan.gradients and plan.asks(layer, "resid_mid"))
        if enters or middle or plan.asks(layer, "resid_pre"):
            self._before(block, lambda x: self._entering(layer, x, resid, first))
        if part is not None and plan.asks(layer, "z", "head_out") and part.direct:
            self._before(part.output, lambda x: self._z(layer, part.n_heads, x))
        elif part is not None and plan.asks(layer, "head_out"):
            self._before(part.output, lambda x: self._gated_z(layer, part.n_heads, x))
        for kind in DIVISORS if self.norms else ():
            norm = self._norm_at(kind, layer) if (kind, layer) in self.norms else None
            if norm is not None:
                self._norm(norm, kind, layer)
        if part is not None and plan.asks(layer, "attn_in"):
            self._before(part.module, lambda x: plan.spread("attn_in", layer, x.view_as(x)))  # the MLP may take it too
        self._writes(layer, middle)
        if plan.asks(layer, "resid_post"):
            self._after(block, lambda x: plan.visit("resid_post", layer, x))

    def _writes(self, layer: int, middle: bool) -> None:
        """What attention and MLP read and write."""
        plan, stream = self.plan, self.anatomy.stream[layer]
        if stream.attn_out is not None and (middle or plan.asks(layer, "attn_out", "head_out")):
            self._on_output(stream.attn_out, lambda x, took: self._attn_out(layer, x, took, middle))
        if stream.resid_mid is not None and plan.asks(layer, "resid_mid") and not middle:
            self._before(stream.resid_mid, lambda x: plan.spread("resid_mid", layer, x))
        if plan.asks(layer, "mlp_in"):
            visit = _once(lambda x: plan.spread("mlp_in", layer, x.view_as(x)))  # attention may take the same tensor
            for module in stream.mlp_in:
                self._before(module, visit)
        if stream.mlp_pre is not None and plan.asks(layer, "mlp_pre", "mlp_up"):
            self._pre_activations(layer, stream.mlp_pre, stream.mlp_up)
        if stream.router is not None and plan.asks(layer, "router_logits"):
            self._after(stream.router, lambda x: plan.spread("router_logits", layer, x), at=stream.router_at)
        if stream.mlp_post is not None and plan.asks(layer, "mlp_post"):
            self._before(stream.mlp_post, lambda x: plan.spread("mlp_post", layer, x))
        if stream.mlp_out is not None and plan.asks(layer, "mlp_out"):
            scale = stream.mlp_scale
            self._after(stream.mlp_out, lambda x: self._at_scale("mlp_out", layer, x, scale))

    def _pre_activations(self, layer: int, pre: nn.Module, up: nn.Module | None) -> None:
        plan, gate_first = self.plan, self.anatomy.stream[layer].gate_first
        if pre is up:

            def both(x: Tensor) -> Tensor:
                kinds = ("mlp_pre", "mlp_up") if gate_first else ("mlp_up", "mlp_pre")
                halves = x.chunk(2, dim=-1)
                results = [plan.spread(kind, layer, half) for kind, half in zip(kinds, halves, strict=True)]
                same = all(result is half for result, half in zip(results, halves, strict=True))
                return x if same else torch.cat(results, dim=-1)

            self._after(pre, both)
            return
        for kind, module in (("mlp_pre", pre), ("mlp_up", up)):
            if module is not None and plan.asks(layer, kind):
                self._after(module, lambda x, kind=kind: plan.spread(kind, layer, x))

    def _modules(self) -> None:
        """Inputs and outputs of modules by their names, and the embeddings of tokens and positions."""
        plan, embeds = self.plan, self.anatomy.embeds
        if embeds.tokens is not None and plan.asks(None, "token_embed"):
            self._after(embeds.tokens, lambda x: plan.visit("token_embed", None, x))
        if embeds.positions is not None and plan.asks(None, "pos_embed"):
            self._after(
                embeds.positions, lambda x: plan.visit("pos_embed", None, x.expand(plan.shape[0], *x.shape[-2:]))
            )
        for kind in dict.fromkeys(kind for kind, _ in (*plan.captures, *plan.edits) if kind.startswith(MODULE)):
            module = self.model.get_submodule(Site(kind).module)
            visit = plan.tolerant(kind)
            if kind.endswith(":input"):
                self._before(module, visit)
            else:
                self._after(module, visit)

    def _ends(self) -> None:
        self._modules()
        if self.anatomy.final_norm is not None and ("norm_scale", None) in self.norms:
            self._norm(self.anatomy.final_norm, "norm_scale", None)
        if self.anatomy.unembed is not None and self.plan.asks(None, "unembed_in"):
            self._before(self.anatomy.unembed, lambda x: self.plan.visit("unembed_in", None, x))
        if self.plan.asks(None, "logits"):

            def logits(module: nn.Module, args: tuple, output: Any) -> Any:
                output.logits = self.plan.visit("logits", None, output.logits)
                return output

            self._register(self.model.register_forward_hook(logits))

    def _entering(self, layer: int, x: Tensor, resid: Tensor | None, first: bool) -> Tensor:
        plan = self.plan
        x = x if resid is None else resid.to(x)
        if first and plan.gradients and not x.requires_grad:
            x = x.detach().requires_grad_()
        if layer == 0 and resid is None:
            x = plan.visit("embed", None, x)
        self.resid[layer] = x = plan.visit("resid_pre", layer, x)
        return x

    def _check(self, layer: int, x: Tensor) -> Tensor:
        start = self.plan.offset
        check_finite(x, self.plan.mask[:, start : start + x.shape[1]], layer)
        return x

    def _z(self, layer: int, n_heads: int, x: Tensor) -> Tensor:
        z = x.reshape(*self.plan.shape, n_heads, -1)
        result = self.z[layer] = self.plan.visit("z", layer, z)
        return x if result is z and not self.plan.gradients else result.reshape(x.shape)

    def _gated_z(self, layer: int, n_heads: int, x: Tensor) -> Tensor:
        """Keep what the output projection takes of each head, where that is no longer z."""
        self.z[layer] = x.reshape(*self.plan.shape, n_heads, -1)
        return x

    def _attn_out(self, layer: int, x: Tensor, took: Tensor | None, middle: bool) -> Tensor:
        plan, scale = self.plan, self.anatomy.stream[layer].attn_scale
        output = x if x.shape[:2] == plan.shape else x.reshape(*plan.shape, -1)
        out = output if scale == 1.0 else output * scale
        if layer in self.writers:
            out = self._head_out(layer, out, took)
        out = plan.visit("attn_out", layer, out)
        if middle:
            stream = self.resid[layer] + out
            result = plan.visit("resid_mid", layer, stream)
            out = result - self.resid[layer] if plan.gradients else out + (result - stream)
        return (out if scale == 1.0 else out / scale).reshape(x.shape)

    def _head_out(self, layer: int, out: Tensor, took: Tensor | None) -> Tensor:
        """Attention's write with that of single heads replaced: unchanged bits where no head was changed."""
        old = self.writers[layer].write(self.z.pop(layer), took)
        new = self.plan.visit("head_out", layer, old.clone() if self.plan.gradients else old)
        return out if new is old else out + (new - old).sum(2)

    def _at_scale(self, kind: str, layer: int, x: Tensor, scale: float) -> Tensor:
        if scale == 1.0:
            return self.plan.spread(kind, layer, x)
        value = x * scale
        result = self.plan.spread(kind, layer, value)
        return x if result is value and not self.plan.gradients else result / scale

    def _norm(self, norm: nn.Module, kind: str, layer: int | None) -> None:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            if not self.plan.active:
                return
            x = args[0].reshape(*self.plan.shape, -1)
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            self.plan.visit(kind, layer, self.norms[kind, layer].divisor(wide))

        self._register(norm.register_forward_hook(hook))

    def _before(self, module: nn.Module, change: Visit) -> None:
        spread = self.anatomy.shards
        if spread is not None and takes_part(module):
            inner = change
            change = lambda x: spread.local(inner(spread.gather(x, -1)), -1)  # noqa: E731

        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            if not self.plan.active:
                return None
            if args:  # some take their input three times, as query, key and value
                new = change(args[0])
                return tuple(new if a is args[0] else a for a in args), kwargs
            name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            return args, {**kwargs, name: change(kwargs[name])}

        self._register(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, change: Visit, *, at: int = 0) -> None:
        self._on_output(module, lambda x, _: change(x), at=at)

    def _on_output(self, module: nn.Module, change: Callable[[Tensor, Tensor | None], Tensor], *, at: int = 0) -> None:
        def hook(_: nn.Module, args: tuple, output: Any) -> Any:
            if not self.plan.active:
                return None
            took = args[0] if args and isinstance(args[0], Tensor) else None
            if isinstance(output, tuple):
                return (*output[:at], change(output[at], took), *output[at + 1 :])
            return change(output, took)

        self._register(module.register_forward_hook(hook))

    def _register(self, handle: Any) -> None:
        self._stack.callback(handle.remove)


def _width(norm: nn.Module, stream: int) -> int:
    """Width of a norm: that of its gain, of the stream where it has none."""
    return next((p.numel() for p in norm.parameters()), stream)


def _once(visit: Visit) -> Visit:
    """The same visit for several modules that take one tensor: it happens once."""
    memory: list[tuple[Tensor, Tensor]] = []

    def change(x: Tensor) -> Tensor:
        if not memory or memory[0][0] is not x:
            memory[:] = [(x, visit(x))]
        return memory[0][1]

    return change


def _stop(x: Tensor) -> Tensor:
    raise StopForward


@contextlib.contextmanager
def _passing(block: nn.Module, bundled: bool, carries: bool) -> Iterator[None]:
    """A layer that lets its input through; it computes nothing but what it hands on beside the stream, if anything."""
    before, own = block.__dict__.get("forward"), block.forward

    def through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if carries:
            return (hidden_states, *own(hidden_states, *args, **kwargs)[1:])
        return (hidden_states,) if bundled else hidden_states

    block.forward = through
    try:
        yield
    finally:
        if before is None:
            block.__dict__.pop("forward", None)  # gone already, where an interrupt had the model put right before
        else:
            block.forward = before
