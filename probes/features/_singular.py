"""Singular directions of a head's OV or of an MLP's weights, read on the vocabulary."""

from __future__ import annotations

import itertools

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import Component, parse_head
from interp.decompose.embeddings import effective_embedding
from interp.errors import NotApplicable
from interp.model import Model
from interp.results.stats import benjamini_hochberg
from interp.sites import Site
from interp.tokens.texts import token_texts


def singular_tokens(
    model: Model, component: str, *, k: int = 5, top: int = 8, n_random: int = 100, seed: int = 0
) -> pd.DataFrame:
    """Tokens that the k largest singular directions write for, and are read from: z = projection / its sd.

    W_V W_O = U S V^T for a head, W_out = U S V^T for an MLP. A row of V^T goes through the final norm's gain and the
    unembedding ("writes"); a column of U of a head is met by the embeddings, through the norm that the head reads with
    ("reads"; an MLP reads no tokens through W_out). Projections are centred over the vocabulary and divided by their
    standard deviation; `value` is the root mean square of the `top` largest. A singular direction has no sign, so both
    ends are shown, the one with the larger value first, and the two sides of one direction keep one sign: what is read
    there raises what is written. Reference: Millidge & Black 2022, "The singular value decompositions of transformer
    weight matrices are highly interpretable".

    Random directions have large projections too, and words of one kind lie together in any embedding: the null is the
    value of random directions of the stream, read in the same way, and p their share that reaches it.

    Args:
        model: any backend with its weights at hand.
        component: "L3H5" or "M3".
        k: singular directions.
        top: tokens of each end.
        n_random: random directions.
        seed: of them.

    Returns:
        Rows with component, direction (from 0), singular_value, share (of the squared singular values), side, sign,
        tokens (ids), texts, value, null, p and q.

    Raises:
        SiteError: no such component.
        NotApplicable: an MLP without one matrix to the stream, or logits that are not one per token.
    """
    if model.info.n_logits is not None:
        raise NotApplicable(f"{model.info.name}: logits are not one per token, so directions have no tokens to name")
    weights, place = model.weights(), Component.parse(component)
    directions: dict[str, Tensor] = {}
    embedding = None
    if place.kind == "mlp" and place.layer is not None:
        _, s, vh = torch.linalg.svd(_mlp_matrix(model, place.layer), full_matrices=False)
    else:
        layer, head = parse_head(component)
        model.info.layers_of(Site("z", layer, head=head))
        u, s, vh = weights.ov(layer, head, fold_norm=True).svd()
        embedding = effective_embedding(model, variant="mlp" if layer else "embed")
        directions["reads"] = u.mT[:k]
    directions["writes"] = vh[:k]
    noise = torch.randn(n_random, vh.shape[1], generator=torch.Generator().manual_seed(seed))
    rows = []
    for side, own in directions.items():

        def projections(x: Tensor, side: str = side) -> Tensor:
            if side == "reads" and embedding is not None:
                return x @ embedding.to(x).mT
            return weights.unembed(x, fold_norm=True)

        null = _ends(_standard(projections(noise.to(vh))), top)[0].flatten().numpy()
        values, ids = _ends(_standard(projections(own)), top)
        for i, end in itertools.product(range(len(own)), (0, 1)):
            tokens, value = ids[end, i].tolist(), float(values[end, i])
            rows.append(
                {
                    "component": component,
                    "direction": i,
                    "singular_value": float(s[i]),
                    "share": float(s[i] ** 2 / s.square().sum()),
                    "side": side,
                    "sign": (1, -1)[end],
                    "tokens": tokens,
                    "texts": token_texts(tokens, model.tokenizer),
                    "value": value,
                    "null": float(null.mean()),
                    "p": float((1 + (null >= value).sum()) / (1 + len(null))),
                }
            )
    table = pd.DataFrame(rows)
    table["q"] = benjamini_hochberg(table["p"].to_numpy())
    strength = -table.groupby(["direction", "sign"])["value"].transform("max")
    order = table.assign(strength=strength).sort_values(["direction", "strength", "sign", "side"]).index
    return table.loc[order].reset_index(drop=True)


def _mlp_matrix(model: Model, layer: int) -> Float[Tensor, "neuron d_model"]:
    model.info.layers_of(Site("mlp_out", layer))
    writes = model.writes(layer)
    if writes.mlp is None:
        raise NotApplicable(
            f"M{layer}: {writes.missing.get('mlp_post', 'no single matrix from neurons to the stream')}"
        )
    site = Site("mlp_post", layer)
    width = int(model.run([[0]], capture=[site], stop=layer).acts[site].shape[-1])
    return writes.mlp.matrix(width)


def _standard(x: Float[Tensor, "direction token"]) -> Float[Tensor, "direction token"]:
    """Centred over tokens, in standard deviations."""
    x = (x - x.mean(1, keepdim=True)).float().cpu()
    return x / x.std(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _ends(x: Float[Tensor, "direction token"], top: int) -> tuple[Tensor, Tensor]:
    """Root mean square of the `top` largest, [end direction], and their tokens: of x, then of -x."""
    both = torch.stack([x, -x]).topk(min(top, x.shape[1]), dim=-1)
    return both.values.clamp(min=0).square().mean(-1).sqrt(), both.indices
