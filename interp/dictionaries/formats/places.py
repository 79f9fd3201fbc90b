"""Sites as formats name them: hooks of TransformerLens, modules of transformers, names of folders."""

from __future__ import annotations

import re

from interp.errors import ModelLoadError, SiteError
from interp.sites import Site

NORMED = {"ln2.hook_normalized": "mlp.hook_in", "hook_mlp_in": "hook_resid_mid"}
"""Hooks that are a site by another name: behind the MLP's norm, where its gain is not folded away; and before it."""
MODULE = re.compile(r"(?:^|\.)(?:layers|h|blocks)[._](?P<layer>\d+)(?:\.(?P<rest>[\w.]+))?$")
OUTPUTS = {"mlp": "mlp_out", "attn": "attn_out", "attention": "attn_out", "self_attn": "attn_out"}
"""Module of a layer -> the site that is its output."""
HOOK_POINTS = {
    "output": "resid_post",
    "input": "resid_pre",
    "self_attn.o_proj.input": "z",
    "pre_feedforward_layernorm.output": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
    "post_attention_layernorm.output": "attn_out",
}
"""Module and port within a layer, as Gemma Scope 2 writes them -> site."""


def hook_site(name: str, where: object, *, head: int | None = None) -> Site:
    """Site of a TransformerLens hook, or of our own grammar.

    Raises:
        ModelLoadError: no site.
    """
    for hook, same in NORMED.items():
        name = name.replace(hook, same)
    try:
        site = Site.parse(name)
        return site if head is None else Site(site.kind, site.first, site.last, head)
    except SiteError as error:
        raise ModelLoadError(f"{where} names the site {name!r}: {error}; give site=") from error


def module_output(name: str) -> tuple[int | None, str] | None:
    """(layer, kind) of the output of a transformers module by its path; None for one that is no site."""
    if name.rsplit(".", maxsplit=1)[-1] in ("embed_tokens", "wte", "embed_in"):
        return None, "embed"
    match = MODULE.search(name)
    if match is None:
        return None
    kind = "resid_post" if match["rest"] is None else OUTPUTS.get(match["rest"])
    return None if kind is None else (int(match["layer"]), kind)


def hook_point(name: str, where: object) -> Site:
    """Site of a module's port: model.layers.3.output.

    Raises:
        ModelLoadError: no site.
    """
    match = MODULE.search(name)
    kind = None if match is None else HOOK_POINTS.get(match["rest"] or "")
    if match is None or kind is None:
        raise ModelLoadError(f"{where} names the site {name!r}, which is none that is known here; give site=")
    return Site(kind, int(match["layer"]))
