"""`Memory` of passes without edits: what attention took in, and the stream between layers, for others to start from.

    with sharing() as memory:  # analyses that ask for the same prompts share one forward pass
        ...

A backend looks for `shared_memory()`; what it keeps there is let go when the block ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from interp.attention.call import Call

BUDGET = 2**30
"""Bytes that are kept at most: the passes longest unused are let go first."""


@dataclass(eq=False)
class KeptPass:
    """One pass over some prompts, none of it edited.

    Attributes:
        rows: ids of each prompt as bytes -> its row; empty where prompts are padded.
        calls: layer -> queries, keys and values. stream: layer -> the residual that enters it.
        complete: whether all of it was within the budget.
    """

    rows: dict[bytes, int]
    calls: dict[int, Call] = field(default_factory=dict)
    stream: dict[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
    complete: bool = True

    @property
    def nbytes(self) -> int:
        """Memory held: storages are counted once, and whole, since a view keeps all of its storage."""
        tensors = [x for call in self.calls.values() for x in (call.query, call.key, call.value)]
        storages = [x.untyped_storage() for x in (*tensors, *self.stream.values())]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Memory:
    """Passes kept by model and prompts, at most `budget` bytes of them."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.exact: dict[Hashable, bool] = {}
        """Of each model (and its weights), whether a pass from the middle gives the very same numbers."""
        self._passes: OrderedDict[Hashable, KeptPass] = OrderedDict()

    def find(self, key: Hashable) -> KeptPass | None:
        """The pass of these prompts, if it is kept still."""
        if key in self._passes:
            self._passes.move_to_end(key)
        return self._passes.get(key)

    def holding(self, owner: Hashable, rows: Sequence[bytes]) -> tuple[KeptPass, list[int]] | None:
        """A pass of this model that has all of these prompts, and where."""
        for key, kept in self._passes.items():
            if isinstance(key, tuple) and key[0] == owner and rows and all(row in kept.rows for row in rows):
                self._passes.move_to_end(key)
                return kept, [kept.rows[row] for row in rows]
        return None

    def keep(self, key: Hashable, kept: KeptPass) -> None:
        """Keep a pass; others make room for it, and one that is larger than all room is not kept."""
        if not kept.complete or kept.nbytes > self.budget:
            return
        self._passes.pop(key, None)
        held = kept.nbytes + sum(x.nbytes for x in self._passes.values())
        while held > self.budget:
            held -= self._passes.popitem(last=False)[1].nbytes
        self._passes[key] = kept

    def room(self, nbytes: int) -> None:
        """Let passes go until as many bytes are free."""
        held = sum(x.nbytes for x in self._passes.values())
        while self._passes and held + nbytes > self.budget:
            held -= self._passes.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Let all go."""
        self._passes.clear()


_memory: ContextVar[Memory | None] = ContextVar("interp_shared_passes", default=None)


def shared_memory() -> Memory | None:
    """What passes are shared through; None outside of `sharing`."""
    return _memory.get()


@contextmanager
def sharing(budget: int = BUDGET) -> Iterator[Memory]:
    """Context in which passes without edits are kept and shared, freed at its end; inside another it is the other."""
    outer = _memory.get()
    if outer is not None:
        yield outer
        return
    memory = Memory(budget)
    token = _memory.set(memory)
    try:
        yield memory
    finally:
        _memory.reset(token)
        memory.clear()
