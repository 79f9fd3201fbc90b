"""Checks of a pass: places within what the run reaches, and a stream without NaN or infinity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from numbers import Integral

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from interp.backends.plan.capture import Pass, refuse
from interp.backends.plan.places import Place
from interp.edits import Edit
from interp.errors import BackendError, NotFinite, SiteError
from interp.sites import DIVISORS, EMBEDDINGS, MODULE, Site, difference

COMPILED = (
    "the model is compiled, and compiled code calls no hooks: load it before torch.compile (or give the module inside, "
    "`model._orig_mod`)"
)
Traits = Callable[[int | None], Collection[str]]
FIXED = "is a consequence of the residual stream, not a value of its own; edit resid_pre or resid_mid instead"


def check_reached(
    plan: Pass,
    n_layers: int,
    *,
    start: tuple[int, Tensor] | None,
    stop: int | None,
    shape: tuple[int, ...],
) -> None:
    """Refuse layers out of range, a residual of the wrong shape, and sites that the run would not come by."""
    first = check_span(n_layers, start=start, stop=stop)
    if start is not None and tuple(start[1].shape) != shape:
        expected = f"[batch pos d_model] = {shape}"
        raise SiteError(f"start: a residual of shape {tuple(start[1].shape)}; expected {expected}")
    for place, thing in places_of(plan):
        why = unreached(place, n_layers, start=first, stop=stop)
        if why is not None:
            raise refuse(thing, why)


def unreached(place: Place, n_layers: int, *, start: int | None, stop: int | None) -> str | None:
    """Why a run from layer `start` to layer `stop` does not come by a place; None where it does.

    Where a module by its name stands is not known before the run.
    """
    kind, layer = place
    first, last = 0 if start is None else start, n_layers - 1 if stop is None else stop
    if layer is not None:
        return None if first <= layer <= last else f"layer {layer} is not run; this run has layers {first} to {last}"
    if kind in EMBEDDINGS:
        return (
            None if start is None else f"the run starts at layer {first} with a residual of yours, without embeddings"
        )
    if stop is not None and not kind.startswith(MODULE):
        return f"the run stops after layer {last} and does not come by here"
    return None


def check_sites(plan: Pass, missing: Callable[[Place, bool], str | None], traits: Traits) -> None:
    """Refuse places that the model lacks, names that mean another tensor in it, and edits of what is only read off.

    Args:
        plan: of the pass.
        missing: why the model lacks a place, or (with True) why it cannot be edited; None where it has it.
        traits: of the model at a layer, as `interp.sites.difference` takes them.

    Raises:
        SiteError: with the reason.
    """
    for place, thing in places_of(plan):
        site = thing.site if isinstance(thing, Edit) else thing
        if place[0] in DIVISORS and isinstance(thing, Edit):
            raise refuse(thing, f"the divisor of a norm {FIXED}")
        why = missing(place, isinstance(thing, Edit)) or (site.alias and difference(site, traits(place[1])))
        if why:
            raise refuse(thing, why)


def check_span(n_layers: int, *, start: tuple[int, Tensor] | None, stop: int | None) -> int | None:
    """The layer that a run starts at, None where it starts with its tokens; layers out of range are refused."""
    if start is not None and not (isinstance(start, tuple | list) and len(start) == 2 and isinstance(start[1], Tensor)):
        raise SiteError(f"start is a pair (layer, residual [batch pos d_model]); got {type(start).__name__}")
    first, last = 0 if start is None else start[0], n_layers - 1 if stop is None else stop
    for name, layer in (("start", first), ("stop", last)):
        if isinstance(layer, bool) or not isinstance(layer, Integral):
            raise SiteError(f"{name} at layer {layer!r:.40}: a layer is an integer")
    for name, layer in (("start", first), ("stop", last)):
        if not 0 <= layer < n_layers:
            raise SiteError(f"{name} at layer {layer} is out of range; the model has {n_layers} layers")
    if last < first:
        raise SiteError(f"stop at layer {last} lies before start at layer {first}")
    return None if start is None else int(first)


def check_visited(plan: Pass, module: nn.Module, *, end: int | None = None) -> None:
    """Refuse a pass that did not come by every place of the plan: what was to happen there did not.

    `end` is the layer whose attention was the last thing asked for; what stands behind it need not have been passed.

    Raises:
        BackendError: names the first such place.
    """
    for (kind, layer), thing in places_of(plan):
        behind = end is not None and (layer is None or layer >= end) and kind != "embed"
        if behind or (kind, layer) in plan.visited or (kind, layer) in plan.passed_by:
            continue
        site = thing.site if isinstance(thing, Edit) else thing
        why = COMPILED if compiled(module) else "its module was not called as when the model was loaded"
        raise BackendError(f"{site}: the pass did not come by here: {why}")


def compiled(module: nn.Module) -> str | None:
    """Name of a part that torch.compile has taken over, so that no hook of ours fires in it; None without any."""
    for name, part in module.named_modules():
        own = part.__dict__.get("forward")
        if getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod"):
            return name or type(part).__name__
        if own is not None and hasattr(own, "_torchdynamo_orig_callable"):
            return name or type(part).__name__
    return None


def places_of(plan: Pass) -> Iterator[tuple[Place, Site | Edit]]:
    """Every capture and every edit of a pass, with its place."""
    for place, captures in plan.captures.items():
        for w in captures:
            yield place, w.site
    for place, edits in plan.edits.items():
        for edit in edits:
            yield place, edit


def check_finite(x: Tensor, mask: Bool[Tensor, "batch pos"], layer: int) -> None:
    """Raise NotFinite when the stream is not finite at some real token: what follows would be no numbers."""
    with torch.no_grad():
        if bool(torch.isfinite(x.sum(dtype=torch.float32))):  # cheap screen for the exact check
            return
        bad = ~torch.isfinite(x).all(-1) & mask.to(x.device)
    if bool(bad.any()):
        count, position = int(bad.sum()), int(bad.nonzero()[0, 1])
        raise NotFinite(
            f"residual stream not finite after layer {layer} at {count} of {int(mask.sum())} tokens (first at position "
            f"{position}): NaN or infinite weights or edits, or overflow in {str(x.dtype).removeprefix('torch.')}"
        )
