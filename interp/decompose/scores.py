"""Attention scores taken apart: which component of the query's stream meets which component of the key's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.components import parse_head
from interp.decompose.edit_maps import EditMap
from interp.decompose.layer_terms import LayerTerms
from interp.decompose.stream import allowed, decompose
from interp.decompose.stream_run import position_columns, run_stream
from interp.decompose.terms import Term, place
from interp.errors import BackendError, SiteError
from interp.model import Model
from interp.shapes import brief
from interp.sites import Site
from interp.weights.norms import HeadNorm, Norm
from interp.weights.weights import Weights

if TYPE_CHECKING:
    import plotly.graph_objects as go

POSITIONS = 64  # whose turns are read off at one time


@dataclass(frozen=True, eq=False)
class ScoreParts:
    """Scores of one head from one query, by component of the query's stream and of the key's, on the CPU.

    Attributes:
        head: `L3H5`.
        terms: of both sides, as in `decompose`; last "bias", what does not come from the stream.
        values: before the softmax and a soft-cap; over both components they sum to `scores`.
        scores: as the model computes them.
        columns: of the keys in the batch. mask: keys that are real tokens and not after the query.
        error: |sum - score| over the prompt's largest score, the largest over prompts.
        model: its name.
    """

    head: str
    terms: tuple[Term, ...]
    values: Float[Tensor, "query_term key_term batch key"]
    scores: Float[Tensor, "batch key"]
    columns: Int[Tensor, "batch key"]
    mask: Bool[Tensor, "batch key"]
    error: float
    model: str = field(default="", repr=False)

    __repr__ = brief

    def __getitem__(self, names: tuple[str, str]) -> Float[Tensor, "batch key"]:
        """What one component of the query gets from one of the key: `parts["embed", "L0H3"]`."""
        query, key = names
        return self.values[place(query, self.terms), place(key, self.terms)]

    def table(self) -> pd.DataFrame:
        """One row per pair of components, prompt and key (its column in the batch)."""
        names = [term.name for term in self.terms]
        rows = []
        for b, j in self.mask.nonzero().tolist():
            table = pd.DataFrame(self.values[:, :, b, j].numpy(), index=names, columns=names).stack().reset_index()
            table.columns = ["query_component", "key_component", "value"]
            rows.append(table.assign(prompt=b, key=int(self.columns[b, j])))
        return pd.concat(rows, ignore_index=True)

    def top(self, k: int = 10) -> pd.DataFrame:
        """Pairs of components by the size of their mean over prompts and keys, largest first, with their sign."""
        mean = self.table().groupby(["query_component", "key_component"], sort=False)["value"].mean()
        return mean.sort_values(key=abs, ascending=False, kind="stable").head(k).reset_index()

    def plot(self) -> go.Figure:
        """What the query's components get from the key's, mean over prompts and keys: a square map."""
        from interp.plots import pair_map
        from interp.plots.titles import titled

        mean = self.values[..., self.mask].double().mean(-1).numpy()
        names = [term.name for term in self.terms]
        figure = pair_map(mean, names, unit="score", down="component of the query", across="component of the key")
        return titled(figure, [self.model, f"parts of the score of {self.head}", f"{int(self.mask.sum())} keys"])


@torch.no_grad()
def score_parts(
    model: Model,
    tokens: Prompts,
    head: str,
    *,
    query: int = -1,
    key: int | None = None,
    heads: bool = True,
    tolerance: float | None = None,
) -> ScoreParts:
    """s_ij = sum over a, b of scale q_i(a) . k_j(b): a score by component a of the query's stream and b of the key's.

    q(a) = N(n(x_a) W_Q) R, with what each norm divides by held at its value for the whole stream, and R the turn of the
    position; key-value heads are those of the head's group. What norms and projections add is the component "bias". The
    split is of the score, not of the pattern: the softmax compares keys, so that what is the same for all keys of a
    query (its own bias against the keys') moves nothing.

    Args:
        model: any backend.
        tokens: prompts.
        head: `L3H5`.
        query: position of a real token, counted from the prompt's start or (negative) its end.
        key: one position, counted alike; None for all columns.
        heads: split attention of earlier layers into heads; without, one component a layer.
        tolerance: of the error relative to the largest score; 1e-5 for float32, eight units of rounding below.

    Raises:
        SiteError: no such head, or a position out of range.
        BackendError: a sum that misses the score, or scores that are no product of turned queries and keys.
    """
    layer, index = head_place(model, head)
    batch = model.batch(tokens)
    columns = [position_columns(batch, p).cpu() for p in (query, key)]
    terms, stream = entering_stream(model, batch, layer, heads=heads)
    q, k = sides(model, batch, (layer, index), [_at(stream, at) for at in columns], columns)
    values = model.weights()[layer].scale * torch.einsum("abd,cbjd->acbj", q[:, :, 0], k)
    scores = own_scores(model, batch, (layer, index), columns)
    mask = batch.mask.cpu().gather(1, columns[1])
    mask = mask & (columns[1] <= columns[0]) if model.info.causal else mask
    size = (scores.abs() * mask).amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    error = float((((values.sum((0, 1)) - scores).abs() * mask).amax(1) / size).max())
    check_sum(model, head, error, tolerance)
    name = model.info.name
    return ScoreParts(head, tuple(terms), values.float(), scores.float(), columns[1], mask, error, name)


def head_place(model: Model, head: str) -> tuple[int, int]:
    """Layer and index of a head that the model has.

    Raises:
        SiteError: no such head.
    """
    layer, index = parse_head(head)
    if layer not in model.info.attention_layers or index >= model.info.n_heads:
        shape = f"heads are 0 to {model.info.n_heads - 1} in layers {model.info.attention_layers}"
        raise SiteError(f"{head} is out of range; {shape}")
    return layer, index


def check_sum(model: Model, head: str, error: float, tolerance: float | None) -> None:
    """Refuse parts of scores that miss them.

    Raises:
        BackendError: by how much.
    """
    limit = allowed(model) if tolerance is None else tolerance
    if not error <= limit:
        raise BackendError(f"{head}: parts miss the scores by {error:.1e} of the largest, over {limit:.0e}")


def sides(
    model: Model,
    batch: Batch,
    head: tuple[int, int],
    parts: Sequence[Tensor],
    columns: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Queries and keys of a head [term batch pos d_head] by part of the stream; the last takes what no part gives.

    `parts` are those at the queries and at the keys [term batch pos d_model], `columns` where these stand [batch pos].
    """
    (layer, index), weights = head, model.weights()
    w = weights[layer]
    turns = [_turns(weights, layer, batch.positions.cpu().gather(1, at))[i] for i, at in enumerate(columns)]
    q = _side(parts[0], w.norm, w.w_q, w.b_q, w.q_norm, turns[0])[:, :, :, index]
    k = _side(parts[1], w.norm, w.w_k, w.b_k, w.k_norm, turns[1])[:, :, :, index // w.group]
    return q, k


def own_scores(
    model: Model, batch: Batch, head: tuple[int, int], columns: Sequence[Tensor]
) -> Float[Tensor, "batch key"]:
    """The model's own scale q . k of the first query and of each key, in float64."""
    (layer, index), w = head, model.weights()[head[0]]
    run = model.run(batch, capture=[Site("q", layer), Site("k", layer)], stop=layer)
    own = [_at(run.acts[Site(kind, layer)].cpu()[None], at)[0] for kind, at in zip("qk", columns, strict=True)]
    own_q, own_k = own[0][:, 0, index].double(), own[1][:, :, index // w.group].double()
    return w.scale * torch.einsum("bd,bjd->bj", own_q, own_k)


def entering_stream(
    model: Model, batch: Batch, layer: int, *, heads: bool
) -> tuple[list[Term], Float[Tensor, "term batch pos d_model"]]:
    """Components of the stream that enters a layer, at all positions, in float64, and an empty one for biases."""
    if layer == 0:
        run = run_stream(model, batch, layer=0, position=None, heads=False)
        terms, parts = [], []
        for step in LayerTerms(run, None, heads=False).embedding():
            if isinstance(step, EditMap):
                parts = [step.linear(x) for x in parts]
            else:
                terms, parts = [*terms, *step[0]], [*parts, step[1]]
        vectors = torch.cat(parts)
    else:
        whole = decompose(model, batch, layer=layer - 1, position=None, heads=heads)
        terms, vectors = list(whole.terms), whole.vectors
    nothing = torch.zeros_like(vectors[:1])
    return [*terms, Term("bias", "bias")], torch.cat([vectors, nothing]).cpu().double()


def _at(x: Float[Tensor, "term batch pos *rest"], columns: Int[Tensor, "batch at"]) -> Tensor:
    """Some columns of each prompt."""
    return x[:, torch.arange(len(columns))[:, None], columns]


def _turns(weights: Weights, layer: int, positions: Int[Tensor, "batch at"]) -> tuple[Tensor, Tensor]:
    """Turns of queries and keys at each position, [batch at d_head d_head]."""
    each, index = positions.unique(return_inverse=True)
    chunks: Sequence[tuple[Tensor, Tensor]] = [
        weights.source.turns(layer, some.tolist()) for some in each.split(POSITIONS)
    ]
    q, k = (torch.cat(x).double()[index] for x in zip(*chunks, strict=True))
    return q, k


def _side(
    x: Float[Tensor, "term batch pos d_model"],
    before: Norm | None,
    matrix: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"],
    norm: HeadNorm | None,
    turns: Float[Tensor, "batch pos d_head d_head"],
) -> Float[Tensor, "term batch pos head d_head"]:
    """Queries or keys by component; what no component gives is in the last."""
    shift = bias.double()
    if before is not None:
        x = before.linear(x) / before.divisor(x.sum(0))
        shift = shift + torch.einsum("m,hmd->hd", before.bias.double(), matrix.double())
    y = torch.einsum("tbpm,hmd->tbphd", x.double(), matrix.double())
    y[-1] += shift
    if norm is not None and norm.after_rotary:
        return _normed(torch.einsum("tbphd,bpde->tbphe", y, turns), norm)
    return torch.einsum("tbphd,bpde->tbphe", y if norm is None else _normed(y, norm), turns)


def _normed(y: Float[Tensor, "term batch pos head d_head"], norm: HeadNorm) -> Tensor:
    """What a norm makes of each term, with its divisor held at that of their sum."""
    y = norm.linear(y) / norm.divisor(y.sum(0))
    y[-1] += norm.bias.double()
    return y
