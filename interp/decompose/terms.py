"""`Term`: one summand of the residual stream, with its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from interp.components import EMBED, attn_name, head_name, mlp_name, neuron_name
from interp.errors import SiteError, nearest


@dataclass(frozen=True)
class Term:
    """One thing that is added to the residual stream.

    Attributes:
        name: that of a component (`interp.components`): `embed`, `L3H5`, `A3`, `M3`, `M3N17`; or, where no component is
            meant, `pos`, `L3H5<7` (what head 5 brought from column 7), `b_attn3`, `b_mlp3` (biases), `B3` (a layer
            that is not told apart, or what it adds beside attention and MLP), what an edit in force adds at a site
            (`edit_resid_post3`, `edit_embed`, and `L3H5<edit` where heads are split by source), and in attributions
            `b_norm` and `b_unembed`.
        kind: "embed", "pos", "head", "source", "attn", "mlp", "neuron", "block", "bias" or "edit".
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


def embed() -> Term:
    """What enters layer 0."""
    return Term(EMBED, "embed")


def attention_of(layer: int) -> Term:
    """Attention of a layer, as a whole."""
    return Term(attn_name(layer), "attn", layer)


def mlp_of(layer: int) -> Term:
    """MLP of a layer, as a whole."""
    return Term(mlp_name(layer), "mlp", layer)


def heads_of(layer: int, n_heads: int) -> list[Term]:
    """Heads of a layer."""
    return [Term(head_name(layer, h), "head", layer, h) for h in range(n_heads)]


def sources_of(layer: int, n_heads: int, n: int) -> list[Term]:
    """Heads of a layer by column of the key, heads first."""
    return [Term(f"{head_name(layer, h)}<{j}", "source", layer, h, source=j) for h in range(n_heads) for j in range(n)]


def neurons_of(layer: int, width: int) -> list[Term]:
    """Neurons of a layer."""
    return [Term(neuron_name(layer, i), "neuron", layer, neuron=i) for i in range(width)]


def edit_of(kind: str, layer: int | None) -> Term:
    """What edits in force add at a site."""
    return Term(f"edit_{kind}{'' if layer is None else layer}", "edit", layer)


def head_edits_of(layer: int, n_heads: int) -> list[Term]:
    """What edits in force add to heads of a layer, beside what these brought from each source."""
    return [Term(f"{head_name(layer, h)}<edit", "edit", layer, h) for h in range(n_heads)]


def place(name: str, terms: Sequence[Term]) -> int:
    """Index of a term.

    Raises:
        SiteError: no such term; names the nearest.
    """
    names = [term.name for term in terms]
    if name not in names:
        raise SiteError(f"no component {name!r}; {nearest(name, names if len(names) < 100 else names[:100])}")
    return names.index(name)
