"""TODO."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from interp.errors import SchemaError, SiteError


def component(layer: int, head: int | None = None) -> str:
    """Name of a head (`L3H5`) or of a layer's MLP (`M3`)."""
    return f"M{layer}" if head is None else f"L{layer}H{head}"


def parse_component(text: str) -> tuple[int, int | None]:
    """(layer, head) of `L3H5`, (layer, None) of `M3`.

    >>> parse_component("L3H5")
    (3, 5)
    """
    found = re.match(r"^(?:L(\d+)H(\d+)|M(\d+))$", text)
    if found is None:
        raise SiteError(f"cannot read component {text!r}; write it like L3H5 or M3")
    layer, head, mlp = found.groups()
    return (int(mlp), None) if mlp is not None else (int(layer), int(head))


class Edge(NamedTuple):
    """One connection that a mechanism uses: what `sender` writes and `receiver` reads at `port`."""

    sender: str
    """`embed`, `L0H3` or `M0`."""
    receiver: str
    """`L1H7`, `M0` or `logits`."""
    port: Literal["q", "k", "v", "in"]
    """Input of a head; "in" for an MLP and for the logits."""


Port = Literal["q", "k", "v", "in"]


EMBED, LOGITS = "embed", "logits"


_HEAD = re.compile(r"^L(\d+)([HG])(\d+)$")


_MLP = re.compile(r"^M(\d+)$")


def layer_of(name: str, n_layers: int) -> int:
    """Layer of a component: -1 for `embed`, the number of layers for `logits`.

    Raises:
        SchemaError: not a component.
    """
    if name in (EMBED, LOGITS):
        return -1 if name == EMBED else n_layers
    match = _HEAD.match(name) or _MLP.match(name)
    if match is None:
        raise SchemaError(f"{name!r} is no component; expected embed, L0H3, L0G1, M0 or logits")
    return int(match[1])


def kind(name: str) -> str:
    """What a component is: embed, head, mlp or logits."""
    if name in ("embed", LOGITS):
        return name
    return "mlp" if name.startswith("M") else "head"


class Link(NamedTuple):
    """An edge between components: one into a key-value group is a link into each of its heads."""

    sender: str
    receiver: str
    port: str
    score: float
    edge: Edge
