"""What a head does by its weights alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.model import OV


def copying_ratio(ov: OV) -> Float[Tensor, "layer head"]:
    """Copying ratio in [-1, 1]: sum of Re(lambda) over sum of |lambda|, for the spectrum of W_E W_V W_O W_U.

    That d_vocab x d_vocab matrix says how much attending to token a raises the logit of token b; positive eigenvalues
    mean that tokens raise themselves (copying), negative that they lower themselves. Its nonzero eigenvalues are those
    of the d_head x d_head product W_O (W_U W_E) W_V, so the big matrix is never built. The unembedding is centred over
    the vocabulary (a shift of all logits is no copying). Embeddings are taken raw: no MLP, no position.

    Reference: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", copying heads.
    """
    centred = ov.w_u - ov.w_u.mean(1, keepdim=True)
    inner = centred @ ov.w_e  # d_model d_model
    product = ov.w_o @ inner @ ov.w_v  # layer head d_head d_head
    spectrum = torch.linalg.eigvals(product.double())
    size = spectrum.abs().sum(-1)
    ratio = spectrum.real.sum(-1) / size.clamp(min=torch.finfo(torch.float64).tiny)
    return ratio.float()
