"""Which sites an architecture lacks, and why; which of its traits make names of TransformerLens mean another tensor."""

from __future__ import annotations

import difflib

from torch import nn

from interp.backends.hf.anatomy import Anatomy
from interp.backends.plan.capture import Pass, refuse
from interp.backends.plan.checks import places_of
from interp.backends.plan.places import Place
from interp.edits import KnockOut
from interp.sites import MODULE, Site

SPREAD = "it is spread over processes; load the model without tensor parallelism"
LOST = (
    "the router has chosen its experts before it gives these scores, so that a change would reach nothing; edit "
    "mlp_in, or the router's input or output by its name (module:NAME)"
)

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


def missing_reason(place: Place, anatomy: Anatomy, model: nn.Module, *, edit: bool = False) -> str | None:
    """Why a place does not exist in an architecture, or cannot be edited; None where it does and can."""
    kind, layer = place
    if kind.startswith(MODULE):
        return no_module(Site(kind).module, model)
    if "norm_scale" in kind:
        return _no_norm(kind, layer, anatomy)
    if layer is None:
        return _no_end(kind, anatomy)
    stream = anatomy.stream[layer]
    if anatomy.shards is not None and kind in ("mlp_pre", "mlp_up"):
        return SPREAD
    if kind == "router_logits" and edit and not stream.router_last and stream.router is not None:
        return LOST
    return stream.missing.get(kind)


def traits(anatomy: Anatomy, layer: int | None) -> frozenset[str]:
    """Traits of a model at a layer, keys of `interp.sites.DIFFERENCES`."""
    if layer is None:
        facts = {"logits": anatomy.capped, "embed_norm": anatomy.embeds.normed}
        return frozenset(name for name, holds in facts.items() if holds)
    stream, part = anatomy.stream[layer], anatomy.part(layer)
    facts = {
        "mlp_post": stream.mlp_norm_after is not None,
        "mlp_scale": stream.mlp_scale != 1.0,
        "mlp_norm": stream.mlp_norm is None,
        "gated": stream.mlp_up is not None,
    }
    if part is not None:
        facts |= {
            "z": not part.direct,
            "attn_norm": part.norm_before is None,
            "attn_post": part.norm_after is not None,
            "attn_scale": stream.attn_scale != 1.0,
            **{name: name in part.altered for name in "qkv"},
        }
    return frozenset(name for name, holds in facts.items() if holds)


def _no_end(kind: str, anatomy: Anatomy) -> str | None:
    """Why a place in front of the layers or behind them does not exist."""
    if kind in ("logits", "unembed_in") and anatomy.unembed is None:
        return NO_LOGITS
    if kind == "embed":
        return anatomy.stream[0].missing.get("resid_pre")
    return anatomy.embeds.missing.get(kind)


def no_module(path: str, model: nn.Module) -> str | None:
    """Why a model has no module of a name; None where it has."""
    try:
        model.get_submodule(path)
    except AttributeError:
        names = difflib.get_close_matches(path, [name for name, _ in model.named_modules()], n=1)
        hint = f"did you mean {names[0]!r}?" if names else "model.torch_module.named_modules() lists them"
        return f"the model has no module {path!r}; {hint}"
    return None


def _no_norm(kind: str, layer: int | None, anatomy: Anatomy) -> str | None:
    if layer is None:
        return "no norm stands before the unembedding" if anatomy.final_norm is None else None
    part, stream = anatomy.part(layer), anatomy.stream[layer]
    if kind == "norm_scale":
        if part is not None and part.norm_before is not None:
            return None
        what = "has no attention" if part is None else "has no norm before attention (norms follow it)"
        return f"layer {layer} {what}"
    if kind == "mlp_norm_scale":
        return None if stream.mlp_norm is not None else f"layer {layer} has no norm before its MLP"
    what = "attention" if kind == "attn_out_norm_scale" else "MLP"
    norm = stream.mlp_norm_after if what == "MLP" else None if part is None else part.norm_after
    return None if norm is not None else f"layer {layer} has no norm behind its {what}"
