"""Logits that a feature pushes by the direct path, and what random directions of its length push."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.dictionary import Dictionaries, Dictionary, member_of
from interp.errors import NotApplicable
from interp.model import Model
from interp.sites import PER_HEAD, Site

STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out")
"""Kinds whose vectors are of the residual stream."""
AT_ONCE = 16
"""Random directions unembedded at once."""


@torch.no_grad()
def pushed_logits(
    model: Model, dictionary: Dictionary | Dictionaries, feature: int, *, member: int = 0
) -> Float[Tensor, " d_vocab"]:
    """d W_U for the feature's decoder direction d, with the final norm's gain, less the mean over the vocabulary.

    What one unit of the feature adds to each logit directly, but for the divisors of norms on the way. Directions of
    heads' outputs and of neurons are taken to the stream by W_O and W_out.

    Raises:
        NotApplicable: the dictionary writes where nothing goes to the stream by a matrix, or the model has no logits.
        SchemaError: a member out of range.
    """
    d = member_of(dictionary, member)
    return _logits(model, _site(model, d), d.directions(feature)[None])[0]


@torch.no_grad()
def random_pushes(
    model: Model, dictionary: Dictionary | Dictionaries, feature: int, *, member: int = 0, n: int = 100, seed: int = 0
) -> Float[Tensor, "draw 2"]:
    """Least and largest entry of `pushed_logits` of random directions as long as the feature's: its control.

    Directions are isotropic where the dictionary writes. Over a vocabulary of thousands the largest entry of any
    direction is some standard deviations above 0; a feature whose largest is no larger names no token.

    Args:
        model: that the dictionary is of.
        dictionary: whose feature, or several.
        feature: its number.
        member: of a set of dictionaries, by number.
        n: directions drawn.
        seed: of the draw.

    Raises:
        NotApplicable, SchemaError: as `pushed_logits`.
    """
    d = member_of(dictionary, member)
    site, own = _site(model, d), d.directions(feature)
    drawn = torch.randn(n, len(own), generator=torch.Generator().manual_seed(seed)).to(own)
    drawn *= own.norm() / drawn.norm(dim=-1, keepdim=True)
    ends = []
    for part in drawn.split(AT_ONCE):
        logits = _logits(model, site, part)
        ends.append(torch.stack([logits.amin(-1), logits.amax(-1)], -1).cpu())
    return torch.cat(ends)


def _site(model: Model, d: Dictionary) -> Site:
    site = d.site_out
    if site is None or site.first is None and site.kind not in STREAM:
        raise NotApplicable(f"{d!r} does not say where it writes")
    if model.info.n_logits == 0:
        raise NotApplicable(f"{model.info.name} gives no logits")
    return site


def _logits(model: Model, site: Site, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n d_vocab"]:
    """What directions at a site add to the logits, less the mean of each."""
    if site.kind not in STREAM:
        assert site.first is not None
        writes = model.writes(site.first)
        write = {"z": writes.attn, "mlp_post": writes.mlp}.get(site.kind)
        if write is None:
            raise NotApplicable(f"{site}: what is written there comes to the residual stream by no matrix")
        if site.kind in PER_HEAD and site.head is not None:
            width = directions.shape[-1]
            wide = directions.new_zeros(len(directions), model.info.n_heads * width)
            wide[:, site.head * width : (site.head + 1) * width] = directions
            directions = wide
        matrix = write.matrix(directions.shape[-1])
        directions = directions.to(matrix) @ matrix
    logits = model.weights().unembed(directions.to(model.device).float(), fold_norm=True)
    return logits - logits.mean(-1, keepdim=True)
