"""`head_writes`: norms and projections of what every head writes to the stream, at every token, never the writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.batch import Prompts
from interp.errors import TaskError
from interp.model import Model, Reducer
from interp.shapes import Float, brief
from interp.sites import Site


@dataclass(frozen=True, eq=False)
class HeadWrites:
    """What heads write, on the CPU.

    Attributes:
        layers: layers with attention, in the order of the first axis.
        norms: ||z W_O[h]|| of each head at each token.
        projections: z W_O[h] . d for each direction d.
    """

    layers: tuple[int, ...]
    norms: Float[Tensor, "layer batch pos head"]
    projections: Float[Tensor, "layer batch pos head direction"]

    __repr__ = brief


def write_norms(
    z: Float[Tensor, "*batch head d_value"], w_o: Float[Tensor, "head d_value d_model"]
) -> Float[Tensor, "*batch head"]:
    """||z W_O[h]|| = sqrt(z G_h z^T), with the Gram matrix G_h = W_O[h] W_O[h]^T; in float64.

    >>> import torch
    >>> write_norms(torch.tensor([[[3.0]]]), torch.tensor([[[0.0, 2.0]]])).tolist()
    [[6.0]]
    """
    w, x = w_o.double(), z.double()
    turned = torch.einsum("...hv,hvw->...hw", x, w @ w.mT)
    return (turned * x).sum(-1).clamp(min=0.0).sqrt()


def write_projections(
    z: Float[Tensor, "*batch head d_value"],
    w_o: Float[Tensor, "head d_value d_model"],
    directions: Float[Tensor, "direction d_model"],
) -> Float[Tensor, "*batch head direction"]:
    """z W_O[h] . d for each direction d, as z . (W_O[h] d); in float64."""
    return torch.einsum("...hv,hvk->...hk", z.double(), w_o.double() @ directions.double().to(w_o.device).mT)


def head_writes(
    model: Model, tokens: Prompts, directions: Float[Tensor, "direction d_model"] | None = None
) -> HeadWrites:
    """Norms of the writes of all heads and their projections on a few directions, in one pass without logits.

    Memory is that of the answers and of one layer's z: the writes, [batch pos head d_model], are never formed. Of a
    model that norms what attention writes, the gain of that norm is part of W_O and its division is not. The bias of
    the output projection is no head's. Padding has numbers like any token.

    Raises:
        TaskError: directions that are not [direction d_model].

    >>> import interp, torch
    >>> from interp.decompose import head_writes
    >>> head_writes(interp.load("zoo:planted-induction"), torch.arange(1, 6)).norms.shape
    torch.Size([2, 1, 5, 8])
    """
    info = model.info
    at = torch.zeros(0, info.d_model) if directions is None else directions
    if at.ndim != 2 or at.shape[1] != info.d_model:  # noqa: PLR2004
        raise TaskError(f"directions have shape {tuple(at.shape)}; expected [direction, {info.d_model}]")
    layers, weights = info.attention_layers, model.weights()

    def read(layer: int):
        w_o = weights[layer].folded().w_o

        def reduce(z: Tensor) -> Tensor:
            own = w_o.to(z.device)
            return torch.cat([write_norms(z, own)[..., None], write_projections(z, own, at)], dim=-1).float().cpu()

        return reduce

    sites: dict[Site | str, Reducer | None] = {Site("z", layer): read(layer) for layer in layers}
    run = model.run(tokens, capture=sites, stop=max(layers))
    both = torch.stack([run[site] for site in sites])
    return HeadWrites(layers, both[..., 0], both[..., 1:])
