"""`Writes` of a layer: attention and MLP as one linear map each, of projection, norm behind it and multiplier."""

from __future__ import annotations

import torch
from torch import nn

from interp.backends.hf.anatomy import Anatomy
from interp.backends.hf.read_norms import forgets_scale, read_norm
from interp.backends.hf.shards import MATRICES
from interp.errors import BackendError
from interp.weights.stream import Write, Writes


def read_writes(anatomy: Anatomy, layer: int, d_model: int) -> Writes:
    """The writes of one layer of a transformers model.

    Raises:
        BackendError: the model is spread over processes.
    """
    if anatomy.shards is not None:
        raise BackendError(f"layer {layer}: {MATRICES}")
    part, stream = anatomy.part(layer), anatomy.stream[layer]
    attn = mlp = None
    if part is not None and part.direct and not {"attn_out", "head_out"} & stream.missing.keys():
        after = part.norm_after if part.norm_after is stream.attn_out else None
        attn = Write(part.output, None if after is None else read_norm(after, d_model), stream.attn_scale)
    if stream.mlp_post is not None and stream.mlp_out is not None:
        norm = read_norm(stream.mlp_out, d_model) if _is_norm(stream.mlp_out, d_model) else None
        mlp = Write(stream.mlp_post, norm, stream.mlp_scale)
    if stream.beside:
        return Writes(attn, mlp, stream.missing, stream.further)
    if stream.further:  # not a sum of these: the layer is one piece
        return Writes(None, None, {**dict.fromkeys(("attn_out", "mlp_out"), stream.further), **stream.missing})
    return Writes(attn, mlp, stream.missing)


def _is_norm(module: nn.Module, width: int) -> bool:
    """Whether a module is a norm over the stream's axis: a leaf with a gain and a bias at most, or without either."""
    own = list(module.parameters())
    if next(module.children(), None) is not None:
        return False
    if own:
        return all(p.shape == (width,) for p in own)
    return forgets_scale(module, torch.randn(1, width, generator=torch.Generator().manual_seed(6)))
