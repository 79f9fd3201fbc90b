"""Refusal of sites that an architecture lacks, with the reason."""

from __future__ import annotations

from interp.backends.hf.anatomy import Anatomy
from interp.backends.plan.capture import Pass, refuse
from interp.backends.plan.checks import FIXED, places_of
from interp.edits import Edit
from interp.sites import Site


def check_exists(plan: Pass, anatomy: Anatomy) -> None:
    """Refuse sites that this architecture lacks, with the reason."""
    for (kind, layer), thing in places_of(plan):
        if kind == "norm_scale":
            if isinstance(thing, Edit):
                raise refuse(thing, f"the divisor of a norm {FIXED}")
            _check_norm(thing, layer, anatomy)
        elif kind == "embed" and "resid_pre" in anatomy.stream[0].missing:
            raise refuse(thing, anatomy.stream[0].missing["resid_pre"])
        elif layer is not None and kind in anatomy.stream[layer].missing:
            raise refuse(thing, anatomy.stream[layer].missing[kind])


def _check_norm(site: Site | Edit, layer: int | None, anatomy: Anatomy) -> None:
    if layer is None:
        if anatomy.final_norm is None:
            raise refuse(site, "no norm stands before the unembedding")
        return
    part = anatomy.part(layer)
    if part is None or part.norm_before is None:
        what = "has no attention" if part is None else "has no norm before attention (norms follow it)"
        raise refuse(site, f"layer {layer} {what}")
