"""`OV`: value and output matrices of every head, and the copying ratio that they give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BackendError, NotApplicable
from interp.shapes import brief
from interp.weights.factored import positivity


@dataclass(frozen=True, eq=False)
class OV:
    """Per-head linear maps, norms folded in (gain and LayerNorm's centring): what a head writes for what it attends to.

    A head moves a token's embedding by `x W_V W_O`; `W_V` is the matrix of its key-value group. Where layers differ in
    d_head, narrower heads are filled up with zeros.

    Attributes:
        w_v: [layer head d_model d_head]; the norm before attention is folded in, and the gain of a norm on values.
        w_o: [layer head d_head d_model]; a norm after attention, if any, is folded in.
        w_e: [d_vocab d_model]. w_u: [d_model d_vocab_out] with the final norm folded in.
        layers: layer of each row.
    """

    w_v: Float[Tensor, "layer head d_model d_head"]
    w_o: Float[Tensor, "layer head d_head d_model"]
    w_e: Float[Tensor, "d_vocab d_model"]
    w_u: Float[Tensor, "d_model d_vocab_out"]
    layers: tuple[int, ...]

    __repr__ = brief


def copying_ratio(ov: OV) -> Float[Tensor, "layer head"]:
    """Copying ratio in [-1, 1]: sum of Re(lambda) over sum of |lambda|, for the spectrum of W_E C W_V W_O C' W_U.

    C and C' are what is linear in the norm before attention and in the final norm: LayerNorm's centring of the stream
    (nothing for RMSNorm) and the gain; the same as in `Weights.full_ov`, whose `positivity()` this is. The d_vocab x
    d_vocab matrix says how much attending to token a raises the logit of token b; positive eigenvalues mean that tokens
    raise themselves (copying), negative that they lower themselves. Its nonzero eigenvalues are those of the d_head x
    d_head product W_O (C' W_U W_E C) W_V, so the big matrix is never built. The unembedding is centred over the
    vocabulary too (a shift of all logits is no copying). Embeddings are taken raw: no MLP, no position.

    Raises:
        BackendError: tokens are embedded in another width than the stream's.
        NotApplicable: logits that are not one per token.

    Reference: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", copying heads.
    """
    if ov.w_u.shape[1] != len(ov.w_e):
        raise NotApplicable(
            f"{ov.w_u.shape[1]} logits for {len(ov.w_e)} tokens: which token a logit is of is not known"
        )
    if ov.w_e.shape[1] != len(ov.w_u):
        raise BackendError(
            f"embeddings are {ov.w_e.shape[1]} wide and the stream {len(ov.w_u)}: no W_E W_V W_O W_U without what "
            "stands between; full_ov() takes an effective embedding"
        )
    centred_w_u = ov.w_u - ov.w_u.mean(1, keepdim=True)
    inner = centred_w_u @ ov.w_e  # d_model d_model
    return positivity(torch.linalg.eigvals((ov.w_o @ inner @ ov.w_v).double()))
