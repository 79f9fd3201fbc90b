"""Half-layers: the first place of the stream that holds what a kind of term wrote."""

from __future__ import annotations

from interp.decompose.terms import Term
from interp.sites import Site

ENTRY, ATTENTION, WHOLE = "resid_pre", "resid_mid", "resid_post"
EARLY = ("b_attn", "edit_attn_out", "edit_resid_pre", "edit_resid_mid")  # in the stream once attention is
STAGES = {"embed": ENTRY, "pos": ENTRY, "head": ATTENTION, "source": ATTENTION, "attn": ATTENTION}
"""First place of its layer at which the stream holds what a kind of term wrote; `resid_post` for the others."""


def half_layer(term: Term) -> Site:
    """First place in the stream that holds what a term wrote; biases of the end count from the start."""
    if term.layer is None or term.name == "edit_resid_pre0":
        return Site(ENTRY, 0)
    attention = term.kind in STAGES or term.head is not None or term.name.startswith(EARLY)
    return Site(ATTENTION if attention else WHOLE, term.layer)
