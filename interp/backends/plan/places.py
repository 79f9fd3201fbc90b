"""Places, (kind, layer), of captures and edits in one model: ranges checked, captures narrowed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from interp.backends.plan.arguments import edit_list, site_list
from interp.edits import Edit
from interp.edits.where import one_column, row_index
from interp.errors import BackendError
from interp.model import Capture, ModelInfo, Reducer
from interp.sites import ALL, DIVISORS, EMBEDDINGS, KINDS, MODULE, SQUARE, UNLAYERED, Site

Place = tuple[str, int | None]  # kind, layer; None outside the layers


@dataclass(frozen=True, eq=False)
class SiteCapture:
    """One thing to keep at one place: under which key, narrowed how, reduced by what."""

    site: Site
    reducer: Reducer | None

    def take(self, x: Tensor, mask: Bool[Tensor, "batch pos"], *, at: Site | None = None) -> Tensor:
        """The part of an activation that was asked for; `at` is where it stands in x, where x is not the whole.

        Raises:
            BackendError: the reducer has changed the activation itself, which the model goes on with. (Writes through
                `.data` or numpy are seen by nobody.)
        """
        if self.reducer is None:
            return narrow(x, at or self.site, mask)
        if x.is_inference():  # torch counts no changes of these
            return self.reducer(narrow(x.clone(), at or self.site, mask))
        before = x._version
        part = self.reducer(narrow(x, at or self.site, mask))
        if x._version != before:
            raise BackendError(
                f"{self.site}: the reducer changes its activation in place, and the model would go on with the change; "
                "let it return a new tensor, or make the change an edit (interp.edits.Apply)"
            )
        return part


def every_place(info: ModelInfo) -> Iterator[Place]:
    """Every kind of site at every layer, whether a model has it there or not; modules by name are not among them."""
    for kind in KINDS:
        if kind in UNLAYERED or kind == DIVISORS[0]:
            yield kind, None
        if kind not in UNLAYERED:
            yield from ((kind, layer) for layer in range(info.n_layers))


def captures(
    capture: Capture, info: ModelInfo, *, has: Callable[[Place], bool] = lambda _: True
) -> dict[Place, list[SiteCapture]]:
    """Captures by place; `has` says which places the model has and the run comes by, of which "all" are all.

    Raises:
        SiteError: a head or layer out of range.
        SchemaError: something that is no site, or a reducer that cannot be called.
    """
    reducers = capture if isinstance(capture, Mapping) else {}
    result: dict[Place, list[SiteCapture]] = {}
    for item in site_list(capture):
        if item == ALL:
            for kind, layer in filter(has, every_place(info)):
                result.setdefault((kind, layer), []).append(SiteCapture(Site(kind, layer), reducers.get(item)))
            continue
        site = Site.parse(item) if isinstance(item, str) else item
        for layer in info.layers_of(site):
            entry = SiteCapture(site if layer is None else site.at(layer), reducers.get(item))
            result.setdefault((site.kind, layer), []).append(entry)
    return result


def changes(edits: Sequence[Edit], info: ModelInfo) -> dict[Place, list[Edit]]:
    """Edits by place, in the order given.

    Raises:
        SiteError: a head or layer out of range.
        SchemaError: something that is no edit.
    """
    result: dict[Place, list[Edit]] = {}
    for edit in edit_list(edits):
        for layer in info.layers_of(edit.site):
            result.setdefault((edit.site.kind, layer), []).append(edit)
    return result


def reached(place: Place, n_layers: int, *, start: int | None, stop: int | None) -> bool:
    """Whether a run comes by a place of its own making: what it starts with is given, and stands behind edits there."""
    kind, layer = place
    if layer is None:
        return start is None if kind in EMBEDDINGS else stop is None or kind.startswith(MODULE)
    if layer == start and kind == "resid_pre":
        return False
    return (0 if start is None else start) <= layer <= (n_layers - 1 if stop is None else stop)


def unplaced(outer: Collection[Place], own: Collection[Place], *, start: int | None, stop: int | None) -> set[Place]:
    """Modules edited by a context alone, in a run of some layers: nobody knows whether it comes by them."""
    whole = start is None and stop is None
    return set() if whole else {p for p in outer if p[0].startswith(MODULE) and p not in own}


def narrow(x: Tensor, site: Site, mask: Bool[Tensor, "batch pos"]) -> Tensor:
    """The head and position that a site names, their axes dropped; positions count real tokens."""
    head_axis = 1 if site.kind in SQUARE else 2
    if site.head is not None:
        x = x.select(head_axis, site.head)
    if site.position is None:
        return x
    rows = row_index(None, len(mask), site, mask.device)
    column = one_column(None, site, mask, rows)
    if site.kind in SQUARE and site.head is None:
        return x[rows, :, column]
    return x[rows, column]
