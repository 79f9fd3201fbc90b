"""Calling modules without rounding or side effects: in float32, in eval mode, where they compute, by one thread."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import BackendError

Alone = Callable[[], contextlib.AbstractContextManager[None]]
_alone: weakref.WeakKeyDictionary[nn.Module, Alone] = weakref.WeakKeyDictionary()


def modules_of(*roots: nn.Module) -> list[nn.Module]:
    """Every module of some, once each, in no order: what `nn.Module.modules` gives, in a third of its time."""
    seen, left = dict[nn.Module, None](), list(roots)
    while left:
        module = left.pop()
        if module not in seen:
            seen[module] = None
            left += [part for part in module._modules.values() if part is not None]
    return list(seen)


def share(whole: nn.Module, alone: Alone) -> None:
    """Have parts of a module that are called by themselves enter `alone` meanwhile: the turn of their model."""
    for part in modules_of(whole):
        _alone[part] = alone


def alone(part: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Context in which no other thread runs the model that a part belongs to: its hooks would see this call too."""
    return _alone.get(part, contextlib.nullcontext)()


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: an offloaded one (accelerate) keeps its parameters elsewhere until it is called."""
    hook: Any = getattr(module, "_hf_hook", None)
    for found in (hook, *getattr(hook, "hooks", ())):
        if getattr(found, "offload", False) and getattr(found, "execution_device", None) is not None:
            return torch.device(found.execution_device)
    return next(module.parameters()).device


def exactly(module: nn.Module, *args: object, **kwargs: object):
    """The module's output with its half-precision parameters read in float32, so that nothing is rounded on the way.

    A module that holds anything but floating-point parameters (quantised, or offloaded) is called as it is.
    """
    with alone(module), torch.no_grad():
        wide = _in_float32(module)
        if not wide:
            return module(*args, **kwargs)
        return torch.func.functional_call(module, wide, args, kwargs, tie_weights=False)


def _in_float32(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of half precision, wider; none where the module has others, or cannot be called so.

    Each place that holds one is named once, also where its module is reached by several names (as in TransformerLens's
    bridge): `functional_call` with ties would exchange it once for each name, and put the wider one back.
    """
    if not upcasts(module):
        return {}
    wider: dict[Tensor, Tensor] = {}
    state = {}
    for prefix, own in module.named_modules():
        for name, x in (*own._parameters.items(), *own._buffers.items()):
            if x is not None and x.dtype in (torch.bfloat16, torch.float16):
                wider.setdefault(x, x.float())
                state[f"{prefix}.{name}" if prefix else name] = wider[x]
    return state


def transposed(module: nn.Module, x: Tensor, along: Tensor) -> Tensor:
    """J^T along, J the Jacobian of the module at x, in float32 where `exactly` computes in it."""
    with alone(module), torch.enable_grad():
        x = x.detach().requires_grad_()
        out = torch.func.functional_call(module, _in_float32(module), (x,), tie_weights=False)
        return torch.autograd.grad(out, x, along.to(out))[0]


def upcasts(module: nn.Module) -> bool:
    """Whether `exactly` can compute with this module in float32."""
    return all(p.is_floating_point() and p.itemsize > 1 and not p.is_meta for p in module.parameters())


def input_dtype(module: nn.Module) -> torch.dtype:
    """The dtype in which `exactly` takes its inputs: float32 unless the module insists on another."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point() and p.itemsize > 1}
    if torch.float64 in dtypes or (dtypes and not upcasts(module)):
        return next(iter(dtypes))
    return torch.float32


def refuse_autocast(*devices: torch.device) -> None:
    """Refuse to compute where torch would change the precision behind our back.

    Raises:
        BackendError: torch.autocast is on for one of the devices, or for the CPU.
    """
    for kind in {"cpu", *(d.type for d in devices)} - {"meta"}:
        if torch.is_autocast_enabled(kind):
            raise BackendError(
                f"torch.autocast is on for {kind}, so that numbers would be of mixed precision; leave it, and load the "
                "model with the dtype that you want (interp.load(..., dtype=))"
            )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside (no dropout), each module's own mode back afterwards."""
    training = [m for m in modules_of(model) if m.training]
    for module in training:  # not model.eval(), which sets every module and costs more than a small model's layer
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def wide(x: Tensor) -> Tensor:
    """Half precision as float32; wider types as they are."""
    return x.float() if x.itemsize < 4 else x
