"""`Reads` of a layer: the norms before its attention and its MLP, and which stream the MLP takes."""

from __future__ import annotations

from interp.backends.hf.anatomy import Anatomy
from interp.backends.hf.read_norms import read_norm
from interp.backends.hf.shards import MATRICES
from interp.errors import BackendError
from interp.weights.stream import Reads


def read_reads(anatomy: Anatomy, layer: int, d_model: int) -> Reads:
    """The reads of one layer of a transformers model.

    Raises:
        BackendError: the model is spread over processes.
    """
    if anatomy.shards is not None:
        raise BackendError(f"layer {layer}: {MATRICES}")
    part, stream = anatomy.part(layer), anatomy.stream[layer]
    before = None if part is None or part.stray else part.norm_before
    attn, mlp = (None if norm is None else read_norm(norm, d_model) for norm in (before, stream.mlp_norm))
    parallel = "resid_mid" in stream.missing and "mlp_out" not in stream.missing
    missing = stream.missing
    if part is not None and part.stray:
        missing = {**dict.fromkeys(("attn_out", "head_out"), part.stray), **missing}
    if part is not None and not part.direct:
        missing = {
            "head_out": f"layer {layer} changes z before its output projection, so heads do not write z W_O",
            **missing,
        }
    if stream.further:  # not a sum of writes: nothing has edges of its own
        missing = {**dict.fromkeys(("attn_out", "head_out", "mlp_out"), stream.further), **missing}
    return Reads(attn, mlp, parallel, missing, stream.mlp_whole, stream.mlp_scale)
