"""Names of what writes to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from interp.components import component
from interp.errors import SiteError, nearest


@dataclass(frozen=True)
class Component:
    """One thing that is added to the residual stream.

    Attributes:
        name: `embed`, `pos`, `L3H5` (head), `L3H5<7` (what head 5 brought from column 7), `A3` (attention as a whole),
            `M3` (MLP), `M3N17` (neuron), `b_attn3`, `b_mlp3` (biases), `B3` (a layer that is not told apart);
            `b_norm` and `b_unembed` in attributions.
        kind: "embed", "pos", "head", "source", "attn", "mlp", "neuron", "block" or "bias".
        layer, head, source, neuron: where it applies.
    """

    name: str
    kind: str
    layer: int | None = None
    head: int | None = None
    source: int | None = None
    neuron: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Columns of a table."""
        fields = asdict(self)
        return {"component": fields.pop("name"), **fields}


def heads_of(layer: int, n_heads: int) -> list[Component]:
    """Heads of a layer."""
    return [Component(component(layer, h), "head", layer, h) for h in range(n_heads)]


def sources_of(layer: int, n_heads: int, n: int) -> list[Component]:
    """Heads of a layer by column of the key, heads first."""
    return [
        Component(f"{component(layer, h)}<{j}", "source", layer, h, source=j) for h in range(n_heads) for j in range(n)
    ]


def neurons_of(layer: int, width: int) -> list[Component]:
    """Neurons of a layer."""
    return [Component(f"{component(layer)}N{i}", "neuron", layer, neuron=i) for i in range(width)]


def place(name: str, components: Sequence[Component]) -> int:
    """Index of a component.

    Raises:
        SiteError: no such component; names the nearest.
    """
    names = [c.name for c in components]
    if name not in names:
        raise SiteError(f"no component {name!r}; {nearest(name, names if len(names) < 100 else names[:100])}")
    return names.index(name)
