"""Writes and reads of a bridge's layers: linear maps to the stream, norms from it."""

from __future__ import annotations

from interp.backends.hf.read_norms import read_norm
from interp.backends.lens.parts import PARALLEL, LensParts, resolve
from interp.weights.stream import Reads, Write, Writes


def read_writes(parts: LensParts, layer: int) -> Writes:
    """The writes of one layer; a layer whose hook points do not add up has none."""
    block = parts.blocks[layer]
    missing = {kind: why for (kind, at), why in parts.missing.items() if at == layer}
    attn, mlp = (
        _write(block, projection, after, parts.d_model) if kind not in missing else None
        for kind, projection, after in (("attn_out", "attn.o", "ln1_post"), ("mlp_post", "mlp.out", "ln2_post"))
    )
    return Writes(attn, mlp, missing)


def read_reads(parts: LensParts, layer: int) -> Reads:
    """The reads of one layer; where attention and MLP share a norm, it is both."""
    block = parts.blocks[layer]
    missing = {kind: why for (kind, at), why in parts.missing.items() if at == layer}
    parallel = missing.get("resid_mid") == PARALLEL
    norms = (resolve(block, f"{name}.original_component") for name in ("ln1", "ln2"))
    attn, mlp = (None if norm is None else read_norm(norm, parts.d_model) for norm in norms)
    return Reads(attn, attn if parallel and mlp is None else mlp, parallel, missing)


def _write(block: object, projection: str, after: str, d_model: int) -> Write | None:
    module = resolve(block, f"{projection}.original_component")
    norm = resolve(block, f"{after}.original_component")
    return None if module is None else Write(module, None if norm is None else read_norm(norm, d_model))
