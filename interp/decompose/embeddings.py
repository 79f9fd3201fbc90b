"""Effective embeddings: single tokens through the first layers, as later heads read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.edits import Ablate
from interp.errors import SiteError, TaskError, nearest
from interp.model import Model
from interp.sites import Site

VARIANTS = ("full", "mlp", "embed")
TOKENS = 1024  # prompts per forward pass


def effective_embedding(
    model: Model,
    *,
    layer: int = 0,
    tokens: Sequence[int] | Int[Tensor, " token"] | None = None,
    variant: str = "mlp",
    bos: int | None = None,
    per_pass: int = TOKENS,
) -> Float[Tensor, "token d_model"]:
    """resid_post of a layer for each token alone: embed + MLP0(norm(embed)) in the variant "mlp" at layer 0.

    Variants: "full", the model as it is; "mlp", with what attention adds set to zero up to and including the layer;
    "embed", what enters layer 0. Each token is a prompt of its own: at position 0, or with `bos` (a token id) at
    position 1 behind it. Alone at position 0 a token may be treated as the start of a text, which in many trained
    models gives it the huge norm of an attention sink in "full"; "mlp" and a `bos` avoid that. Learned positions are
    those of the place where it stands. Successor heads (Gould et al. 2023, arXiv 2312.09230) read this, not W_E.

    Raises:
        SiteError: an unknown variant, or a layer that does not exist.
        TaskError: no tokens, or ids outside the vocabulary.
    """
    if variant not in VARIANTS:
        raise SiteError(f"unknown variant {variant!r}; {nearest(variant, VARIANTS)}")
    if not 0 <= layer < model.info.n_layers:
        raise SiteError(f"layer {layer} is out of range; the model has {model.info.n_layers} layers")
    ids = torch.arange(model.info.d_vocab) if tokens is None else torch.as_tensor(tokens, dtype=torch.long)
    if len(ids) == 0:
        raise TaskError("no tokens to embed; leave `tokens` out for the whole vocabulary")
    site = Site("embed") if variant == "embed" else Site("resid_post", layer)
    attn_sites = [Site("attn_out", a) for a in model.info.attention_layers if a <= layer and variant == "mlp"]
    edits = [Ablate(s, "zero") for s in attn_sites]
    parts = []
    for part in ids.split(per_pass):
        rows = part[:, None] if bos is None else torch.stack([torch.full_like(part, bos), part], dim=1)
        stop = 0 if variant == "embed" else layer
        run = model.run(Batch.of(rows), capture={site: lambda x: x[:, -1].float().cpu()}, edits=edits, stop=stop)
        parts.append(run[site])
    return torch.cat(parts)
