"""How the components of a model and the edges between them are written: the one place that reads and builds names.

| written | kind | what it is |
|---|---|---|
| `embed` | embed | the embedding, positions where they are added with it |
| `L3` | stream | the residual stream that enters layer 3 |
| `L3H5` | head | query head 5 of layer 3 |
| `L3KV1` | kv_head | key-value head 1 of layer 3, where several query heads share it |
| `A3` | attn | the attention of layer 3 as a whole |
| `M3` | mlp | the MLP of layer 3 |
| `M3N17` | neuron | neuron 17 of that MLP |
| `logits` | logits | what reads the last residual stream |

A slot is what reads, with the port that it reads at: `L1H7.q`, `L1KV0.k`; an MLP and the logits have one port, "in",
which is not written: `M3`, `logits`. An edge joins a component that writes to a slot: `L0H3 -> L1H7.q`.

Tables join on these names. Each component has one spelling: `L03H5`, `l3h5` and `L3H5 ` are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, cast

from interp.errors import SiteError

Kind = Literal["embed", "stream", "head", "kv_head", "attn", "mlp", "neuron", "logits"]
Port = Literal["q", "k", "v", "in"]

EMBED, LOGITS = "embed", "logits"
ARROW = " -> "
_FORMS: dict[Kind, str] = {
    "embed": EMBED,
    "stream": "L{layer}",
    "head": "L{layer}H{index}",
    "kv_head": "L{layer}KV{index}",
    "attn": "A{layer}",
    "mlp": "M{layer}",
    "neuron": "M{layer}N{index}",
    "logits": LOGITS,
}
_NUMBER = "0|[1-9][0-9]*"
_PATTERNS: dict[Kind, re.Pattern[str]] = {
    kind: re.compile(form.format(layer=f"(?P<layer>{_NUMBER})", index=f"(?P<index>{_NUMBER})"))
    for kind, form in _FORMS.items()
}
_EXAMPLES = ", ".join(form.format(layer=3, index=1) for form in _FORMS.values())
_PORTS: dict[Kind, tuple[Port, ...]] = {
    "head": ("q", "k", "v"),
    "kv_head": ("k", "v"),
    "mlp": ("in",),
    "logits": ("in",),
}
_WRITES = ("embed", "head", "mlp")
CACHE = 1 << 17
"""Names that are parsed once: the heads, MLPs and a layer's neurons of the largest models."""


@dataclass(frozen=True)
class Component:
    """A part of a model, as `str` writes it and `parse` reads it.

    Attributes:
        kind: which part; the table above.
        layer: from 0; None for `embed` and `logits`.
        index: of a head, key-value head or neuron in its layer, from 0; None elsewhere.
    """

    kind: Kind
    layer: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        """Refuse a kind that is none, and a layer or index that the kind has not, or lacks."""
        if self.kind not in _FORMS:
            raise SiteError(f"no component is of kind {self.kind!r}; kinds: {', '.join(_FORMS)}")
        for name, value in (("layer", self.layer), ("index", self.index)):
            if (f"{{{name}}}" in _FORMS[self.kind]) != (value is not None) or (value is not None and value < 0):
                raise SiteError(f"a component of kind {self.kind!r} has no {name} {value!r}")

    @classmethod
    def parse(cls, text: str) -> Component:
        """The component that `text` names; the same object for the same text.

        Raises:
            SiteError: not one of the forms; names them.

        >>> Component.parse("L3H5")
        Component(kind='head', layer=3, index=5)
        """
        return _parse(text)

    def __str__(self) -> str:
        """Its name."""
        return _FORMS[self.kind].format(layer=self.layer, index=self.index)

    @property
    def ports(self) -> tuple[Port, ...]:
        """Where it reads: q, k and v of a head, k and v of a key-value head, "in" of an MLP and of the logits."""
        return _PORTS.get(self.kind, ())


def _parse(text: str) -> Component:
    if not isinstance(text, str):
        raise SiteError(f"a component is named by text like {_EXAMPLES}; got {type(text).__name__} {text!r:.40}")
    return _parsed(text)


@lru_cache(maxsize=CACHE)
def _parsed(text: str) -> Component:
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(text)
        if match is not None:
            return Component(kind, **{name: int(number) for name, number in match.groupdict().items()})
    raise SiteError(f"cannot read component {text!r}; components are written like {_EXAMPLES}")


def head_name(layer: int, head: int) -> str:
    """`L3H5`."""
    return _FORMS["head"].format(layer=layer, index=head)


def head_names(heads: Iterable[tuple[int, int]]) -> list[str]:
    """Names of (layer, head) pairs, in their order."""
    return [head_name(layer, head) for layer, head in heads]


def kv_head_name(layer: int, index: int, *, group: int = 2) -> str:
    """`L3KV1`; a key-value head of one query head alone (`group` 1) is that head: `L3H1`."""
    return _FORMS["head" if group == 1 else "kv_head"].format(layer=layer, index=index)


def mlp_name(layer: int) -> str:
    """`M3`."""
    return _FORMS["mlp"].format(layer=layer)


def neuron_name(layer: int, neuron: int) -> str:
    """`M3N17`."""
    return _FORMS["neuron"].format(layer=layer, index=neuron)


def attn_name(layer: int) -> str:
    """`A3`."""
    return _FORMS["attn"].format(layer=layer)


def stream_name(layer: int) -> str:
    """`L3`."""
    return _FORMS["stream"].format(layer=layer)


def kind(name: str) -> Kind:
    """Which part of a model a name means.

    Raises:
        SiteError: no component's name.
    """
    return _parse(name).kind


def is_head(name: str) -> bool:
    """Whether a text names a query head; False for what names nothing."""
    return _PATTERNS["head"].fullmatch(name) is not None


def parse_head(name: str) -> tuple[int, int]:
    """(layer, head) of `L3H5`.

    Raises:
        SiteError: no component's name, or not a query head's.

    >>> parse_head("L3H5")
    (3, 5)
    """
    found = _parse(name)
    if found.kind != "head":
        raise SiteError(f"{name!r} is no head; heads are written like {head_name(3, 5)}")
    return cast("tuple[int, int]", (found.layer, found.index))


def layer_of(name: str, n_layers: int) -> int:
    """Layer of a component: -1 for `embed`, the number of layers for `logits`.

    Raises:
        SiteError: no component's name.
    """
    found = _parse(name)
    return found.layer if found.layer is not None else -1 if found.kind == "embed" else n_layers


def slot_name(receiver: str, port: str) -> str:
    """`L1H7.q`; the receiver alone where its port is "in"."""
    return receiver if port == "in" else f"{receiver}.{port}"


def parse_slot(text: str) -> tuple[str, Port]:
    """(receiver, port) of `L1H7.q`, `M3` or `logits`.

    Raises:
        SiteError: no component's name, a port that it has not, or a head without one.
    """
    receiver, dot, written = text.partition(".")
    port, ports = written if dot else "in", _parse(receiver).ports
    if port not in ports:
        choice = " or ".join(slot_name(receiver, p) for p in ports) or "a head's q, k or v, an MLP or the logits"
        raise SiteError(f"no slot {text!r}: {receiver} {'reads at' if ports else 'reads nothing;'} {choice}")
    return receiver, cast("Port", port)


class Edge(NamedTuple):
    """One connection that a mechanism uses: what `sender` writes and `receiver` reads at `port`."""

    sender: str
    """`embed`, `L0H3` or `M0`."""
    receiver: str
    """`L1H7`, `L1KV0`, `M0` or `logits`."""
    port: Port
    """Input of a head; "in" for an MLP and for the logits."""

    @classmethod
    def parse(cls, text: str) -> Edge:
        """From `L0H3 -> L1H7.q`.

        Raises:
            SiteError: no arrow, no component that writes before it, or no slot behind it.

        >>> Edge.parse("L0H3 -> L1H7.q")
        Edge(sender='L0H3', receiver='L1H7', port='q')
        """
        sender, arrow, slot = text.partition(ARROW)
        if not arrow:
            raise SiteError(f"cannot read edge {text!r}; edges are written like L0H3{ARROW}L1H7.q, embed{ARROW}M0")
        if kind(sender) not in _WRITES:
            raise SiteError(f"{sender!r} writes nothing that an edge could carry; senders are {', '.join(_WRITES)}")
        return cls(sender, *parse_slot(slot))

    def __str__(self) -> str:
        """`L0H3 -> L1H7.q`."""
        return f"{self.sender}{ARROW}{slot_name(self.receiver, self.port)}"


class Link(NamedTuple):
    """An edge between components: one into a key-value head is a link into each of the heads that share it."""

    sender: str
    receiver: str
    port: str
    score: float
    edge: Edge
