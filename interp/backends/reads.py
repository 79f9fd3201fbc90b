"""How a layer reads the stream: the norms before its attention and its MLP, and which stream the MLP takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from interp.backends.anatomy import Anatomy
from interp.backends.norms import Norm, read_norm
from interp.backends.shards import MATRICES
from interp.errors import BackendError


@dataclass(frozen=True, eq=False)
class Reads:
    """One layer's two reads.

    Attributes:
        attn, mlp: the norm in between; None where the stream is read as it is.
        parallel: both read the stream that enters the layer; otherwise the MLP reads what attention has added to.
        missing: why a kind of site does not exist here.
    """

    attn: Norm | None
    mlp: Norm | None
    parallel: bool
    missing: Mapping[str, str]


def read_reads(anatomy: Anatomy, layer: int, d_model: int) -> Reads:
    """The reads of one layer of a transformers model.

    Raises:
        BackendError: the model is spread over processes.
    """
    if anatomy.shards is not None:
        raise BackendError(f"layer {layer}: {MATRICES}")
    part, stream = anatomy.part(layer), anatomy.stream[layer]
    before = None if part is None else part.norm_before
    attn, mlp = (None if norm is None else read_norm(norm, d_model) for norm in (before, stream.mlp_norm))
    return Reads(attn, mlp, "resid_mid" in stream.missing and "mlp_out" not in stream.missing, stream.missing)
