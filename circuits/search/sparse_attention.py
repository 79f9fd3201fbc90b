"""Why a head attends where it does: the score in singular directions of its QK matrix, traced to who wrote them.

With x = [n(stream); 1] and Omega = [W_Q; b_Q] T [W_K; b_K]^T (T the turn between the two positions), the score of query
i and key j is sum_k s_k (x_i . u_k)(v_k . x_j) / sqrt(d) for Omega = U S V^T. Few terms make up the score, and what
each earlier component adds to them is linear in what it wrote (Franco and Crovella 2024, arXiv 2410.00340).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from circuits.methods import circuit_method
from circuits.patching.paths import path_patching
from circuits.wiring.case import Case
from circuits.wiring.ports import QKV
from interp.components import EMBED, Component, Edge, head_name, kind, parse_head
from interp.edits import Edit
from interp.errors import BackendError, NotApplicable, SchemaError
from interp.model import Model
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric
from interp.weights.factored import FactoredMatrix
from interp.weights.norms import UNEVEN, HeadNorm
from interp.weights.weights import Weights

READERS = 3
"""Heads that are asked where none are named."""
SIDES = {"q": "query", "k": "key"}


def extended_qk(weights: Weights, layer: int, head: int, *, offset: int = 0) -> FactoredMatrix:
    """[W_Q; b_Q] T(offset) [W_K; b_K]^T, [d_model + 1, d_model + 1], as factors of rank d_head.

    It reads [n(x); 1]; gains of norms on q and k are folded in, their divisors are not. Its singular vectors come from
    two QR factorisations of thin matrices and the SVD of a d_head x d_head one.
    """
    w = weights[layer]
    group = head // w.group

    def with_bias(matrix: Tensor, bias: Tensor, norm: HeadNorm | None) -> Tensor:
        if norm is not None and not norm.even:
            raise BackendError(f"layer {layer}: {UNEVEN}")
        extended = torch.cat([matrix, bias[:, None]], 1)
        return extended if norm is None else norm.fold(extended)

    left, right = with_bias(w.w_q, w.b_q, w.q_norm)[head], with_bias(w.w_k, w.b_k, w.k_norm)[group]
    return FactoredMatrix(left @ weights.rotation(layer, offset), right.mT)


@dataclass(frozen=True, eq=False)
class Tracing:
    """Which components put what into attention scores.

    Attributes:
        firings: one row per head, prompt, query and key that was explained: probability, score (what the terms of its
            singular vectors sum to), kept (the sum of those kept), vectors (how many), rank.
        contributions: one row per firing, side ("query", "key") and sender: what it adds to the kept terms.
        layout: the model's components. provenance: of the call: plain values.
    """

    firings: pd.DataFrame
    contributions: pd.DataFrame
    layout: Layout
    provenance: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per head, side and sender: mean contribution over firings, its share of the kept score, se, n."""
        parts = self.contributions.merge(self.firings[["firing", "head", "kept"]], on="firing")
        parts["share"] = parts["value"] / parts["kept"]
        groups = parts.groupby(["head", "side", "sender"], sort=False)
        frame = groups.agg(value=("value", "mean"), se=("value", "sem"), share=("share", "mean"), n=("value", "size"))
        return frame.reset_index().sort_values("value", ascending=False, kind="stable", ignore_index=True)

    def result(self) -> Result:
        """`table` in the columns of every result: the sender is the component, the head that reads it the variant."""
        table = self.table()
        writers = [Component.parse(name) for name in table["sender"]]
        rows = table.assign(
            analysis="sparse_attention",
            variant=[f"{head} {side}" for head, side in zip(table["head"], table["side"], strict=True)],
            component=table["sender"],
            layer=pd.array([writer.layer for writer in writers], dtype="Int64"),
            head=pd.array([writer.index for writer in writers], dtype="Int64"),
            unit="attention score",
            reader=table["head"],
        ).drop(columns="sender")
        return Result(frame(rows, extra={"reader": "str", "side": "str", "share": "float64"}), self.provenance)

    def graph(self, *, upstream: float = 0.7) -> Graph:
        """Edges from senders whose mean contributions, largest first, make up this share of all positive ones.

        Scores are mean contributions, for every sender that was asked about.
        """
        table, places = self.table(), []
        scores: dict[Edge, float] = {}
        for (head, side), part in table.groupby(["head", "side"], sort=False):
            port = next(p for p, name in SIDES.items() if name == side)
            values = part["value"].to_numpy()
            for sender, value in zip(part["sender"], values, strict=True):
                scores[self.layout.edge(*self.layout.place((sender, str(head), port)))] = float(value)
            for sender in part["sender"].iloc[: _count_for_share(values, upstream)]:
                places.append(self.layout.place((sender, str(head), port)))
        graph = Graph.of(self.layout, scores, provenance={**self.provenance, "upstream": upstream})
        graph.mask[:] = False
        for place in places:
            graph.mask[place] = True
        return graph


@recorded
def trace_attention(
    model: Model,
    task: PromptTask,
    heads: Sequence[str],
    *,
    query: str = "END",
    least: float = 0.5,
    share: float = 1.0,
    upstream: float = 0.7,
    depth: int = 1,
    edits: Sequence[Edit] = (),
) -> Tracing:
    """Contribution of every earlier component to the scores with which heads attend, for the pairs they attend to.

    For each prompt a head is asked at the query's token; a key (not the first token) that gets at least `least` of the
    attention is a firing. Its score is written as a sum over singular vectors, the largest terms that make up `share`
    of it are kept (what is left cancels), and at each side the kept terms are linear in what every earlier component
    wrote to that token, with the norm's divisor as it is. With more `depth`, the heads among the senders that make up
    `upstream` of a side are asked in turn, at the token where they wrote.

    A contribution says what the score is made of, not what would change without the component: softmax looks at scores
    beside other keys', and a component that adds as much to every key's score moves no attention. One forward pass.

    Args:
        model: any backend with its weights at hand; scores must depend on distance alone (no norm after rotary with
            unequal gains).
        task: prompts; the clean ones are used.
        heads: `L3H5`.
        query: role of the task at which the heads are asked.
        least: probability that makes a firing.
        share: of the score that kept terms must reach.
        upstream: of positive contributions, for going deeper.
        depth: levels.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: no such head, or shares outside 0 to 1.
        TaskError: no such role.
        NotApplicable: attention both ways, or not all softmax.
        BackendError: scores of a layer depend on more than the distance.
    """
    if not model.info.causal or model.info.softmax_share != 1.0:
        raise NotApplicable("scores are traced in causal softmax attention, and this model has another")
    case = Case.of(model, task)
    for name, value in (("least", least), ("share", share), ("upstream", upstream)):
        if not 0 < value <= 1:
            raise SchemaError(f"{name} {value}; expected a share above 0, at most 1")
    with torch.no_grad():
        tracer = _Tracer(case, least, share)
        columns = case.task.role(query).tolist()
        places_by_head = {_head(case.layout, name): [(b, i) for b, i in enumerate(columns) if i >= 0] for name in heads}
        history: set[tuple[tuple[int, int], int, int]] = set()
        for _ in range(depth):
            next_places: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for where, places in places_by_head.items():
                new_places = [(b, i) for b, i in places if (where, b, i) not in history]
                history |= {(where, b, i) for b, i in new_places}
                for above, place in tracer.explain(where, new_places, upstream):
                    next_places.setdefault(above, []).append(place)
            places_by_head = next_places
    return tracer.tracing()


class _Tracer:
    """One run's activations, and what has been explained so far."""

    def __init__(self, case: Case, least: float, share: float) -> None:
        self.case, self.layout, self.least, self.share = case, case.layout, least, share
        self.weights, self.writes = case.ports.weights, case.sent_clean
        layers = [i for i in range(self.layout.n_layers) if self.layout.has_heads(i)]
        sites = [Site(kind, i) for i in layers for kind in ("resid_pre", "pattern")]
        self.acts = case.model.run(case.task.clean, capture=sites, stop=self.layout.n_layers - 1).acts
        self.positions = case.task.clean.positions
        self._factors: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self.firings: list[dict[str, Any]] = []
        self.contributions: list[pd.DataFrame] = []

    def explain(
        self, where: tuple[int, int], places: Sequence[tuple[int, int]], upstream: float
    ) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Explain a head at (prompt, query) places; heads further down that matter, with where they wrote."""
        layer, head = where
        pattern, first, sources = self.acts[Site("pattern", layer)][:, head], self.case.task.clean.first.tolist(), []
        for b, i in places:
            for j in (pattern[b, i, : i + 1] >= self.least).nonzero()[:, 0].tolist():
                if j == first[b]:
                    continue
                for side, place in self._firing(layer, head, b, i, j, float(pattern[b, i, j])):
                    order = np.argsort(-side["value"].to_numpy(), kind="stable")
                    for n in order[: _count_for_share(side["value"].to_numpy()[order], upstream)]:
                        name = str(side["sender"].iloc[n])
                        if kind(name) == "head":
                            sources.append((_head(self.layout, name), (b, place)))
        return sources

    def _firing(
        self, layer: int, head: int, b: int, i: int, j: int, probability: float
    ) -> list[tuple[pd.DataFrame, int]]:
        """Terms of one score, those kept, and who contributed to them on each side."""
        x = self.acts[Site("resid_pre", layer)][b]
        u, s, v = self._vectors(layer, head, int(self.positions[b, i] - self.positions[b, j]))
        scale = self.weights[layer].scale / self._divisors(layer, head, x[i], x[j])
        left, right = self._extended_input(layer, x[i]) @ u, self._extended_input(layer, x[j]) @ v
        terms = scale * left * s * right
        order = terms.argsort(descending=True)
        top_terms = order[: _count_for_share(terms[order].cpu().numpy(), self.share, of=float(terms.sum()))]
        score = float(terms.sum())
        if score <= 0:
            return []
        number = len(self.firings)
        labels = {"firing": number, "head": head_name(layer, head), "prompt": b, "query": i, "key": j}
        size = {"probability": probability, "score": score, "kept": float(terms[top_terms].sum())}
        self.firings.append({**labels, **size, "vectors": len(top_terms), "rank": len(s)})
        sides = []
        for name, at, vectors, other in (("query", i, u, right), ("key", j, v, left)):
            signal = (scale * s * other)[top_terms] @ vectors[:-1, top_terms].T
            sender_mask = self.layout.exists[:, self.layout.place((EMBED, head_name(layer, head), name[0]))[1]]
            writes = self._linear(layer, self.writes[torch.from_numpy(sender_mask), b, at], x[at])
            names = [n for n, e in zip(self.layout.senders, sender_mask, strict=True) if e]
            frame = pd.DataFrame({"firing": number, "side": name, "sender": names, "value": (writes @ signal).tolist()})
            self.contributions.append(frame)
            sides.append((frame, at))
        return sides

    def tracing(self) -> Tracing:
        """What was found."""
        columns = ["firing", "head", "prompt", "query", "key", "probability", "score", "kept", "vectors", "rank"]
        sides = self.contributions or [pd.DataFrame(columns=["firing", "side", "sender", "value"])]
        firings = pd.DataFrame(self.firings, columns=columns)
        return Tracing(firings, pd.concat(sides, ignore_index=True), self.layout, {"method": "sparse-attention"})

    def _vectors(self, layer: int, head: int, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        if (layer, head, offset) not in self._factors:
            u, s, vh = extended_qk(self.weights, layer, head, offset=offset).svd()
            on = self.writes.device
            self._factors[layer, head, offset] = u.to(on), s.to(on), vh.mT.to(on)
        return self._factors[layer, head, offset]

    def _extended_input(self, layer: int, x: Float[Tensor, " d_model"]) -> Float[Tensor, " d_extended"]:
        """[n(x); 1]."""
        norm = self.case.ports.reads[layer].attn
        return torch.cat([x if norm is None else norm.to(x.device)(x), x.new_ones(1)])

    def _linear(
        self, layer: int, writes: Float[Tensor, "sender d_model"], x: Float[Tensor, " d_model"]
    ) -> Float[Tensor, "sender d_model"]:
        """What of n(x) each sender wrote, the divisor held."""
        norm = self.case.ports.reads[layer].attn
        return writes if norm is None else norm.to(x.device).linear(writes) / norm.to(x.device).divisor(x)

    def _divisors(self, layer: int, head: int, query: Tensor, key: Tensor) -> float:
        """What norms on q and k divide by; 1 without."""
        w, product = self.weights[layer], 1.0
        sides: tuple[tuple[QKV, Tensor, HeadNorm | None, int], ...] = (
            ("q", query, w.q_norm, head),
            ("k", key, w.k_norm, head // w.group),
        )
        for port, x, norm, at in sides:
            if norm is not None:
                raw = self.case.ports.raw(layer, port, x[None, None])[0, 0].cpu()
                linear, normed = norm.linear(raw)[at], (norm(raw) - norm.bias)[at]
                product *= float(linear.norm() / normed.norm())
        return product


def _count_for_share(values: np.ndarray, share: float, *, of: float | None = None) -> int:
    """How many of values, largest first, sum to a share of a total (of all positive ones)."""
    positive = np.clip(values, 0, None)
    total = positive.sum() if of is None else of
    crossings = np.flatnonzero(np.cumsum(positive) >= share * total - 1e-9 * abs(total))
    return int(crossings[0]) + 1 if total > 0 and len(crossings) else int((values > 0).sum())


def _head(layout: Layout, name: str) -> tuple[int, int]:
    layer, head = parse_head(name)
    if name not in layout.sender_index:
        last = head_name(layout.n_layers - 1, layout.n_heads - 1)
        raise SchemaError(f"no head {name!r}; there are {head_name(0, 0)} to {last}")
    return layer, head


@circuit_method(
    name="sparse-attention",
    title="Attention scores traced to their writers",
    gives="table",
    costs="one forward pass and a few matrix products for every explained score",
    means="So much of the score with which the reader attends was written by this component.",
    misleads="What a score is made of, not what would change: softmax compares it with other keys' scores.",
    reference="Franco and Crovella 2024, arXiv 2410.00340",
    order=160,
    judged=None,
)
def _sparse_attention(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    heads: Sequence[str] | None = None,
    query: str = "END",
    least: float = 0.5,
    upstream: float = 0.7,
    depth: int = 2,
) -> Result:
    """Writers of the scores of `heads`; unless said, of the heads with the largest direct effects on the metric."""
    if heads is None:
        direct = path_patching(model, task, senders="heads", metric=metric, batch_size=batch_size, seed=seed).table
        heads = direct.sort_values("value", key=lambda v: -v.abs(), kind="stable")["component"].head(READERS).tolist()
    return trace_attention(model, task, heads, query=query, least=least, upstream=upstream, depth=depth).result()
