"""Attention scores by pairs of sources: which feature at the query meets which at the key (QK).

An edge of an attribution graph passes attention where it looks; this says why it looks there. The mechanism is that of
`interp.decompose.score_parts`, with MLPs' outputs told apart into features and errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.graph_files import AttributionGraph
from circuits.features.local import STREAM, LocalModel
from circuits.features.own_neurons import neurons
from circuits.features.sources import Sources
from interp.batch import Prompts
from interp.decompose.scores import check_sum, entering_stream, head_place, own_scores, sides
from interp.dictionaries import Dictionaries, Dictionary
from interp.edits import Edit
from interp.errors import NotApplicable, SchemaError, SiteError
from interp.model import Model, with_edits
from interp.shapes import brief
from interp.sites import Site

REST, BIAS = "rest", "bias"
"""What is in the stream and is no source (decoders' constants, biases, skip connections); what is not of the stream."""


@dataclass(frozen=True, eq=False)
class ScorePairs:
    """The score of one query and one key, by pairs of what stands at each.

    Attributes:
        head: `L3H5`. query, key: positions.
        query_sources, key_sources: names, as of a graph's nodes; heads below `L1H3@4`; last `rest` and `bias`.
        values: before the softmax and a soft-cap; they sum to `score`.
        score: as the model computes it.
        table: the k largest pairs by size: query_source, key_source, value.
        kept: their share of the sum of all |values|.
        error: |sum - score| over scale x |query| x |key|.
    """

    head: str
    query: int
    key: int
    query_sources: tuple[str, ...]
    key_sources: tuple[str, ...]
    values: Float[Tensor, "query_source key_source"]
    score: float
    table: pd.DataFrame
    kept: float
    error: float

    __repr__ = brief

    def by_source(self, side: str = "key") -> pd.Series:
        """What each source gives with everything on the other side, largest first.

        Less this the score is without the source, divisors of norms held.

        Raises:
            SchemaError: a side that is neither query nor key.
        """
        if side not in ("query", "key"):
            raise SchemaError(f"side is 'query' or 'key'; got {side!r}")
        names = self.key_sources if side == "key" else self.query_sources
        total = pd.Series(self.values.sum(0 if side == "key" else 1).numpy(), index=list(names))
        return total.sort_values(key=abs, ascending=False, kind="stable")


@with_edits
@torch.no_grad()
def score_pairs(
    model: Model,
    prompt: Prompts | AttributionGraph,
    head: str,
    dictionary: Dictionary | Dictionaries | None = None,
    *,
    query: int = -1,
    key: int = 0,
    k: int = 32,
    tolerance: float | None = None,
    edits: Sequence[Edit] = (),
) -> ScorePairs:
    """s_ij = sum over a, b of scale q_i(a) . k_j(b): features, errors and heads a at the query, b at the key.

    q(a) = N(n(x_a) W_Q) R for what a writes at the query's token below the layer, with the divisors of norms held at
    those of the whole stream and R the turn of the position; heads below stand for what attention brought there from
    elsewhere. All keys of a query have its own `bias` against theirs in common, which moves no pattern.

    Args:
        model: any backend whose layers add attention and an MLP.
        prompt: one, or a graph of it.
        head: `L3H5`.
        dictionary: as of `attribution_graph`; the model's neurons if left out.
        query: position, negative from the end.
        key: position, not after the query where the model is causal.
        k: pairs in the table.
        tolerance: of `error`; 1e-5 for float32, eight units of rounding below.
        edits: changes under which the model runs, as of `attribution_graph`.

    Raises:
        SiteError: no such head, a position out of range, or a key that the query does not see.
        NotApplicable: a dictionary in the stream itself, or what `LocalModel` cannot hold.
        SchemaError: k below 1.
        BackendError: a sum that misses the score.
    """
    if k < 1:
        raise SchemaError(f"k is at least 1; got {k}")
    layer, index = head_place(model, head)
    ids = prompt.provenance["ids"] if isinstance(prompt, AttributionGraph) else prompt
    local = LocalModel(model, neurons(model) if dictionary is None else dictionary, ids)
    for site in local.cuts:
        if site.kind in STREAM:
            raise NotApplicable(f"{site} is replaced by a dictionary; score_pairs takes those of MLPs and of attention")
    at = [_position(local, name, p) for name, p in (("query", query), ("key", key))]
    if model.info.causal and at[1] > at[0]:
        raise SiteError(f"key {at[1]} stands after query {at[0]}, which does not see it")
    terms, stream = entering_stream(model, local.batch, layer, heads=True)
    kept = [i for i, t in enumerate(terms) if t.kind in ("head", "attn", "mlp", "block") and not _cut(local, t)]
    heads = {terms[i].name: stream[i, 0] for i in kept}
    below = [site for site in local.cuts if site.first is None or site.first < layer]
    whole = stream.sum(0)[0]
    named = [_sources(local, p, heads, below, whole[p]) for p in at]
    columns = [torch.tensor([[p]]) for p in at]
    q, other = sides(model, local.batch, (layer, index), [x[:, None, None] for _, x in named], columns)
    q, other, scale = q[:, 0, 0], other[:, 0, 0], model.weights()[layer].scale
    values = scale * q @ other.mT
    score, size = float(own_scores(model, local.batch, (layer, index), columns)), float(values.abs().sum())
    length = scale * float(q.sum(0).norm() * other.sum(0).norm())
    error = abs(float(values.sum()) - score) / max(length, torch.finfo(torch.float32).tiny)
    check_sum(model, head, error, tolerance)
    names = tuple(tuple(names) for names, _ in named)
    best = values.abs().flatten().topk(min(k, values.numel())).indices
    rows = [(names[0][i // len(names[1])], names[1][i % len(names[1])]) for i in best.tolist()]
    table = pd.DataFrame(rows, columns=["query_source", "key_source"]).assign(value=values.flatten()[best].numpy())
    share = float(values.flatten()[best].abs().sum()) / size if size else 1.0
    return ScorePairs(head, at[0], at[1], names[0], names[1], values.float(), score, table, share, error)


def _position(local: LocalModel, name: str, position: int) -> int:
    if not -local.n_pos <= position < local.n_pos:
        raise SiteError(f"{name} {position} is out of range; the prompt has {local.n_pos} tokens")
    return position % local.n_pos


def _cut(local: LocalModel, term: object) -> bool:
    """Whether sources stand for a term."""
    kind = {"head": "attn_out", "attn": "attn_out", "mlp": "mlp_out"}.get(getattr(term, "kind", ""))
    return kind is not None and Site(kind, getattr(term, "layer", None)) in local.cuts


def _sources(
    local: LocalModel,
    pos: int,
    heads: dict[str, Float[Tensor, "pos d_model"]],
    below: list[Site],
    whole: Float[Tensor, " d_model"],
) -> tuple[list[str], Float[Tensor, "term d_model"]]:
    """Names of what stands at a token, and what each has written there; last the rest, and an empty one."""
    sources = Sources(local)
    numbers = torch.arange(sources.n, device=local.active.pos.device)
    numbers = numbers[sources.positions(numbers) == pos]
    vectors = torch.stack([sources.vectors(numbers, site).double().cpu() for site in below]).sum(0)
    written = vectors.abs().amax(1) > 0
    names = [sources.name(i) for i in numbers[written.to(numbers.device)].tolist()]
    parts = torch.cat([vectors[written], *(x[pos][None] for x in heads.values())])
    rest = whole - parts.sum(0)
    every = [*names, *(f"{name}@{pos}" for name in heads), REST, BIAS]
    return every, torch.cat([parts, rest[None], torch.zeros_like(rest)[None]])
