"""`Neurons`: where an MLP's pre-activations stand, verified by arithmetic; `router`: what scores a layer's experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.backends.hf.watch import Event


@dataclass(frozen=True, eq=False)
class Neurons:
    """Modules whose output is a pre-activation.

    Attributes:
        pre: gives the input of the activation function. up: gives the linear factor of a gated MLP.
        joint: one module gives both, side by side; `gate_first` says in which order.
        missing: why a kind of site does not exist.
    """

    pre: nn.Module | None
    up: nn.Module | None
    joint: bool
    gate_first: bool
    missing: dict[str, str]


def neurons(layer: int, last: Event, events: Sequence[Event]) -> Neurons:
    """Pre-activations of the MLP whose last projection is `last`: post = f(pre), or post = f(pre) * up."""
    post, before = last.inputs[0], events[: events.index(last)]
    width = post.shape[-1]
    made = [
        e for e in before if e.is_projection and e.outputs and e.outputs[0].shape[:-1].numel() * width == post.numel()
    ]
    single = [e for e in made if e.outputs[0].shape[-1] == width]
    plain = {"mlp_up": f"the MLP of layer {layer} has no gate: mlp_pre is its one pre-activation"}
    if len(single) == 1 and len(made) == 1:
        return Neurons(single[0].module, None, False, True, plain)
    functions = [e for e in before if _elementwise(e, post)]
    for gate, up in [(g, u) for g in single for u in single if g is not u]:
        if any(_product(f, gate.outputs[0], up.outputs[0], post) for f in functions):
            return Neurons(gate.module, up.module, False, True, {})
    for e in (e for e in made if e.outputs[0].shape[-1] == 2 * width):
        halves = e.outputs[0].chunk(2, dim=-1)
        for first in (True, False):
            gate, up = halves if first else reversed(halves)
            if any(_product(f, gate, up, post) for f in functions):
                return Neurons(e.module, e.module, True, first, {})
    why = f"the neurons of layer {layer} are no f(a) or f(a) * b of projections a and b that could be told apart"
    return Neurons(None, None, False, True, dict.fromkeys(("mlp_pre", "mlp_up"), why))


def _elementwise(event: Event, post: Tensor) -> bool:
    """Whether a module may be an activation function: without parameters, one tensor of the size of the neurons."""
    one = len(event.inputs) == len(event.outputs) == 1 and event.is_leaf and not event.parameters
    return one and event.inputs[0].numel() == event.outputs[0].numel() == post.numel()


def _product(function: Event, gate: Tensor, up: Tensor, post: Tensor) -> bool:
    """Whether the neurons are a function of `gate` times `up`."""
    if not torch.equal(function.inputs[0].reshape(-1), gate.reshape(-1)):
        return False
    result = function.outputs[0].reshape(post.shape) * up.reshape(post.shape)
    return torch.allclose(result.float(), post.float(), rtol=1e-2 if post.itemsize < 4 else 1e-5, atol=1e-8)


def routers(model: PreTrainedModel) -> tuple[tuple[type[nn.Module], int], ...]:
    """Classes of modules that give router logits, and at which place of their output, as transformers declares them."""
    return tuple(dict.fromkeys(_declared(model)))


def _declared(model: nn.Module) -> Iterator[tuple[type[nn.Module], int]]:
    for module in model.modules():
        recorders = getattr(module, "_can_record_outputs", None)
        entry: Any = recorders.get("router_logits") if isinstance(recorders, dict) else None
        for recorder in entry if isinstance(entry, list) else [entry]:
            if isinstance(getattr(recorder, "target_class", None), type):
                yield recorder.target_class, int(recorder.index)


def router(declared: Sequence[tuple[type[nn.Module], int]], events: Sequence[Event]) -> tuple[Event, int] | None:
    """The router among a layer's modules, with the place of the logits in its output; None without."""
    for kind, index in declared:
        for e in reversed(events):
            if isinstance(e.module, kind) and index < len(e.outputs):
                return e, index
    return None
