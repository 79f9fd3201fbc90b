"""Places, (kind, layer), of captures and edits in one model: ranges checked, captures narrowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from interp.edits import Edit
from interp.edits.where import one_column, row_index
from interp.model import Capture, ModelInfo, Reducer
from interp.sites import Site

Place = tuple[str, int | None]  # kind, layer; None outside the layers


@dataclass(frozen=True, eq=False)
class SiteCapture:
    """One thing to keep at one place: under which key, narrowed how, reduced by what."""

    site: Site
    reducer: Reducer | None

    def take(self, x: Tensor, mask: Bool[Tensor, "batch pos"]) -> Tensor:
        """The part of an activation that was asked for."""
        x = narrow(x, self.site, mask)
        return x if self.reducer is None else self.reducer(x)


def captures(capture: Capture, info: ModelInfo) -> dict[Place, list[SiteCapture]]:
    """Captures by place.

    Raises:
        SiteError: a head or layer out of range.
    """
    if isinstance(capture, str | Site):
        capture = [capture]
    reducers = capture if isinstance(capture, Mapping) else {}
    result: dict[Place, list[SiteCapture]] = {}
    for item in capture:
        site = Site.parse(item) if isinstance(item, str) else item
        for layer in info.layers_of(site):
            entry = SiteCapture(site if layer is None else site.at(layer), reducers.get(item))
            result.setdefault((site.kind, layer), []).append(entry)
    return result


def changes(edits: Sequence[Edit], info: ModelInfo) -> dict[Place, list[Edit]]:
    """Edits by place, in the order given.

    Raises:
        SiteError: a head or layer out of range.
    """
    result: dict[Place, list[Edit]] = {}
    for edit in edits:
        for layer in info.layers_of(edit.site):
            result.setdefault((edit.site.kind, layer), []).append(edit)
    return result


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
