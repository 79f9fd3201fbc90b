"""`Steps`: a pass as steps of an nnsight trace, each at the input or output of a module, in execution order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.attention import Call, Recorder, StopForward, intercept
from interp.backends.hf.anatomy import Anatomy, input_device
from interp.backends.hf.hooks import Hooks
from interp.backends.hf.read_norms import read_norm
from interp.backends.hf.rewrite import INSIDE
from interp.backends.plan.capture import Pass

Port = tuple[nn.Module, str]  # a module, and "input", "output" or "skip"


@dataclass(frozen=True, eq=False)
class Step:
    """Something to do with what a module takes or gives; what `change` returns goes on in its place."""

    port: Port
    change: Callable[[Any], Any]


class Taps:
    """Modules through which our attention function passes its inputs and its output, so that a trace can reach them."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.before = {part.layer: nn.Identity() for part in anatomy.attention}
        self.after = {part.layer: nn.Identity() for part in anatomy.attention}

    @property
    def modules(self) -> list[tuple[str, nn.Module]]:
        """Every tap with a name."""
        sides = (("before", self.before), ("after", self.after))
        return [(f"attention.{layer}.{side}", tap) for side, taps in sides for layer, tap in taps.items()]

    def pass_through(self, recorder: Recorder) -> Recorder:
        """A recorder that sends each call, and each call with its z, through the taps."""
        recorder.change = lambda layer, call: self.before[layer](call)
        recorder.mix = lambda layer, call, z: self.after[layer]((call, z))[1]
        return recorder


class Steps(Hooks):
    """Steps of a trace where `Hooks` registers hooks."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, plan: Pass, *, width: int) -> None:
        super().__init__(model, anatomy, plan)
        self.width = width
        self.steps: list[Step] = []

    def collect(
        self,
        order: Mapping[tuple[int, str], int],
        taps: Taps,
        inner: Recorder | None,
        *,
        start: tuple[int, Tensor] | None = None,
        stop: int | None = None,
    ) -> list[Step]:
        """Every step of the pass, in execution order; `inner` is what a pass connected to attention would do there."""
        first, last = 0 if start is None else start[0], len(self.anatomy.blocks) - 1 if stop is None else stop
        for layer in range(first):
            self.steps.append(Step((self.anatomy.blocks[layer], "skip"), lambda _: None))
        for layer in range(first, last + 1):
            self._layer(layer, start[1] if start is not None and layer == first else None, layer == first)
            if inner is not None and self.plan.asks(layer, *INSIDE):
                self._attention(layer, taps, inner)
        self._ends()
        self._after(self.anatomy.blocks[last], lambda x: self._check(last, x))
        if stop is not None:
            self._after(self.anatomy.blocks[stop], _stop)
        return sorted(self.steps, key=lambda step: order.get((id(step.port[0]), step.port[1]), len(order)))

    def _attention(self, layer: int, taps: Taps, inner: Recorder) -> None:
        change, mix = inner.change, inner.mix
        assert change is not None and mix is not None

        def after(inputs: tuple[Call, Tensor]) -> tuple[Call, Tensor]:
            z = mix(layer, *inputs)
            return inputs if z is inputs[1] else (inputs[0], z)

        self.steps.append(Step((taps.before[layer], "output"), lambda call: change(layer, call)))
        self.steps.append(Step((taps.after[layer], "output"), after))

    def _before(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        self.steps.append(Step((module, "input"), change))

    def _after(self, module: nn.Module, change: Callable[[Tensor], Tensor], *, at: int = 0) -> None:
        def first(output: Any) -> Any:
            x = output[at] if isinstance(output, tuple) else output
            result = change(x)
            if result is x:
                return output
            return (*output[:at], result, *output[at + 1 :]) if isinstance(output, tuple) else result

        self.steps.append(Step((module, "output"), first))

    def _on_output(self, module: nn.Module, change: Callable[[Tensor, Tensor | None], Tensor], *, at: int = 0) -> None:
        took: list[Tensor] = []

        def look(x: Tensor) -> Tensor:
            took[:] = [x]
            return x

        self._before(module, look)
        self._after(module, lambda x: change(x, took[0]), at=at)

    def _norm(self, norm: nn.Module, kind: str, layer: int | None) -> None:
        read = read_norm(norm, self.width)  # before the trace, in which calling a module would be part of it

        def look(x: Tensor) -> Tensor:
            stream = x.reshape(*self.plan.shape, -1)
            wide = stream.to(torch.promote_types(x.dtype, torch.float32))
            self.plan.visit(kind, layer, read.divisor(wide))
            return x

        self._before(norm, look)

    def _ends(self) -> None:
        """What stands outside the layers; logits belong to the whole model and are read last of all."""
        self._modules()
        if self.plan.asks(None, "norm_scale") and self.anatomy.final_norm is not None:
            self._norm(self.anatomy.final_norm, "norm_scale", None)
        if self.anatomy.unembed is not None and self.plan.asks(None, "unembed_in"):
            self._before(self.anatomy.unembed, lambda x: self.plan.visit("unembed_in", None, x))


def _stop(x: Tensor) -> Tensor:
    raise StopForward


@contextlib.contextmanager
def _noting(model: nn.Module, note: Callable[[nn.Module, str], None]) -> Iterator[None]:
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda m, args: note(m, "input")))
        handles.append(module.register_forward_hook(lambda m, args, output: note(m, "output")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def execution_order(model: Any, taps: Taps) -> dict[tuple[int, str], int]:
    """When each module's input and output come by in a forward pass, taps included."""
    order: dict[tuple[int, str], int] = {}

    def note(module: nn.Module, port: str) -> None:
        order.setdefault((id(module), port), len(order))
        if port == "input":
            order.setdefault((id(module), "skip"), len(order))

    recorder = taps.pass_through(Recorder())
    tokens = torch.zeros(1, 2, dtype=torch.long, device=input_device(model))
    handles = [tap.register_forward_hook(lambda m, args, out: note(m, "output")) for _, tap in taps.modules]
    try:
        with torch.no_grad(), intercept(model, recorder), _noting(model, note):
            model(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return order
