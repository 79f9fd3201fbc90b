"""Refusal of sites that an architecture lacks, with the reason."""

from __future__ import annotations

from interp.backends.hf.anatomy import Anatomy
from interp.backends.plan.capture import Pass, refuse
from interp.backends.plan.checks import FIXED, places_of
from interp.edits import Edit, KnockOut
from interp.sites import Site

NO_LOGITS = (
    "an encoder gives no logits and writes no tokens; ask for sites and attention, or load the decoder "
    "(stack='decoder')"
)
OF_SOURCE = "is of the source's tokens in attention to a source; run the encoder, and edit the pattern, z or q here"


def check_keys_of_source(plan: Pass) -> None:
    """Refuse keys and values where they are the source's, and pairs of a prompt's own tokens.

    Raises:
        SiteError: names the place.
    """
    for (kind, _), thing in places_of(plan):
        if kind in ("k", "v"):
            raise refuse(thing, f"{kind} {OF_SOURCE}")
        if isinstance(thing, KnockOut) and thing.pairs is not None:
            raise refuse(thing, "pairs are of a prompt's own tokens, and keys are the source's here; give `keys`")


def check_exists(plan: Pass, anatomy: Anatomy) -> None:
    """Refuse sites that this architecture lacks, with the reason."""
    for (kind, layer), thing in places_of(plan):
        if kind == "norm_scale":
            if isinstance(thing, Edit):
                raise refuse(thing, f"the divisor of a norm {FIXED}")
            _check_norm(thing, layer, anatomy)
        elif kind == "logits" and anatomy.unembed is None:
            raise refuse(thing, NO_LOGITS)
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
