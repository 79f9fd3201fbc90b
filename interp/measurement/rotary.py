"""Rotary planes of a model's heads: which there are, and what each adds to a score at each distance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.edits import RotaryPlanes, read_planes
from interp.errors import BackendError, NotApplicable, SiteError
from interp.model import Model
from interp.numerics import wide
from interp.sites import Site


def rotary_planes(model: Model) -> dict[int, RotaryPlanes]:
    """Planes of every layer that turns queries and keys, fastest first.

    Raises:
        NotApplicable: no layer does, or what positions do cannot be read as planes; says why.
    """
    found, why = {}, "it has no layer with attention"
    try:
        weights = model.weights()
        limit, half = weights.source.context, weights.source.half
        for layer in model.info.attention_layers:
            try:
                where = f"layer {layer}"
                found[layer] = read_planes(partial(weights.rotation, layer), limit=limit, where=where, half=half)
            except SiteError as error:
                why = str(error)
    except BackendError as error:
        raise NotApplicable(f"{model.info.name}: its rotary planes cannot be read: {error}") from error
    if not found:
        raise NotApplicable(f"{model.info.name} has no rotary planes: {why}")
    return found


@dataclass(frozen=True, eq=False)
class PlaneScores:
    """Scores of one layer, taken apart by rotary plane; the last part is of channels that do not turn.

    Attributes:
        query, key: after rotary, [prompt pos head d_head], keys shared within groups.
        planes: of the layer.
        scale: of its scores.
    """

    query: Float[Tensor, "prompt pos head d_head"]
    key: Float[Tensor, "prompt pos head d_head"]
    planes: RotaryPlanes
    scale: float

    @classmethod
    def of(cls, model: Model, batch: Batch, layer: int, planes: RotaryPlanes) -> PlaneScores:
        """Of one pass of unpadded prompts."""
        q, k = Site("q", layer), Site("k", layer)
        with torch.no_grad():
            acts = model.run(batch, capture=[q, k]).acts
        key = wide(acts[k]).cpu()
        group = acts[q].shape[2] // key.shape[2]
        scale = float(model.weights()[layer].scale)
        return cls(wide(acts[q]).cpu(), key.repeat_interleave(group, 2), planes, scale)

    def parts(self, distance: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "prompt row head part"]:
        """scale * (q_a k_a + q_b k_b) of each plane (a, b), and what is left, of rows i with the key i - distance.

        Their sum is the score, before any soft-cap.
        """
        product = self.scale * self.query[:, rows] * self.key[:, rows - distance]
        turning = product[..., self.planes.first] + product[..., self.planes.second]
        rest = torch.ones(product.shape[-1], dtype=torch.bool)
        rest[self.planes.first] = rest[self.planes.second] = False
        return torch.cat([turning, product[..., rest].sum(-1, keepdim=True)], -1)
