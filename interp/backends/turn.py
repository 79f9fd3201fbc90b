"""`Turn`: one thread at a time on one model, and a model that is afterwards as it was, whatever ended the run.

Every backend's `run`, `attention`, `generate` and `editing` take the model's turn. Inside it other threads wait for up
to `WAIT` seconds; a forward pass of their own through the module is refused meanwhile, since it would carry out our
edits. A turn of the thread that has it already (a run inside `editing`) is taken at once.

Each place that changes the model puts it back itself. An interrupt can come in the middle of that, so the state is
written down when the turn is taken and put back by two guards, one around the other: an interrupt stops one of them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from interp.attention import current_recorder, set_recorder
from interp.errors import BackendError
from interp.model import STACKS, ModelInfo
from interp.numerics import share

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="Exclusive")

WAIT = 600.0
"""Seconds that a thread waits for a model that another one runs."""
_IMPLEMENTATION = "_attn_implementation_internal"  # where transformers' configurations keep it
_POINTS = "fwd_hooks"  # where TransformerLens' hook points keep theirs
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_ABOUT = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}


class State:
    """What a run may change of a model, as it is now.

    Args:
        modules: all of the model's.
        lists: further lists, restored to what they hold now (the plans that stand in a context).
    """

    def __init__(self, modules: Iterable[nn.Module], lists: Sequence[list[Any]] = ()) -> None:
        self.modules = list(modules)
        self.hooks: dict[nn.Module, list[tuple[int, ...]]] = {}
        self.training: list[nn.Module] = []
        self.forwards: dict[nn.Module, Any] = {}
        self.configs: dict[int, Any] = {}
        self.points: dict[nn.Module, list[Any]] = {}
        self.trainable: list[nn.Parameter] = []
        for module in self.modules:
            self._note(module, module.__dict__)
        self.attention = {i: getattr(c, _IMPLEMENTATION, None) for i, c in self.configs.items()}
        self.lists = [(x, list(x), [getattr(item, "on", None) for item in x]) for x in lists]
        self.modes = torch._C._len_torch_function_stack()
        self.grad, self.recorder = torch.is_grad_enabled(), current_recorder()

    def _note(self, module: nn.Module, own: dict[str, Any]) -> None:
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            self.hooks[module] = [tuple(own[kind]) for kind in _HOOKS]
        if own["training"]:
            self.training.append(module)
        if "forward" in own:
            self.forwards[module] = own["forward"]
        if (config := own.get("config")) is not None:
            self.configs[id(config)] = config
        if hooks := own.get(_POINTS):
            self.points[module] = list(hooks)
        self.trainable += [p for p in own["_parameters"].values() if p is not None and p.requires_grad]

    def restore(self) -> None:
        """Put everything back; what is as it was stays as it is."""
        set_recorder(self.recorder)
        torch._C._set_grad_enabled(self.grad)
        while torch._C._len_torch_function_stack() > self.modes:
            torch._C._pop_torch_function_stack()
        training = set(self.training)
        for module in self.modules:
            self._unhook(module)
            if module.training != (module in training):
                module.training = module in training
            forward = self.forwards.get(module)
            if module.__dict__.get("forward") is not forward:
                module.__dict__.pop("forward")
                if forward is not None:
                    module.__dict__["forward"] = forward
        for i, config in self.configs.items():
            if getattr(config, _IMPLEMENTATION, None) != self.attention[i]:
                setattr(config, _IMPLEMENTATION, self.attention[i])
        for parameter in self.trainable:
            if not parameter.requires_grad:
                parameter.requires_grad = True
        for given, items, on in self.lists:
            given[:] = items
            for item, value in zip(items, on, strict=True):
                if value is not None:
                    item.on = value

    def _unhook(self, module: nn.Module) -> None:
        before = self.hooks.get(module, [(), ()])
        for kind, kept in zip(_HOOKS, before, strict=True):
            table = getattr(module, kind)
            for key in [k for k in table if k not in kept]:
                del table[key]
                for about in _ABOUT[kind]:
                    getattr(module, about).pop(key, None)
        if module.__dict__.get(_POINTS):
            module.__dict__[_POINTS][:] = self.points.get(module, [])


class Turn:
    """Which thread runs a module, and since when: the outermost `Hold`."""

    def __init__(self) -> None:
        # At most one, under "hold": taking it is one step, with nothing to give back.
        self.holder: dict[str, Hold | Part] = {}

    @property
    def owner(self) -> int | None:
        """The thread that has the turn."""
        hold = self.holder.get("hold")
        return None if hold is None else hold.thread

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Context in which this thread has the turn, for parts of the module that are called by themselves."""
        part = Part()
        try:
            self.take(part)
            yield
        finally:
            self.give(part)

    def take(self, hold: Hold | Part) -> None:
        """Wait until no other thread has the turn, and take it.

        Raises:
            BackendError: another thread has it for longer than `WAIT` seconds.
        """
        until = time.monotonic() + WAIT
        while self.holder.setdefault("hold", hold).thread != hold.thread:
            if time.monotonic() > until:
                raise BackendError(
                    f"{hold.name}: another thread has been running this model for {WAIT:g} s; wait for it, "
                    "or load the model a second time for this thread"
                )
            time.sleep(0.0005)

    def give(self, hold: Hold | Part) -> None:
        """Give the turn back, if it was this one that took it."""
        if self.holder.get("hold") is hold:
            self.holder.pop("hold", None)

    def guard(self, module: nn.Module, _: Any) -> None:
        """A forward pre-hook that refuses another thread's own pass."""
        if self.owner not in (None, threading.get_ident()):
            raise BackendError(
                f"{type(module).__name__}: another thread is running this model with captures or edits; call it "
                "through `Model.run`, which waits, or give each thread a model of its own"
            )


class Part:
    """A taking of a turn for a part of the module, which changes nothing that would have to be put back."""

    name = "reading weights"

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Hold:
    """One taking of a turn: entered twice, one inside the other, so that an interrupt of one exit leaves the other."""

    def __init__(self, model: Exclusive) -> None:
        self.module = whole(model.torch_module)
        self.model, self.turn = model, turn_of(self.module)
        self.entered, self.thread = 0, threading.get_ident()
        self.state: State | None = None
        self.handle: Any = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.model.info.name

    def __enter__(self) -> Hold:
        self.entered += 1
        if self.entered == 2:  # inside the first, which gives back what an interrupt of this one leaves
            self.turn.take(self)
            self.state = self.model.state()
            if self.turn.holder["hold"] is self:
                self.handle = self.module.register_forward_pre_hook(self.turn.guard, prepend=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.handle is not None:
            self.handle.remove()
        if kind is not None and self.state is not None:
            self.state.restore()
        self.turn.give(self)


_turns: weakref.WeakKeyDictionary[nn.Module, Turn] = weakref.WeakKeyDictionary()


def turn_of(module: nn.Module) -> Turn:
    """The turn of a module, the same for every `Model` around it, or around a stack of it."""
    module = whole(module)
    if module not in _turns:
        share(module, _turns.setdefault(module, Turn()).alone)
    return _turns[module]


def whole(module: Any) -> nn.Module:
    """The encoder-decoder that a stack is of; every other module itself."""
    return module.whole if getattr(module, "stack", None) in STACKS else module


@runtime_checkable
class Exclusive(Protocol):
    """A model that takes turns."""

    torch_module: Any
    info: ModelInfo

    def state(self) -> State:
        """What a run may change of it, as it is now."""
        ...


@contextlib.contextmanager
def taken(model: Exclusive) -> Iterator[None]:
    """Context in which this thread alone runs a model; afterwards it is as it was."""
    hold = Hold(model)
    with hold, hold:
        yield


def exclusive(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """A method of a model that takes its turn."""

    @functools.wraps(method)
    def held(self: M, *args: P.args, **kwargs: P.kwargs) -> R:
        hold = Hold(self)
        with hold, hold:
            return method(self, *args, **kwargs)

    return held
