"""The component that a patched or scored activation belongs to."""

from __future__ import annotations

from interp.components import attn_name, head_name, kv_head_name, mlp_name, stream_name
from interp.sites import PER_HEAD, Site


def component_of(site: Site, *, group: int) -> str:
    """Name of a site's component: `L3H5` for q and z, `L3KV1` for k and v that `group` query heads share.

    `M3` for what enters, is inside or leaves an MLP, `A3` for attention as a whole, `L3` for the stream.
    """
    layer = site.first
    assert layer is not None  # what is patched or scored stands at a layer
    if site.kind in ("k", "v") and site.head is not None:
        return kv_head_name(layer, site.head, group=group)
    if site.head is not None:
        return head_name(layer, site.head)
    if site.kind in (*PER_HEAD, "attn_out"):
        return attn_name(layer)
    return mlp_name(layer) if site.kind.startswith("mlp_") else stream_name(layer)
