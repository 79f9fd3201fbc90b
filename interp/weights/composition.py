"""Composition scores: how strongly a head reads what an earlier head writes, through its Q, K or V."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import head_name
from interp.errors import SiteError, nearest
from interp.shapes import brief
from interp.weights.factored import FactoredMatrix
from interp.weights.weights import Weights

if TYPE_CHECKING:
    import plotly.graph_objects as go

HOW = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Composition:
    """Scores of every pair of heads, [layer head layer head]: writer first, reader second; NaN unless it comes later.

    Attributes:
        score: |M_w M_r|_F / (|M_w|_F |M_r|_F), in [0, 1].
        baseline: root mean square of the score were the writer's output turned at random against the reader's input:
            1 / sqrt(d_model), whatever their spectra.
        z: (score^2 - baseline^2) over the standard deviation of score^2 under such turns, exact.
        layers: layer of each row.
        how: what the reader composes through: "q", "k" or "v".
    """

    score: Float[Tensor, "writer head reader head"]
    baseline: float
    z: Float[Tensor, "writer head reader head"]
    layers: tuple[int, ...]
    how: str = field(default="", repr=False)

    __repr__ = brief

    def plot(self) -> go.Figure:
        """Score less its baseline for every writer (down) and later reader (across): a square map."""
        from interp.plots import pair_map
        from interp.plots.titles import titled

        names = [head_name(layer, head) for layer in self.layers for head in range(self.score.shape[1])]
        above = (self.score - self.baseline).reshape(len(names), len(names)).double().numpy()
        figure = pair_map(above, names, unit="score", down="writer", across="reader")
        figure.update_traces(colorbar_title_text="score above null")
        return titled(figure, [f"composition ({self.how})", f"null {self.baseline:.3g}: turned at random"])


def composition(weights: Weights, how: str, *, offset: int = 0, fold_norm: bool = True) -> Composition:
    """|M_w M_r|_F / (|M_w|_F |M_r|_F), M_w = OV of the earlier head, M_r = QK, its transpose, or OV of the later one.

    High: the later head's queries ("q"), keys ("k") or values ("v") depend on the directions that the earlier one
    writes to, more than chance. It does not say that the writer is active where the reader looks, nor what passes
    between. Computed from d_head x d_head products; norms folded in, QK at a rotary offset.

    Reference: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", composition; they subtract the
    mean score of random matrices, we give the exact mean and spread of the square under random rotation.

    Raises:
        SiteError: `how` is none of q, k, v.
    """
    if how not in HOW:
        raise SiteError(f"unknown composition {how!r}; {nearest(how, HOW)}")
    layers, n_heads = weights.layers, len(weights[weights.layers[0]].w_q)
    score = torch.full((len(layers), n_heads, len(layers), n_heads), torch.nan)
    z = torch.full_like(score, torch.nan)
    writers: list[_Side] = []
    readers: list[_Side] = []
    for layer in layers:
        ov = weights.ov(layer, fold_norm=fold_norm)
        qk = ov if how == "v" else weights.qk(layer, offset=offset, fold_norm=fold_norm)
        writers.append(_side(ov))
        readers.append(_side(qk if how == "k" else qk.T))
    for a, writer in enumerate(writers):
        for b in range(a + 1, len(layers)):
            score[a, :, b], z[a, :, b] = _pairs(writer, readers[b])
    width = writers[0].inner.shape[-1]
    return Composition(score, width**-0.5, z, layers, how)


@dataclass(frozen=True, eq=False)
class _Side:
    """Matrices A B of a layer's heads as R B with A = Q R, which gives the same norms of products A B C.

    Also their Frobenius norms, and sum s^4 / (sum s^2)^2: one over the number of directions that carry them.
    """

    inner: Float[Tensor, "head rank d_model"]
    size: Float[Tensor, " head"]
    purity: Float[Tensor, " head"]


def _side(m: FactoredMatrix) -> _Side:
    inner = torch.linalg.qr(m.left, mode="r").R @ m.right
    gram = inner @ inner.mT
    power = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return _Side(inner, power.sqrt(), gram.square().sum((-2, -1)) / power.square())


def _pairs(
    writer: _Side, reader: _Side
) -> tuple[Float[Tensor, "writer_head reader_head"], Float[Tensor, "writer_head reader_head"]]:
    """Scores and z of every writer with every reader."""
    norms = torch.stack([torch.linalg.matrix_norm(w @ reader.inner.mT) for w in writer.inner])
    score = (norms / (writer.size[:, None] * reader.size)).clamp(max=1.0)
    d = writer.inner.shape[-1]
    return score, (score.square() - 1 / d) / turn_spread(writer.purity[:, None], reader.purity, d)


def turn_spread(a: Float[Tensor, "*pairs"], b: Float[Tensor, "*pairs2"], d: int) -> Float[Tensor, "*all"]:
    """Standard deviation of tr(A O B O^T) over rotations O of d dimensions, for A, B of trace one and tr A^2 = a, ...

    E[tr(A O B O^T)] = 1 / d and E[tr(A O B O^T)^2] = (d + 1 + 2 d a b - 2 a - 2 b) / (d (d - 1) (d + 2)).
    """
    second = (d + 1 + 2 * d * a * b - 2 * a - 2 * b) / (d * (d - 1) * (d + 2))
    return (second - d**-2).clamp(min=0).sqrt()
