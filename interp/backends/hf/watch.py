"""Events of one short forward pass: which module took and gave which tensors, in order.

Two tokens are run with our attention function. Their embeddings are replaced by small noise: a layer's arithmetic
holds for any input, and a checkpoint's own embeddings may be zero just where it would have to show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.attention import Call, Recorder, intercept
from interp.backends.hf.read_norms import forgets_scale
from interp.errors import BackendError, InterpError
from interp.numerics import device_of
from interp.parallel import cached_property

PROBE = 2  # tokens; one would hide the difference between causal and not
AMPLITUDE = 0.1  # of the noise: small beside what normed attention and MLP add, so that their sum is seen exactly

Identity = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Event:
    """A module that ran, with the tensors it took and gave (kept, so that no address is used twice).

    `versions` count changes in place up to then; `bundled` says that the output was a tuple.
    """

    path: str
    module: nn.Module
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = field(default=(), repr=False)
    bundled: bool = False

    @cached_property
    def took(self) -> tuple[Identity, ...]:
        """Identities of the inputs."""
        return tuple(map(identity, self.inputs))

    @cached_property
    def gave(self) -> tuple[Identity, ...]:
        """Identities of the outputs."""
        return tuple(map(identity, self.outputs))

    @property
    def width(self) -> int:
        """Size of the last axis of what it took."""
        return self.inputs[0].shape[-1] if self.inputs and self.inputs[0].ndim else 0

    @property
    def overwritten(self) -> bool:
        """Whether what it took or gave was changed in place later on."""
        return any(t._version != v for t, v in zip((*self.inputs, *self.outputs), self.versions, strict=True))

    @cached_property
    def is_leaf(self) -> bool:
        """Whether no module stands below it that is seen; an adapter and the layer that it wraps are one."""
        return adapter(self.module) is not None or next(self.module.children(), None) is None

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Its own parameters; of an adapter those of the layer that it wraps."""
        return list((adapter(self.module) or self.module).parameters(recurse=False))

    @cached_property
    def is_norm(self) -> bool:
        """Norms are leaves with at most a gain and a bias per channel; without them, they forget their input's size."""
        own = self.parameters
        if not self.is_leaf or own:
            return self.is_leaf and 0 < len(own) <= 2 and all(p.ndim == 1 and p.numel() == self.width for p in own)
        single = len(self.inputs) == len(self.outputs) == 1 and self.inputs[0].is_floating_point()
        if not single or self.inputs[0].shape != self.outputs[0].shape or self.inputs[0].ndim < 2:  # noqa: PLR2004
            return False
        try:
            return forgets_scale(self.module, self.inputs[0])
        except (RuntimeError, TypeError, ValueError):  # takes more than one tensor
            return False

    @cached_property
    def is_projection(self) -> bool:
        """A linear map: a leaf with parameters that is no norm and no stack of experts."""
        own = self.parameters
        return self.is_leaf and bool(own) and not self.is_norm and max(p.ndim for p in own) <= 2

    def within(self, path: str) -> bool:
        """Whether the module stands below `path`."""
        return self.path.startswith(path + ".")


def adapter(module: nn.Module) -> nn.Module | None:
    """The layer that a low-rank adapter (peft's way) wraps; None for every other module."""
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else None


def visible_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules by path, without what adapters are made of."""
    modules = list(model.named_modules())
    inside = tuple(f"{path}." for path, m in modules if adapter(m) is not None)
    return [(path, m) for path, m in modules if not path.startswith(inside)]


def identity(t: Tensor) -> Identity:
    """Key that two views of the same elements share."""
    return t.data_ptr(), t.numel()


def watch(model: PreTrainedModel) -> tuple[list[Event], list[tuple[nn.Module, Call]], Tensor | None]:
    """Events of a two-token pass, the attention calls in order, and the logits if it gives any.

    Raises:
        BackendError: the model cannot be run on two tokens, or not with attention of ours.
    """
    events: list[Event] = []
    calls: list[tuple[nn.Module, Call]] = []

    def note(path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            took = tuple(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
            bundled = isinstance(output, tuple | list)
            gave = tuple(t for t in (output if bundled else [output]) if isinstance(t, Tensor))
            events.append(Event(path, module, took, gave, tuple(t._version for t in (*took, *gave)), bundled))

        return hook

    recorder = Recorder()

    def keep(layer: int, call: Call, z: Tensor) -> Tensor:
        calls.append((recorder.modules[layer], call))
        events.append(Event("(attention)", recorder.modules[layer], (), (z,), (z._version,)))
        return z

    recorder.mix = keep
    handles = [model.get_input_embeddings().register_forward_hook(_noise)]
    handles += [m.register_forward_hook(note(path), with_kwargs=True) for path, m in visible_modules(model)]
    tokens = torch.zeros(1, PROBE, dtype=torch.long, device=input_device(model))
    try:
        with torch.no_grad(), intercept(model, recorder):
            logits = getattr(model(tokens, use_cache=False), "logits", None)
    except InterpError:
        raise
    except Exception as error:  # whatever a model's own code runs into
        raise BackendError(_failure(model, tokens, error)) from error
    finally:
        for handle in handles:
            handle.remove()
    return events, calls, logits


def _failure(model: PreTrainedModel, tokens: Tensor, error: Exception) -> str:
    """Why a pass of two tokens failed: the model's own fault, or that of what it was given for its masks."""
    lines = str(error).strip().splitlines() or [""]
    family, what = type(model).__name__, f"{type(error).__name__}: {lines[0]}"
    try:
        with torch.no_grad():
            model(tokens, use_cache=False)
    except Exception:  # the same, or another of its own
        return f"{family} cannot be run on token ids alone ({what})"
    return (
        f"{family} computes with the attention mask itself, or with the weights that its attention gives ({what}), so "
        "its attention cannot be put aside and measured"
    )


def _noise(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (AMPLITUDE * torch.randn(output.shape, generator=generator)).to(output)


def input_device(model: PreTrainedModel) -> torch.device:
    """Device of the token embedding."""
    return device_of(model.get_input_embeddings())


def source(events: list[Event], tensor: Identity) -> nn.Module | None:
    """The norm that produced a tensor, None when something else did (a residual stream, say)."""
    return next((e.module for e in reversed(events) if tensor in e.gave and e.is_norm), None)
