"""`Feeder`: calls of attention modules on chosen inputs at chosen positions; `Projections`: their q, k and v."""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.attention import Call, Recorder, StopForward, intercept
from interp.backends.hf.anatomy import AttentionPart, input_device
from interp.errors import BackendError
from interp.numerics import evaluating, exactly, input_dtype, upcasts, wide

CHUNK = 256  # token vectors per call of an attention module
Quiet = Callable[[], AbstractContextManager[None]]
KEPT = 2  # sets of positions for which the layers' inputs are kept


@dataclass(frozen=True, eq=False)
class Projections:
    """q, k, v as attention receives them, on the CPU in float32 (or float64), and the scale it applies to q . k."""

    q: Float[Tensor, "row position head d_head"]
    k: Float[Tensor, "row position kv_head d_head"]
    v: Float[Tensor, "row position kv_head d_value"]
    scale: float


class Feeder:
    """Calls attention modules with inputs of our choice, at positions of our choice, and catches q, k and v.

    What else a module needs (rotary tables, masks) is what it receives in a short pass of the model itself, in the
    context `unedited`: edits that stand may be of other prompts than this.
    """

    def __init__(
        self, model: PreTrainedModel, parts: Sequence[AttentionPart], *, unedited: Quiet = contextlib.nullcontext
    ) -> None:
        self.model, self.parts, self.unedited = model, tuple(parts), unedited
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._inputs: OrderedDict[tuple[int, ...], dict[int, tuple[tuple, dict]]] = OrderedDict()

    def __call__(
        self, part: AttentionPart, rows: Float[Tensor, "row d_model"], positions: Sequence[int] = (0,)
    ) -> Projections:
        """q, k and v of the rows, each row standing at each of the positions.

        Raises:
            BackendError: the layer's attention was never reached.
        """
        at = tuple(positions)
        args, kwargs = self._arguments(at)[part.layer]
        hidden = args[0] if args else kwargs["hidden_states"]
        free = "position_ids" in self._takes or at == tuple(range(len(at)))
        columns = list(range(len(at))) if free else list(at)
        dtype = input_dtype(part.module) if upcasts(part.module) else hidden.dtype
        calls: list[Call] = []
        for chunk in rows.split(max(1, CHUNK // hidden.shape[1])):
            states = torch.zeros(len(chunk), *hidden.shape[1:], dtype=dtype, device=hidden.device)
            states[:, columns] = chunk.to(states)[:, None]
            calls.append(self._call(part, states, args, kwargs))
        tensors = ([getattr(call, name) for call in calls] for name in ("query", "key", "value"))
        q, k, v = (torch.cat(x).transpose(1, 2)[:, columns].cpu() for x in tensors)
        times = max(p.n_kv_heads for p in self.parts) // k.shape[2]
        k, v = (x if times == 1 else x.repeat_interleave(times, 2) for x in (k, v))
        return Projections(wide(q), wide(k), wide(v), calls[0].scale)

    def prepare(self, positions: Sequence[int]) -> None:
        """Make the pass that says what else attention modules need at these positions."""
        self._arguments(tuple(positions))

    def _call(self, part: AttentionPart, hidden: Tensor, args: tuple, kwargs: dict) -> Call:
        calls: list[Call] = []

        def watch(layer: int, call: Call) -> None:
            calls.append(call)
            raise StopForward

        with evaluating(self.model), intercept(self.model, Recorder(watch=watch)):
            try:
                if args:  # some take their input three times, as query, key and value
                    exactly(part.module, *(hidden if a is args[0] else a for a in args), **kwargs)
                else:
                    exactly(part.module, **{**kwargs, "hidden_states": hidden})
            except StopForward:
                return calls[0]
        raise BackendError(f"layer {part.layer}: its attention module ran without calling attention")

    def _arguments(self, positions: tuple[int, ...]) -> dict[int, tuple[tuple, dict]]:
        """Arguments of each attention module for tokens at these positions (or at 0..max, see `__call__`)."""
        if positions in self._inputs:
            self._inputs.move_to_end(positions)
            return self._inputs[positions]
        arguments: dict[int, tuple[tuple, dict]] = {}

        def keep(layer: int):
            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                arguments[layer] = (args, kwargs)

            return hook

        handles = [p.module.register_forward_pre_hook(keep(p.layer), with_kwargs=True) for p in self.parts]
        recorder = Recorder(last=max(p.layer for p in self.parts))
        try:
            with self.unedited(), evaluating(self.model), torch.no_grad(), intercept(self.model, recorder):
                self.model(**self._tokens(positions))
        except StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        self._inputs[positions] = arguments
        while len(self._inputs) > KEPT:
            self._inputs.popitem(last=False)
        return arguments

    def _tokens(self, positions: tuple[int, ...]) -> dict[str, Any]:
        device = input_device(self.model)
        inputs: dict[str, Any] = {"use_cache": False}
        n = len(positions)
        if positions != tuple(range(n)) and "position_ids" in self._takes:
            # With a mask of ones, positions that jump are not taken for several prompts packed into one.
            inputs["position_ids"] = torch.tensor([positions], device=device)
            inputs["attention_mask"] = torch.ones(1, n, dtype=torch.long, device=device)
        else:
            n = max(positions) + 1
        return inputs | {"input_ids": torch.zeros(1, n, dtype=torch.long, device=device)}
