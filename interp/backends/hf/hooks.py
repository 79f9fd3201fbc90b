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

Visit = Callable[[Tensor], Tensor]


class Hooks:
    """Registers what a `Pass` needs on the modules of one model."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, plan: Pass) -> None:
        self.model, self.anatomy, self.plan = model, anatomy, plan
        self.resid: dict[int, Tensor] = {}
        self.z: dict[int, Tensor] = {}
        self._stack = contextlib.ExitStack()
        # Parts are read by calling them, so before any hook stands on them, and anew each time: weights may change.
        layers = range(len(anatomy.blocks))
        self.writers = {i: HeadWriter(anatomy, i) for i in layers if plan.asks(i, "head_out")}
        self.norms = {i: read_norm(norm, _width(norm, anatomy.width)) for i, norm in self._read_norms()}

    def _read_norms(self) -> Iterator[tuple[int | None, nn.Module]]:
        """Norms whose divisor is asked for, by layer."""
        parts = {part.layer: part.norm_before for part in self.anatomy.attention}
        for layer, norm in {None: self.anatomy.final_norm, **parts}.items():
            if norm is not None and self.plan.asks(layer, "norm_scale"):
                yield layer, norm

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
            for layer in range(first, last + 1):
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
        if part is not None and part.norm_before is not None and layer in self.norms:
            self._norm(part.norm_before, layer)
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
        if stream.mlp_post is not None and plan.asks(layer, "mlp_post"):
            self._before(stream.mlp_post, lambda x: plan.spread("mlp_post", layer, x))
        if stream.mlp_out is not None and plan.asks(layer, "mlp_out"):
            scale = stream.mlp_scale
            self._after(stream.mlp_out, lambda x: self._at_scale("mlp_out", layer, x, scale))

    def _ends(self) -> None:
        if self.anatomy.final_norm is not None and None in self.norms:
            self._norm(self.anatomy.final_norm, None)
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
        check_finite(x, self.plan.mask, layer)
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

    def _norm(self, norm: nn.Module, layer: int | None) -> None:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            x = args[0].reshape(*self.plan.shape, -1)
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            self.plan.visit("norm_scale", layer, self.norms[layer].divisor(wide))

        self._register(norm.register_forward_hook(hook))

    def _before(self, module: nn.Module, change: Visit) -> None:
        spread = self.anatomy.shards
        if spread is not None and takes_part(module):
            inner = change
            change = lambda x: spread.local(inner(spread.gather(x, -1)), -1)  # noqa: E731

        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            if not self.plan.active:
                return None
            if args:
                return (change(args[0]), *args[1:]), kwargs
            name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            return args, {**kwargs, name: change(kwargs[name])}

        self._register(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, change: Visit) -> None:
        self._on_output(module, lambda x, _: change(x))

    def _on_output(self, module: nn.Module, change: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        def hook(_: nn.Module, args: tuple, output: Any) -> Any:
            if not self.plan.active:
                return None
            took = args[0] if args and isinstance(args[0], Tensor) else None
            if isinstance(output, tuple):
                return (change(output[0], took), *output[1:])
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
