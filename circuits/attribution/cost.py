"""What edge attribution will cost, worked out before it runs: passes of the model, and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from circuits.attribution.contraction import TILE
from circuits.attribution.quadrature import nodes
from circuits.wiring.ports import ports
from interp.environment import free_bytes, human_bytes
from interp.errors import BackendError
from interp.model import Model
from interp.tasks import PromptTask

GRAPH = (10, 5)
"""What autograd keeps of a layer for each token, in widths of the stream and of the MLP: an estimate."""


@dataclass(frozen=True)
class Plan:
    """Passes and memory of one call of `edge_attribution`.

    Attributes:
        method: as given. n_prompts, n_tokens: of the task; n_tokens is the width of a padded prompt.
        calls: portions that the prompts are run in, one after another.
        forwards, backwards: passes over every prompt, in whole passes; those that enter at a layer count for the part
            of the layers that they run. Refining the steps comes on top.
        memory: bytes by what they are for; all at once is the peak above the model itself.
        device: where. free: bytes free there now.
    """

    method: str
    n_prompts: int
    n_tokens: int
    calls: int
    forwards: float
    backwards: float
    memory: Mapping[str, int]
    device: str
    free: int

    @property
    def total(self) -> int:
        """Bytes, all at once."""
        return sum(self.memory.values())

    def __str__(self) -> str:
        parts = sorted(((size, name) for name, size in self.memory.items() if size), reverse=True)
        breakdown = ", ".join(f"{name} {human_bytes(size)}" for size, name in parts)
        return (
            f"{self.method} of {self.n_prompts} prompts of {self.n_tokens} tokens: {self.forwards:g} forward and "
            f"{self.backwards:g} backward passes in {self.calls} portions, {human_bytes(self.total)} ({breakdown})"
        )

    def require(self) -> None:
        """Refuse what will not fit.

        Raises:
            BackendError: with this statement, what is free, and what to do.
        """
        if self.total > self.free:
            raise BackendError(
                f"{self} and {human_bytes(self.free)} are free on {self.device}; take a smaller batch_size, fewer "
                "prompts, or keep_prompts=False, which gives up intervals and stability"
            )


def plan(
    model: Model,
    task: PromptTask,
    *,
    method: str = "eap-ig",
    steps: int = 5,
    rule: str = "midpoint",
    batch_size: int = 8,
    by_role: bool = False,
    keep_prompts: bool = True,
) -> Plan:
    """Passes and memory of `edge_attribution` with these options; the model is not run.

    Bytes are an upper estimate: what autograd keeps of a layer is taken to be ten widths of the stream and five of the
    MLP for each token.

    Raises:
        TaskError: an unknown method or rule.
        BackendError: a model whose layers cannot be told apart.
    """
    path = nodes(method, steps=steps, rule=rule)
    info, layout = model.info, ports(model).layout
    n, width = task.clean.ids.shape
    rows = min(batch_size, n)
    tokens, item = rows * width, getattr(torch, info.dtype).itemsize
    heads = info.d_head * (info.n_heads + 2 * info.n_kv_heads)
    d_mlp = 4 * info.d_model if layout.mlps else 0
    writes = info.n_layers * (info.n_heads * info.d_head + info.d_model)
    edges = len(layout.senders) * len(layout.slots)
    parts = len(task.roles) + 1 if by_role else 1
    forwards, backwards = _passes(method, [at for at, _ in path], info.n_layers)
    copies = 2 if method == "clean-corrupted" else 1
    memory = {
        "autograd": item * tokens * info.n_layers * (GRAPH[0] * info.d_model + GRAPH[1] * d_mlp),
        "gradients": 4 * copies * tokens * info.n_layers * (heads + 3 * info.d_model),
        "writes": 4 * tokens * writes * 3,
        "logits at END": 4 * 4 * rows * info.d_vocab,
        "tile": 4 * TILE,
        "attention weights": 4 * info.n_layers * info.d_model * (2 * heads + info.n_heads * info.d_head),
        "scores": 4 * edges * (parts * rows * 2 + (n if keep_prompts else 0)) + 8 * edges * parts,
    }
    return Plan(
        method, n, width, -(-n // batch_size), forwards, backwards, memory, str(model.device), free_bytes(model.device)
    )


def _passes(method: str, path: list[float], n_layers: int) -> tuple[float, float]:
    """Forward and backward passes over each prompt."""
    if method == "eap-ig-activations":
        whole = len(path) * (1 + 2 * sum(n_layers - layer for layer in range(n_layers)) / n_layers)
        return 2 + whole, whole
    ends = 2 - sum(at in (0.0, 1.0) for at in path)  # an end that is a node needs no pass of its own
    return float(len(path) + ends), float(len(path))
