"""Contextual decomposition: how much of what a component reads, or of the logits, came from some source.

Every activation is split into beta, what came from the source, and gamma, the rest; the two are carried through the
layers side by side and always sum to the activation (Hsu et al. 2024, arXiv 2407.00886). With x = beta + gamma:

norm        both parts centred and scaled by the divisor of x;
bias        shared out entry by entry in proportion to |beta| and |gamma|;
attention   beta = A(q_beta, k_beta) v_beta with the model's own mask, soft-cap and sinks, gamma = z - beta;
MLP         beta = f(x) - f(gamma), gamma = f(gamma) - f(0), and f(0) as a bias;
stream      where beta and gamma have opposite signs the larger gets the sum and the other nothing (`normalise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from circuits.evaluation._faithfulness import portions
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from circuits.methods import circuit_method
from circuits.search.beta_rules import SMALL, bias_part, head_normed, normed, share_of
from circuits.wiring.case import Case
from circuits.wiring.components import PORTS, Parts, at
from circuits.wiring.edges import Sent
from circuits.wiring.ports import QKV
from interp.components import kind
from interp.edits import Edit
from interp.errors import SchemaError, nearest
from interp.model import Model
from interp.results.provenance import recorded
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric
from interp.weights.norms import HeadNorm

Beta = Float[Tensor, "row batch pos d_model"]


@dataclass(frozen=True, eq=False)
class Relevance:
    """What sources contribute.

    Attributes:
        sources: names as asked for. layout: the model's slots.
        to_logits: beta's part of l[answer] - l[wrong] at END, behind the final norm, before a soft-cap; in logits.
        whole: the same of the whole stream.
        to_slots: sum |beta| / (sum |beta| + sum |gamma|) over real tokens and channels of each q, k, v or MLP input;
            NaN for slots that are read before the source writes. The last column is the logits' stream at END.
        provenance: of the call: plain values.
    """

    sources: tuple[str, ...]
    layout: Layout
    to_logits: Float[ndarray, "source prompt"]
    whole: Float[ndarray, " prompt"]
    to_slots: Float[ndarray, "source slot prompt"]
    provenance: dict[str, Any]

    def table(self, *, level: float = 0.95) -> pd.DataFrame:
        """One row per source: relevance to the logits with a normal interval over prompts, and as a share of the whole.

        Sorted by magnitude. Shares of several sources do not sum to one: a later source contains what it had from an
        earlier one.
        """
        from scipy.stats import norm

        n = self.to_logits.shape[1]
        mean = self.to_logits.mean(1)
        se = self.to_logits.std(1, ddof=1) / n**0.5 if n > 1 else np.full(len(mean), np.nan)
        wide = norm.ppf(0.5 + level / 2) * se
        frame = pd.DataFrame({"source": self.sources, "value": mean, "se": se})
        frame["ci_low"], frame["ci_high"], frame["share"] = mean - wide, mean + wide, mean / self.whole.mean()
        frame["n"] = n
        return frame.sort_values("value", key=lambda s: -s.abs(), kind="stable", ignore_index=True)

    def slots(self) -> pd.DataFrame:
        """One row per source and slot that it reaches: mean share of what is read there."""
        mean = self.to_slots.mean(2)
        rows, columns = np.nonzero(~np.isnan(mean))
        frame = pd.DataFrame({"source": [self.sources[r] for r in rows.tolist()], "share": mean[rows, columns]})
        frame[["receiver", "port"]] = [self.layout.slots[c] for c in columns.tolist()]
        frame["n"] = self.to_slots.shape[2]
        return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)

    def graph(self) -> Graph:
        """Scores of edges, if every sender was a source of its own: the mean share of what the slot reads.

        A share contains what reached the slot by way of other components: it is no direct effect.

        Raises:
            SchemaError: other sources.
        """
        if self.sources != self.layout.senders:
            raise SchemaError("edges need every sender as a source at all positions; leave `sources` out")
        return Graph.full(self.layout, self.to_slots.mean(2), provenance=self.provenance)

    def search(self, *, k: int = 2, depth: int = 4, heads: bool = True, per_layer: bool = True) -> Graph:
        """The published search: the k most relevant senders to the logits, the k most to what these read, and so on.

        At each stage senders are ranked by their relevance to all slots of what the stage before kept, the logits at
        first, as a share of the largest in their own layer (`per_layer`), without which late layers win by standing
        near. Edges join what is kept to the slots that it was kept for; their score is the mean share of what is read
        there (for the logits of the stream at END). Nothing is run again.

        Args:
            k: senders kept at a stage (the notebooks of the paper's authors keep 2).
            depth: stages after the first; fewer where nothing stands below.
            heads: heads alone, as published; else MLPs and the embedding too.
            per_layer: rank by shares of a layer's largest, ties by the relevance itself.

        Raises:
            SchemaError: sources other than every sender, or fewer than one kept.
        """
        if k < 1 or depth < 0:
            raise SchemaError(f"k = {k}, depth = {depth}: at least one sender is kept, and depth is not negative")
        scores, layout = self.graph().scores, self.layout
        candidates = np.array([not heads or kind(name) == "head" for name in layout.senders])
        mask, logits = np.zeros(layout.exists.shape, dtype=bool), len(layout.slots) - 1
        relevance, slots, visited_slots = np.abs(self.to_logits.mean(1)), [logits], {logits}
        for _ in range(depth + 1):
            reachable = candidates & layout.exists[:, slots].any(1)
            senders = _most_relevant(np.where(reachable, relevance, 0.0), layout.sender_layers, k, per_layer=per_layer)
            for u in senders:
                mask[u, [w for w in slots if layout.exists[u, w]]] = True
            slots = [w for w in range(logits) if w not in visited_slots and layout.owners[w][senders].any()]
            if not slots:
                break
            visited_slots.update(slots)
            relevance = np.nan_to_num(scores[:, slots]).sum(1)
        own = {**self.provenance, "search": {"k": k, "depth": depth, "heads": heads, "per_layer": per_layer}}
        return Graph(layout, scores, mask, own)


def _most_relevant(
    relevance: Float[ndarray, " sender"], layers: Int[ndarray, " sender"], k: int, *, per_layer: bool
) -> list[int]:
    """The k most relevant; those without any relevance are none."""
    rank = relevance.copy()
    if per_layer:
        for layer in np.unique(layers):
            in_layer = layers == layer
            rank[in_layer] /= max(relevance[in_layer].max(), SMALL)
    order = np.lexsort((-relevance, -rank))
    return [u for u in order.tolist() if relevance[u] > 0][:k]


@recorded
def contextual_decomposition(
    model: Model,
    task: PromptTask,
    *,
    sources: Sequence[str | Sequence[str]] | None = None,
    reference: str = "mean",
    normalise: bool = True,
    batch_size: int = 128,
    edits: Sequence[Edit] = (),
) -> Relevance:
    """Share of beta in the logits' difference and in what every slot reads, for each source; no backward pass.

    At a source beta is what it writes less a reference, everything else that is written there is gamma; what reached
    the source from below does not count. A source is a sender (`L3H5`, `M2`, `embed`), one at a token (`L3H5@END`, a
    role of the task), or a list of these taken together. Cost: for each source a pass through the layers above it, with
    its MLPs once more.

    High relevance is not an effect: nothing is removed, later components are not asked what they would do without it,
    and the split of attention and MLP between beta and gamma is a rule, not a fact. Two sources that only together
    change an attention pattern get no credit for it (softmax of q_beta k_beta).

    Args:
        model: any backend with its weights at hand.
        task: prompts.
        sources: each sender by itself unless given.
        reference: what a source writes when it says nothing: "mean" over the corrupted prompts of its template and
            length, position by position, "resample" (the corrupted twin) or "zero".
        normalise: settle opposite signs in the stream, behind attention and behind the MLP.
        batch_size: rows (source and prompt) of a pass.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: no such sender.
        TaskError: no such role or reference.
    """
    case, other = next(portions(Case.of(model, task), reference, batch_size=len(task)))
    names = tuple(case.layout.senders) if sources is None else tuple(sources)
    with torch.no_grad():
        split = _Split(case, other, normalise=normalise)
        injections = torch.stack([split.places(name) for name in names])
        rows, results = max(1, batch_size // len(case)), []
        order = np.argsort([split.first(one) for one in injections], kind="stable")
        for part in np.split(order, range(rows, len(order), rows)):
            results.append(split.follow(injections[part.tolist()]))
        inverse = np.argsort(order)
        logits, slots = (torch.cat([f[i] for f in results])[inverse].double().cpu().numpy() for i in (0, 1))
        whole = split.answer_relevance(split.parts.last[None])[0].double().cpu().numpy()
    labels = tuple(name if isinstance(name, str) else " + ".join(name) for name in names)
    return Relevance(labels, case.layout, logits, whole, slots, {"method": "cdt"})


class _Split:
    """Carries beta upwards; gamma is the clean run's activation less beta."""

    def __init__(self, case: Case, other: Tensor, *, normalise: bool) -> None:
        self.case, self.layout, self.parts, self.ports = case, case.layout, Parts(case), case.ports
        self.clean, self.normalise = case.sent_clean, normalise
        self.gap = self.clean - other.to(self.clean)
        layers = [i for i in range(self.layout.n_layers) if self.layout.has_heads(i)]
        self.constants = {i: self.parts.z_constant(i) for i in layers}
        for layer, constant in self.constants.items():
            if constant is not None:
                self.clean = self._without(layer, constant)
        self.mask = case.task.clean.mask

    def _without(self, layer: int, constant: Float[Tensor, "batch pos head d_head"]) -> Sent:
        """What senders write, less what edits in force put into heads of a layer: that is a bias, and no head's own."""
        clean, z = self.clean.clone(), constant / self.parts.divisor(layer)[..., None]
        first = self.layout.sender(layer, 0)
        for h, matrix in enumerate(self.parts.matrix(layer)):
            clean[first + h] -= z[..., h, :] @ matrix
        return clean

    def places(self, name: str | Sequence[str]) -> Bool[Tensor, "sender batch pos"]:
        """Where a source writes beta."""
        injection = torch.zeros(self.clean.shape[:3], dtype=torch.bool, device=self.clean.device)
        for one in (name,) if isinstance(name, str) else name:
            sender, _, role = one.partition("@")
            if sender not in self.layout.sender_index:
                raise SchemaError(f"no sender {sender!r}; {nearest(sender, self.layout.senders)}")
            row = injection[self.layout.sender_index[sender]]
            if not role:
                row[:] = True
                continue
            where = self.case.task.role(role)
            row[torch.arange(len(where))[where >= 0], where[where >= 0]] = True
        return injection

    def first(self, injection: Bool[Tensor, "sender batch pos"]) -> int:
        """Lowest layer in which a source writes."""
        writers = injection.flatten(1).any(1).cpu().numpy()
        return int(self.layout.sender_layers[writers].min()) if writers.any() else self.layout.n_layers

    def follow(
        self, injections: Bool[Tensor, "row sender batch pos"]
    ) -> tuple[Float[Tensor, "row batch"], Float[Tensor, "row slot batch"]]:
        """Relevance to the logits, and to every slot."""
        start, shares = min(self.first(one) for one in injections), {}
        beta = torch.where(injections[:, 0, :, :, None], self.gap[0], 0.0)
        for layer in range(max(0, start), self.layout.n_layers):
            beta = self._layer(layer, beta, injections, shares)
        end = self.case.task.end
        logits = len(self.layout.slots) - 1
        shares[logits] = share_of(at(beta, end)[..., 0, :], at(self.parts.last, end)[..., 0, :])
        none = torch.full((len(injections), len(self.mask)), torch.nan, device=beta.device)
        slots = torch.stack([shares.get(s, none) for s in range(logits + 1)], 1)
        reachable = torch.stack([self._reachable_slots(one) for one in injections])
        return self.answer_relevance(beta), torch.where(reachable[:, :, None], slots, torch.nan)

    def _layer(self, layer: int, beta: Beta, injections: Tensor, shares: dict[int, Tensor]) -> Beta:
        """beta of the stream behind a layer; what neither heads nor MLP write is a bias of the one that came last."""
        parts, heads, mlps = self.parts, self.layout.has_heads(layer), self.layout.mlps
        x, above = parts.resid[layer], parts.resid.get(layer + 1, parts.last)
        in_layer = self.layout.sender_layers == layer
        own = self.clean[torch.from_numpy(in_layer)].sum(0)
        beta_out = self._attention(layer, beta, injections, shares) if heads else torch.zeros_like(beta)
        if heads and mlps and not self.layout.parallel:
            middle = parts.middle[layer]
            mlp = self.clean[self.layout.sender(layer)]
            beta_out = beta_out + bias_part(middle - x - (own - mlp), beta_out, own - mlp - beta_out)
            beta = self._sign_rule(beta + beta_out, middle)
            x, own, beta_out = middle, mlp, torch.zeros_like(beta)
        if mlps:
            beta_out = beta_out + self._mlp(layer, beta, injections, shares)
        beta_out = beta_out + bias_part(above - x - own, beta_out, own - beta_out)
        return self._sign_rule(beta + beta_out, above)

    def answer_relevance(self, beta: Beta) -> Float[Tensor, "row batch"]:
        """beta's part of the difference of logits."""
        task, end = self.case.task, self.case.task.end
        norm, x = self.ports.final_norm, at(self.parts.last, end)[:, 0]
        beta_in = normed(norm, at(beta, end)[..., 0, :], x)
        return (beta_in * (self._direction(task.answers) - self._direction(task.wrong)).to(beta_in)).sum(-1)

    def _direction(self, ids: Tensor) -> Float[Tensor, "batch d_model"]:
        """Mean column of W_U over the ids of each prompt."""
        if not ids.shape[1]:
            return torch.zeros(len(ids), self.clean.shape[-1])
        rows = self.ports.weights.source.columns(ids.clamp(min=0).flatten().cpu()).unflatten(0, ids.shape)
        valid = (ids >= 0).cpu()[..., None]
        return (rows * valid).sum(1) / valid.sum(1).clamp(min=1)

    def _reachable_slots(self, injection: Bool[Tensor, "sender batch pos"]) -> Bool[Tensor, " slot"]:
        senders = injection.flatten(1).any(1).cpu().numpy()
        return torch.from_numpy(self.layout.exists[senders].any(0)).to(injection.device)

    def _sign_rule(self, beta: Beta, x: Float[Tensor, "batch pos d_model"]) -> Beta:
        """Where beta and gamma differ in sign the larger gets all."""
        if not self.normalise:
            return beta
        gamma = x - beta
        larger = torch.where(beta.abs() >= gamma.abs(), x, 0.0)
        return torch.where(beta * gamma < 0, larger, beta)

    def _attention(self, layer: int, beta: Beta, injections: Tensor, shares: dict[int, Tensor]) -> Beta:
        """beta of what attention writes."""
        parts, x, sites = self.parts, self.parts.resid[layer], {}
        for port in PORTS:
            sites[port] = self._site(layer, port, beta, x)
            share = share_of(
                sites[port].transpose(-2, -3), parts.sites[layer, port].transpose(-2, -3), self.mask[:, None]
            )  # row batch head
            for i in range(share.shape[-1]):
                shares[self.layout.slot(layer, port, i)] = share[..., i]
        z = parts.through(layer, {p: s.flatten(0, 1) for p, s in sites.items()}, len(beta))
        constant = self.constants[layer]
        z = z.unflatten(0, beta.shape[:2]) - (0.0 if constant is None else constant)
        z = z / parts.divisor(layer)[..., None]
        first = self.layout.sender(layer, 0)
        beta_out = torch.zeros_like(beta)
        for h, matrix in enumerate(parts.matrix(layer)):
            u = first + h
            beta_out = beta_out + torch.where(injections[:, u, :, :, None], self.gap[u], z[..., h, :] @ matrix)
        return beta_out

    def _site(self, layer: int, port: QKV, beta: Beta, x: Tensor) -> Float[Tensor, "row batch pos head d_head"]:
        """beta of q, k or v."""
        w = self.ports.layer(layer)
        matrix, bias = getattr(w, f"w_{port}").to(x), getattr(w, f"b_{port}").to(x)
        norm = self.ports.reads[layer].attn
        beta_in = normed(norm, beta, x)
        raw = torch.einsum("rbpm,hmk->rbphk", beta_in, matrix)
        whole = self.ports.raw(layer, port, x)
        raw = raw + bias_part(bias, raw, whole - bias - raw)
        inner: HeadNorm | None = {"q": w.q_norm, "k": w.k_norm, "v": w.v_norm}[port]
        turn = None if port == "v" else self.ports.turn(layer, port, self.case.task.clean.positions)
        if turn is not None:
            turn = turn.to(raw)
        if turn is not None and (inner is None or inner.after_rotary):
            raw, whole, turn = raw @ turn, whole @ turn, None
        if inner is not None:
            raw = head_normed(inner, raw, whole)
        return raw if turn is None else raw @ turn

    def _mlp(self, layer: int, beta: Beta, injections: Tensor, shares: dict[int, Tensor]) -> Beta:
        """beta of what an MLP writes."""
        u, x = self.layout.sender(layer), self.parts.middle[layer]
        whole = self.ports.read_mlp(layer, x)
        beta_in = normed(self.ports.reads[layer].mlp, beta, x)
        shares[self.layout.slot(layer, "in")] = share_of(beta_in, whole, self.mask)
        rest = self.parts.mlp_of(layer, whole - beta_in)
        bias_out = self.parts.mlp_of(layer, torch.zeros_like(whole[:1, :1]))
        active = (beta_in != 0).any(-1, keepdim=True)  # else what is left is rounding, and the rules would hand it on
        beta_out = torch.where(active, self.clean[u] - rest, 0.0)
        beta_out = beta_out + bias_part(bias_out, beta_out, rest - bias_out)
        return torch.where(injections[:, u, :, :, None], self.gap[u], beta_out)


@circuit_method(
    name="cdt",
    title="Contextual decomposition",
    gives="scores",
    costs="for every component a pass through the layers above it, with their MLPs once more",
    means="Of what the slot reads, so large a share came from this sender, by way of others too.",
    misleads="Not an effect: nothing is removed, and how attention and MLPs are split is a rule, not a fact.",
    reference="Hsu et al. 2024, arXiv 2407.00886",
    order=80,
    signed=False,
)
def _cdt(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 128,
    seed: int = 0,
    reference: str = "mean",
    normalise: bool = True,
) -> Graph:
    """Share of every sender in what every slot reads; no metric takes part."""
    how = {"reference": reference, "normalise": normalise, "batch_size": max(128, batch_size)}
    return contextual_decomposition(model, task, **how).graph()
