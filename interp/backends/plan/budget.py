"""`Cost`: memory that the captures of a run take, compared with what is free before the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from interp.backends.plan.places import Place, SiteCapture
from interp.environment import free_bytes, human_bytes
from interp.errors import BackendError
from interp.model import ModelInfo
from interp.sites import SQUARE

UNASKED = 2**26  # bytes that a run may take without the machine being asked what is free
MADE = (*SQUARE, "head_out")  # exist only when asked for; every other activation is there in any forward pass


@dataclass(frozen=True)
class Cost:
    """Bytes of one run, beyond the forward pass itself.

    Attributes:
        captures: by kind of site, what stays until the run is let go; what a reducer returns is not known and not
            counted.
        passing: the largest tensor that is made for a reducer or an edit to look at, and freed again.
        logits: of all positions, 0 where the run stops early.
    """

    captures: dict[str, int]
    passing: int
    logits: int

    @property
    def total(self) -> int:
        """All of them at once: the peak."""
        return sum(self.captures.values()) + self.passing + self.logits

    def __str__(self) -> str:
        """Total and its parts, the largest first."""
        parts = {**self.captures, "one layer in passing": self.passing, "logits": self.logits}
        order = sorted(((b, name) for name, b in parts.items() if b), reverse=True)
        return f"{human_bytes(self.total)} ({', '.join(f'{name} {human_bytes(b)}' for b, name in order)})"


def estimate(
    captures: Mapping[Place, Sequence[SiteCapture]],
    info: ModelInfo,
    shape: tuple[int, int],
    *,
    d_mlp: int | None = None,
    logits: bool = True,
) -> Cost:
    """Memory that captures will take, for prompts of `shape` [batch pos].

    A head narrowed out of z, q, k or v is a view that holds the whole of it, and is counted so. `d_mlp`: width of the
    MLP, four times d_model unless given.
    """
    sizes: dict[str, int] = {}
    passing = 0
    for (kind, _), things in captures.items():
        for w in things:
            size = info.activation_bytes(w.site, shape, d_mlp=d_mlp)
            if w.reducer is None:
                sizes[kind] = sizes.get(kind, 0) + size
            if kind in MADE:
                passing = max(passing, size)
    item = _item(info)
    return Cost(sizes, passing, shape[0] * shape[1] * info.d_vocab * item if logits else 0)


def require(cost: Cost, device: torch.device, *, what: str) -> None:
    """Raise BackendError when a run would not fit; `what` says whose cost it is. Small runs are let through unasked."""
    if cost.total <= UNASKED:
        return
    free = free_bytes(device)
    if cost.total > free:
        raise BackendError(
            f"{what} would take {cost} and {human_bytes(free)} are free on {device}; name fewer layers, heads "
            "(L3H5.pattern) or positions (L3.resid_post@-1), give reducers ({site: function}), run fewer prompts at a "
            "time, stop at the last layer needed, ask Model.attention for statistics instead of patterns, or stream to "
            "disk with interp.storage.capture_to"
        )


def check_memory(
    captures: Mapping[Place, Sequence[SiteCapture]],
    info: ModelInfo,
    shape: tuple[int, int],
    device: torch.device,
    *,
    d_mlp: int | None = None,
    logits: bool = True,
) -> None:
    """Refuse a run whose captures and logits will not fit.

    Raises:
        BackendError: with the cost, what is free, and what to do.
    """
    cost = estimate(captures, info, shape, d_mlp=d_mlp, logits=logits)
    kinds = ", ".join(sorted({kind for kind, _ in captures}))
    require(cost, device, what=f"capturing {kinds or 'nothing'} of {shape[0]} x {shape[1]} tokens")


def _item(info: ModelInfo) -> int:
    return getattr(torch, info.dtype).itemsize
