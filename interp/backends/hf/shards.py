"""`Shards`: heads and neurons spread over processes (tensor parallelism), gathered for a look and cut up again.

transformers shards a family that has a plan: each process holds some heads of every layer, and a slice of every MLP.
The residual stream is whole everywhere. Each process applies the same edits to the whole of an activation and keeps
its own part, so an edit of any head acts wherever that head lives, and captures are equal in all processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from interp.attention import Call
from interp.errors import BackendError


@dataclass(frozen=True, eq=False)
class Shards:
    """The processes a model is spread over, and which of them this one is."""

    group: Any
    rank: int
    size: int

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """The whole of an activation that is cut along `dim`, in order of process."""
        own = x.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self.group)
        return torch.cat(parts, dim=dim)

    def local(self, x: Tensor, dim: int) -> Tensor:
        """This process's part of an activation."""
        return x.chunk(self.size, dim=dim)[self.rank].contiguous()

    def whole(self, call: Call) -> Call:
        """An attention call with every head."""
        q, k, v = (self.gather(x, 1) for x in (call.query, call.key, call.value))
        bias = call.bias if call.bias is None or call.bias.shape[1] == 1 else self.gather(call.bias, 1)
        sinks = None if call.sinks is None else self.gather(call.sinks, 0)
        return replace(call, query=q, key=k, value=v, sinks=sinks, bias=bias)

    def part(self, call: Call) -> Call:
        """An attention call with this process's heads."""
        q, k, v = (self.local(x, 1) for x in (call.query, call.key, call.value))
        bias = call.bias if call.bias is None or call.bias.shape[1] == 1 else self.local(call.bias, 1)
        sinks = None if call.sinks is None else self.local(call.sinks, 0)
        return replace(call, query=q, key=k, value=v, sinks=sinks, bias=bias)

    def agree(self, numbers: tuple[int, ...], what: str) -> None:
        """Raise BackendError unless every process has the same numbers."""
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, numbers, group=self.group)
        if len(set(answers)) > 1:
            raise BackendError(
                f"processes hold different {what}: {answers}; use a number of processes that divides them"
            )


def shards(model: nn.Module) -> Shards | None:
    """Shards of a model whose parameters are cut along an axis of a process mesh; None where it is whole."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    for parameter in model.parameters():
        if cut_along(parameter) is not None:
            spread: Any = parameter
            mesh = spread.device_mesh
            group = mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")
            return Shards(group, dist.get_rank(group), dist.get_world_size(group))
    return None


def cut_along(parameter: Tensor) -> int | None:
    """Axis along which a parameter is cut into parts, None where each process has all of it."""
    for placement in getattr(parameter, "placements", ()):
        if placement.is_shard():
            return int(placement.dim) % parameter.ndim
    return None


def takes_part(module: nn.Module) -> bool:
    """Whether a projection takes only this process's part of its input: its weight is cut along the input's axis."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and cut_along(weight) == 1


GRADIENTS = "gradients are not gathered over processes; load the model without tensor parallelism"
MATRICES = "its matrices are spread over processes; read weights from a model loaded without tensor parallelism"
