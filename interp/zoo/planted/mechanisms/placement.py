"""Places of mechanisms: those asked for, the others drawn by seed, each behind what it reads from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from interp.zoo.planted.mechanisms.base import Mechanism, Place, Slot

ATTEMPTS = 50
"""Draws of places before giving up: early choices can leave no room for later ones."""


def depths(mechanisms: Sequence[Mechanism]) -> tuple[dict[str, int], dict[str, int]]:
    """Earliest layer of every role, and the number of layers that must follow it."""
    slots: dict[str, Slot] = {slot.role: slot for m in mechanisms for slot in m.slots}
    earliest: dict[str, int] = {}

    def first(role: str) -> int:
        if role not in earliest:
            slot = slots[role]
            earliest[role] = max([slot.first_layer, *(first(before) + 1 for before in slot.after)])
        return earliest[role]

    def behind(role: str) -> int:
        return max((behind(s.role) + 1 for s in slots.values() if role in s.after), default=0)

    return {role: first(role) for role in slots}, {role: behind(role) for role in slots}


class _NoRoomError(ValueError):
    """This draw of places left none for a role; another may."""


def head_places(
    mechanisms: Sequence[Mechanism], *, n_layers: int, n_heads: int, n_kv_heads: int, generator: torch.Generator
) -> list[dict[str, Place]]:
    """A head for every role of every mechanism; no two share keys and values.

    Raises ValueError where places asked for clash, are out of order, or no place is left.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _Board(mechanisms, n_layers, n_heads, n_kv_heads).fill(generator)
        except _NoRoomError:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


class _Board:
    """Heads that are taken so far, and by whom."""

    def __init__(self, mechanisms: Sequence[Mechanism], n_layers: int, n_heads: int, n_kv_heads: int) -> None:
        self.mechanisms, self.n_layers, self.n_heads, self.n_kv_heads = mechanisms, n_layers, n_heads, n_kv_heads
        self.busy_groups: set[tuple[int, int]] = set()
        self.places: list[dict[str, Place]] = [{} for _ in mechanisms]

    def fill(self, generator: torch.Generator) -> list[dict[str, Place]]:
        """Places asked for first, then the others, suppliers before what reads them."""
        for number, mechanism in enumerate(self.mechanisms):
            for slot, where in zip(mechanism.slots, mechanism.places() or (), strict=False):
                self.put(number, slot, where)
        earliest, behind = depths(self.mechanisms)
        todo = [(number, slot) for number, m in enumerate(self.mechanisms) for slot in m.slots]
        for number, slot in sorted(todo, key=lambda item: earliest[item[1].role]):
            first, last = self.range(slot, behind[slot.role])
            if slot.role in self.places[number]:
                if not first <= self.places[number][slot.role][0] <= last:
                    raise ValueError(
                        f"{slot.role} at {self.places[number][slot.role]} cannot work: it has to stand in "
                        f"layers {first} to {last}, after what it reads and before what reads it"
                    )
                continue
            free = [
                (layer, head)
                for layer in range(first, last + 1)
                for head in range(self.n_heads)
                if (layer, self.group(head)) not in self.busy_groups
            ]
            if not free:
                raise _NoRoomError(
                    f"no place is left for {slot.role} in {self.n_layers} layers of {self.n_kv_heads} key-value heads"
                )
            self.put(number, slot, free[int(torch.randint(len(free), (), generator=generator))])
        return self.places

    def group(self, head: int) -> int:
        """Key-value head of a query head."""
        return head // (self.n_heads // self.n_kv_heads)

    def range(self, slot: Slot, behind: int) -> tuple[int, int]:
        """First and last layer: after the first head of every role it reads, before any placed head that reads it."""
        before = [min(p[role][0] for p in self.places if role in p) for role in slot.after]
        readers = [
            p[reader.role][0]
            for p, m in zip(self.places, self.mechanisms, strict=True)
            for reader in m.slots
            if slot.role in reader.after and reader.role in p
        ]
        first = max([slot.first_layer, *(layer + 1 for layer in before)])
        limits = [] if slot.last_layer is None else [slot.last_layer]
        return first, min([self.n_layers - 1 - behind, *limits, *(layer - 1 for layer in readers)])

    def put(self, number: int, slot: Slot, where: Place) -> None:
        """Take a head; ValueError where there is none or its keys are another's."""
        layer, head = where
        if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
            raise ValueError(
                f"{slot.role} cannot be at {where}: there are {self.n_layers} layers of {self.n_heads} heads"
            )
        if (layer, self.group(head)) in self.busy_groups:
            raise ValueError(f"{slot.role} cannot be at {where}: another mechanism has that head's keys and values")
        self.busy_groups.add((layer, self.group(head)))
        self.places[number][slot.role] = where
