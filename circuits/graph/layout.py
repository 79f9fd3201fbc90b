"""What can be connected with what in an architecture: the senders, the slots that read, and which edges exist.

Senders are `embed`, heads `L0H3` and MLPs `M0`; a slot is a receiver with a port: q of a head, k and v of a head (of a
key-value head `L0KV1` where query heads share them), the input ("in") of an MLP and of the logits. An edge exists where
the sender is written before the slot is read. Everything is an array over [sender, slot], in the order of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from interp.components import (
    EMBED,
    LOGITS,
    Component,
    Edge,
    Port,
    head_name,
    kind,
    kv_head_name,
    layer_of,
    mlp_name,
)
from interp.errors import SchemaError
from interp.model import ModelInfo
from interp.parallel import cached_property


@dataclass(frozen=True)
class Layout:
    """Sizes that decide which edges there are.

    Attributes:
        n_layers, n_heads, n_kv_heads: of the model; query heads h * n_kv_heads // n_heads share keys and values.
        parallel: attention and MLP of a layer read the same stream, so that no head feeds its own layer's MLP.
        mlps: whether there are any.
        attention_layers: layers that have heads; None for all.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    mlps: bool = True
    attention_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse groups that do not divide the heads."""
        if self.n_heads % self.n_kv_heads:
            raise SchemaError(f"{self.n_heads} heads cannot share {self.n_kv_heads} key-value heads evenly")

    @classmethod
    def of(cls, info: ModelInfo, *, parallel: bool) -> Layout:
        """Of a model; whether its blocks are parallel is the caller's to say where the model does not."""
        layers = info.attention_layers
        every = tuple(range(info.n_layers))
        return cls(
            info.n_layers,
            info.n_heads,
            info.n_kv_heads,
            parallel=parallel,
            attention_layers=None if layers == every else layers,
        )

    @classmethod
    def of_dict(cls, content: Mapping[str, Any]) -> Layout:
        """From `as_dict`."""
        layers = content.get("attention_layers")
        return cls(**{**content, "attention_layers": None if layers is None else tuple(layers)})

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.n_heads // self.n_kv_heads

    def has_heads(self, layer: int) -> bool:
        """Whether a layer has attention."""
        return self.attention_layers is None or layer in self.attention_layers

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Components that write, in order: `embed`, then each layer's heads and its MLP."""
        names = [EMBED]
        for layer in range(self.n_layers):
            if self.has_heads(layer):
                names += [head_name(layer, head) for head in range(self.n_heads)]
            if self.mlps:
                names.append(mlp_name(layer))
        return tuple(names)

    @cached_property
    def slots(self) -> tuple[tuple[str, Port], ...]:
        """(receiver, port) of everything that reads, in order: each layer's q, k and v, its MLP, at last the logits."""
        slots: list[tuple[str, Port]] = []
        for layer in range(self.n_layers):
            if self.has_heads(layer):
                kv_heads = [kv_head_name(layer, i, group=self.group) for i in range(self.n_kv_heads)]
                slots.extend((head_name(layer, i), "q") for i in range(self.n_heads))
                slots.extend((name, "k") for name in kv_heads)
                slots.extend((name, "v") for name in kv_heads)
            if self.mlps:
                slots.append((mlp_name(layer), "in"))
        return (*slots, (LOGITS, "in"))

    @cached_property
    def sender_index(self) -> dict[str, int]:
        """Row of each sender."""
        return {name: i for i, name in enumerate(self.senders)}

    @cached_property
    def slot_index(self) -> dict[tuple[str, str], int]:
        """Column of each slot."""
        return {(name, port): i for i, (name, port) in enumerate(self.slots)}

    def sender(self, layer: int, head: int | None = None) -> int:
        """Row of a head, or of the layer's MLP."""
        return self.sender_index[mlp_name(layer) if head is None else head_name(layer, head)]

    def slot(self, layer: int, port: Port, index: int = 0) -> int:
        """Column of a head's q, of a key-value head's k or v, or of the layer's MLP ("in")."""
        return self._first_slot[layer, port] + index

    @cached_property
    def _first_slot(self) -> dict[tuple[int, Port], int]:
        """Column of the first slot of each layer and port."""
        first: dict[tuple[int, Port], int] = {}
        for i, (name, port) in enumerate(self.slots):
            first.setdefault((layer_of(name, self.n_layers), port), i)
        return first

    @cached_property
    def exists(self) -> Bool[ndarray, "sender slot"]:
        """Which senders are written before which slots are read."""
        write_depth = np.array([self._depth(name, writes=True) for name in self.senders])
        read_depth = np.array([self._depth(name, writes=False) for name, _ in self.slots])
        return write_depth[:, None] < read_depth[None, :]

    @property
    def n_edges(self) -> int:
        """Edges of the whole model: 32,491 for GPT-2 small."""
        return int(self.exists.sum())

    @cached_property
    def owners(self) -> Bool[ndarray, "slot sender"]:
        """Which senders a slot feeds: a head its own q, every head of a group its k and v, an MLP its input."""
        mask = np.zeros((len(self.slots), len(self.senders)), dtype=bool)
        for i, (name, _) in enumerate(self.slots):
            for reader in self.readers(name):
                if reader in self.sender_index:
                    mask[i, self.sender_index[reader]] = True
        return mask

    @cached_property
    def sender_layers(self) -> Int[ndarray, " sender"]:
        """Layer of each sender, -1 for `embed`."""
        return np.array([layer_of(name, self.n_layers) for name in self.senders])

    def readers(self, receiver: str) -> tuple[str, ...]:
        """Components that a receiver stands for: itself, or the query heads of a key-value head."""
        component = Component.parse(receiver)
        if component.kind != "kv_head" or component.layer is None or component.index is None:
            return (receiver,)
        first = component.index * self.group
        return tuple(head_name(component.layer, head) for head in range(first, first + self.group))

    def shared(self, receiver: str, port: str) -> str:
        """The receiver as it is called here: k and v of a head are those of the key-value head that it shares."""
        component = Component.parse(receiver)
        if component.kind not in ("head", "kv_head") or port not in ("k", "v"):
            return receiver
        assert component.layer is not None and component.index is not None  # both kinds have them
        index = component.index // self.group if component.kind == "head" else component.index
        return kv_head_name(component.layer, index, group=self.group)

    def place(self, edge: Edge | tuple[str, str, str]) -> tuple[int, int]:
        """(row, column) of an edge; k and v of a head mean those of its key-value head.

        Raises:
            SchemaError: no such sender or slot, or the receiver is read before the sender is written.
        """
        sender, receiver, port = edge
        receiver = self.shared(receiver, port)
        if sender not in self.sender_index or (receiver, port) not in self.slot_index:
            missing_part = (
                f"sender {sender!r}" if sender not in self.sender_index else f"receiver {receiver!r} at port {port!r}"
            )
            raise SchemaError(f"no {missing_part} in {self.n_layers} layers of {self.n_heads} heads")
        row, column = self.sender_index[sender], self.slot_index[receiver, port]
        if not self.exists[row, column]:
            raise SchemaError(f"no edge from {sender} to {receiver}: it is read before {sender} is written")
        return row, column

    def edge(self, row: int, column: int) -> Edge:
        """Name of an edge."""
        return Edge(self.senders[row], *self.slots[column])

    def _depth(self, name: str, *, writes: bool) -> int:
        """Time at which a sender is written, or a receiver read: a sender is seen by what reads later."""
        layer = layer_of(name, self.n_layers)
        if name in (EMBED, LOGITS):
            return 0 if name == EMBED else 4 * self.n_layers + 1
        base = 4 * layer
        if self.parallel:
            return base + (2 if writes else 1)
        return base + (2 if writes else 1) + (2 if kind(name) == "mlp" else 0)
