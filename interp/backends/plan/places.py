"""From what a user writes to (kind, layer) places of one model: ranges checked, captures narrowed, any backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from interp.edits import Edit
from interp.edits.where import one_column, row_index
from interp.errors import SiteError
from interp.model import Capture, ModelInfo, Reducer
from interp.sites import PER_HEAD, UNLAYERED, Site

Place = tuple[str, int | None]  # kind, layer; None outside the layers
OF_ATTENTION = (*PER_HEAD, "attn_out", "resid_mid")  # exist only at layers that have attention


@dataclass(frozen=True, eq=False)
class Wanted:
    """One thing to keep at one place: under which key, narrowed how, reduced by what."""

    site: Site
    reducer: Reducer | None

    def take(self, x: Tensor, mask: Bool[Tensor, "batch pos"]) -> Tensor:
        """The part of an activation that was asked for."""
        x = narrow(x, self.site, mask)
        return x if self.reducer is None else self.reducer(x)


def captures(capture: Capture, info: ModelInfo) -> dict[Place, list[Wanted]]:
    """What to keep, by place.

    Raises:
        SiteError: a head or layer out of range.
    """
    if isinstance(capture, str | Site):
        capture = [capture]
    reducers = capture if isinstance(capture, Mapping) else {}
    found: dict[Place, list[Wanted]] = {}
    for given in capture:
        site = Site.parse(given) if isinstance(given, str) else given
        for layer in layers_of(site, info):
            wanted = Wanted(site if layer is None else site.at(layer), reducers.get(given))
            found.setdefault((site.kind, layer), []).append(wanted)
    return found


def changes(edits: Sequence[Edit], info: ModelInfo) -> dict[Place, list[Edit]]:
    """Edits by place, in the order given.

    Raises:
        SiteError: a head or layer out of range.
    """
    found: dict[Place, list[Edit]] = {}
    for edit in edits:
        for layer in layers_of(edit.site, info):
            found.setdefault((edit.site.kind, layer), []).append(edit)
    return found


def layers_of(site: Site, info: ModelInfo) -> Sequence[int | None]:
    """Layers a site means: [None] for what stands outside the layers."""
    heads = info.n_kv_heads if site.kind in {"k", "v"} else info.n_heads
    if site.head is not None and site.head >= heads:
        kind = "key-value heads" if heads != info.n_heads else "heads"
        raise SiteError(f"{site}: head {site.head} is out of range; there are {heads} {kind}")
    if site.kind in UNLAYERED or (site.kind == "norm_scale" and site.first is None):
        return [None]
    exist = info.attention_layers if site.kind in OF_ATTENTION else tuple(range(info.n_layers))
    if site.layers is None:
        return exist
    for layer in site.layers:
        if layer >= info.n_layers:
            raise SiteError(f"{site}: layer {layer} is out of range; the model has {info.n_layers} layers")
        if layer not in exist:
            raise SiteError(f"{site}: layer {layer} has no attention; layers with attention: {exist}")
    return site.layers


def narrow(x: Tensor, site: Site, mask: Bool[Tensor, "batch pos"]) -> Tensor:
    """The head and position that a site names, their axes dropped; positions count real tokens."""
    head_axis = 1 if site.kind == "pattern" else 2
    if site.head is not None:
        x = x.select(head_axis, site.head)
    if site.position is None:
        return x
    rows = row_index(None, len(mask), site, mask.device)
    column = one_column(None, site, mask, rows)
    if site.kind == "pattern" and site.head is None:
        return x[rows, :, column]
    return x[rows, column]
