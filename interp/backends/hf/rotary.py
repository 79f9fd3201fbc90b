"""Rotary tables that depend on the longest prompt of a batch: dynamic scaling, and long and short factors.

transformers keeps the tables of the longest prompt so far, so that what a prompt gives depends on what was run before
it. They are put back around every pass; and a batch whose prompts alone would have other tables is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from interp.batch import Batch
from interp.errors import BackendError

_KEPT = "max_seq_len_cached"  # where transformers' rotary modules keep the length that their tables are for


class Rotary:
    """The modules of a model whose tables change with the length of the prompt."""

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        limits = [(m, limit) for m in model.modules() for limit in _limits(m)]
        self.growing = list(dict.fromkeys(m for m, (kind, _) in limits if "dynamic" in kind))
        self.limits = [limit for _, limit in limits]

    @property
    def unlimited(self) -> bool:
        """Whether tables are made for prompts of any length."""
        return bool(self.growing)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Context in which tables are made as for a first prompt; afterwards as before any."""
        for module in self.growing:
            _reset(module)
        try:
            yield
        finally:
            for module in self.growing:
                _reset(module)

    def check(self, batch: Batch) -> None:
        """Refuse prompts that would have other tables alone than in their batch.

        Raises:
            BackendError: says from which length on tables depend on the longest prompt.
        """
        if not (self.limits and batch.padded):
            return
        lengths = batch.mask.sum(1)
        longest, shortest = int(lengths.max()), int(lengths.min())
        for kind, limit in self.limits:
            if longest > limit and (longest > shortest if "dynamic" in kind else limit >= shortest):
                raise BackendError(
                    f"prompts of {shortest} to {longest} tokens: beyond {limit} tokens the rotary tables of "
                    f"{self.name} are those of the batch's longest prompt, so that shorter ones would change; run "
                    "prompts of one length at a time"
                )


def _limits(module: nn.Module) -> list[tuple[str, int]]:
    """Kind of a module's tables and the length from which on they change, for each kind of layer that it serves."""
    own: Any = getattr(module, "rope_type", None)
    config: Any = getattr(module, "config", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = (
        {k: (v, parameters.get(k, {})) for k, v in own.items()} if isinstance(own, dict) else {"": (own, parameters)}
    )
    longest = getattr(module, "original_max_seq_len", None) or getattr(config, "max_position_embeddings", 0)
    return [
        (kind, int(p.get("original_max_position_embeddings") or longest) if kind == "longrope" else int(longest))
        for kind, p in kinds.values()
        if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope")
    ]


def _reset(module: Any) -> None:
    """The tables of a module as before any prompt."""
    original = module.original_max_seq_len
    for name in [n for n in vars(module) if n.endswith(_KEPT)]:
        prefix = name.removesuffix(_KEPT)
        table = getattr(module, f"{prefix}original_inv_freq", None)
        if table is not None and int(getattr(module, name)) != int(original):
            buffer = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", table.to(buffer, copy=True), persistent=False)
            setattr(module, name, original)
