"""Edits in force under which an attribution graph is the graph of the edited model, and why others are refused.

Edits of the stream, of what is read from it, of heads and of attention are carried out in the held model as in the
model itself: a graph adds up if they are affine, token by token, which is checked. Where a dictionary writes (MLPs'
outputs) an edit would end up in the error alone, and features' own writes would be those of the model without it.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from interp.edits import Ablate, Edit, Noise, Scale
from interp.errors import NotApplicable
from interp.model import Model
from interp.sites import Site

EMBED = Site("embed")
BEHIND = ("unembed_in", "logits")
"""Kinds behind the last layer, at which nothing of a graph is read."""


def edits_at(model: Model, site: Site) -> list[Edit]:
    """Edits in force at a place, in the order in which they were given."""
    return [e for e in model.edits if e.site.kind == site.kind and site.first in model.info.layers_of(e.site)]


def check_edits(model: Model, cuts: Collection[Site], read: Collection[Site | None]) -> None:
    """Refuse an edit in force that would make a graph of something else than the edited model.

    Args:
        model: whose edits.
        cuts: sites in whose place values of the graph stand.
        read: sites at which dictionaries read.

    Raises:
        NotApplicable: which edit, and why.
    """
    for edit in model.edits:
        why = _problem(model, edit, cuts, read)
        if why:
            raise NotApplicable(f"{type(edit).__name__} at {edit.site} is in force; {why}")


def _problem(model: Model, edit: Edit, cuts: Collection[Site], read: Collection[Site | None]) -> str:
    if edit.site.module:
        return "a module by name may stand anywhere: name the site of what it gives"
    kind, places = edit.site.kind, [Site(edit.site.kind, i) for i in model.info.layers_of(edit.site)]
    at = [site for site in places if site in cuts and site != EMBED]
    linear = isinstance(edit, Scale) or (isinstance(edit, Ablate) and edit.how == "zero")
    gated = kind == "mlp_post" and not linear and any(site in read for site in places)
    problems = {
        "a graph is of one prompt, of which copies are run: leave `rows` out and give positions as numbers": (
            edit.rows is not None or (isinstance(edit.positions, Tensor) and bool(edit.positions.ndim))
        ),
        "noise is drawn anew for every copy of the prompt: add the vector itself with Add": isinstance(edit, Noise),
        "it stands behind the last layer, and a graph ends there: leave it out": kind in BEHIND,
        f"features write at {', '.join(map(str, at))}, and what the edit does to them would be called an error: edit "
        "the stream behind it": bool(at),
        "what is added to a neuron cannot be told from its gate, which is held: Scale it, or Ablate it to zero": gated,
    }
    return next((why for why, applies in problems.items() if applies), "")
