"""`attribution_graph`: direct effects of features, errors and tokens on features and logits, by backward passes.

One pass forward of the held model on copies of the prompt; then, for a batch of targets, one backward pass, a target in
each row. Of each target's sources the k strongest are kept as they come, so that nothing of the size of nodes x nodes
is ever held. Which features become targets is decided by influence on the logits, along the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features import influence as flow
from circuits.features.backward import Backward
from circuits.features.feature_graph import Node
from circuits.features.graph_files import AttributionGraph
from circuits.features.head_parts import with_heads
from circuits.features.influence import Edges
from circuits.features.local import AFFINE, EMBED, LocalModel, check_affine
from circuits.features.sources import Sources
from interp.batch import Prompts
from interp.dictionaries import Dictionaries, Dictionary
from interp.edits import Edit
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.model import Model, with_edits
from interp.sites import Site
from interp.tokens.texts import token_texts

ROUND, ROUNDS = 4, 32
"""Batches between two decisions about what comes next, at least, and such decisions, about at most."""


@with_edits
def attribution_graph(
    model: Model,
    prompt: Prompts,
    dictionary: Dictionary | Dictionaries | None = None,
    *,
    position: int = -1,
    logits: int = 10,
    logit_mass: float = 0.95,
    max_features: int = 7500,
    k: int = 256,
    batch: int = 32,
    heads: bool = False,
    node: float | None = 0.8,
    edge: float | None = 0.98,
    edits: Sequence[Edit] = (),
) -> AttributionGraph:
    """The attribution graph of one prompt (Ameisen et al. 2025), exact for it: an affine model, and error nodes.

    A_st = f_s d_s . J^T r_t with f_s the activation, d_s the decoder direction, r_t the encoder direction (of a logit,
    its unembedding less the mean of all), J the Jacobian of the held model from where s writes to where t reads, other
    features held. Memory is linear in the prompt, k numbers for a target.

    Args:
        model: any backend whose layers add attention and an MLP.
        prompt: one.
        dictionary: transcoders of MLPs, a cross-layer transcoder, or autoencoders of the stream; neurons of the model
            itself if left out (`neurons`), for which there are no errors.
        position: at which the logits are.
        logits: nodes of logits at most.
        logit_mass: fewer, if these have so much probability together.
        max_features: targets at most, the most influential.
        k: edges kept into each target.
        batch: targets of a backward pass, and copies of the prompt.
        heads: part the weight of every edge of the pruned graph by the head (of keys and values) that its path
            enters first.
        node: share of influence of the nodes kept, as in `AttributionGraph.pruned`; None for no pruning.
        edge: that of the edges kept.
        edits: changes under which the model runs: the graph is of the edited model, as inside `model.editing`. They
            are affine, token by token, and not where features write (`circuits.features.edits`).

    Raises:
        NotApplicable: what cannot be held, or is not affine when it is; an edit of which there is no graph.
        TaskError: several prompts, or a position out of range.
        SchemaError: a dictionary without sites, numbers out of range.
    """
    for name, number in (("logits", logits), ("max_features", max_features), ("k", k), ("batch", batch)):
        if number < 1:
            raise SchemaError(f"{name} is at least 1; got {number}")
    if dictionary is None:
        from circuits.features.own_neurons import neurons

        dictionary = neurons(model)
    local = LocalModel(model, dictionary, prompt)
    affine_error = check_affine(local)
    if not -local.n_pos <= position < local.n_pos:
        raise TaskError(f"position {position} is out of range; the prompt has {local.n_pos} tokens")
    at = position % local.n_pos
    probabilities = local.logits[at].softmax(-1)
    ids, weight = _top(probabilities, logits, logit_mass)
    search = _Search(local, ids, weight, at, k, batch)
    search.run(max_features)
    settings = {"k": k, "max_features": max_features, "max_n_logits": logits, "desired_logit_prob": logit_mass}
    settings |= {"dictionary": repr(dictionary), "position": at, "batch_size": batch, **_circumstances(local)}
    if model.edits and not search.closure <= AFFINE:
        raise NotApplicable(
            f"under the edits in force sources miss what they should sum to by {search.closure:.1e}: the gradient of "
            "an edit is not what it does; use Add, Scale, Replace or Ablate"
        )
    graph = search.graph(affine_error, settings)
    if node is not None and edge is not None:
        graph = graph.pruned(node=node, edge=edge)
    if heads:
        graph = with_heads(graph, local, batch=batch)
    return graph


def _circumstances(local: LocalModel) -> dict[str, Any]:
    """The model, the prompt, and edits in force."""
    model = local.model
    return {
        "model": model.info.as_dict(),
        "ids": local.batch.ids[0].tolist(),
        "n_active": len(local.active),
        "edits": [repr(edit) for edit in model.edits],
    }


def _top(probabilities: Tensor, most: int, mass: float) -> tuple[Int[Tensor, " token"], Float[Tensor, " token"]]:
    p, ids = probabilities.topk(min(most, len(probabilities)))
    n = int((p.cumsum(0) < mass).sum()) + 1
    return ids[:n], p[:n]


@dataclass(eq=False)
class _Search:
    """Rows of the graph as they are taken. Sources are numbered: active features, errors by site, embeddings."""

    local: LocalModel
    ids: Tensor
    probability: Tensor
    at: int
    k: int
    batch: int
    filled: int = 0
    closure: float = 0.0

    def run(self, max_features: int) -> None:
        local = self.local
        n = len(local.active)
        self.sources = Sources(local)
        self.n_sources = self.sources.n
        with torch.no_grad():
            zeros = {s: torch.zeros_like(x) for s, x in local.clean_values(1).items()}
            self.constant = {site: x[0].float() for site, x in local.run(zeros).items()}
        self.backward = Backward(local, min(self.batch, max(len(self.ids), min(max_features, n))))
        device = local.active.value.device
        numbers = torch.arange(len(self.ids), device=device)
        # made once: many small parts that stay, between large ones that go, would leave holes in memory
        shape = (min(max_features, n) + len(self.ids), min(self.k, self.n_sources))
        self.index, self.value = torch.empty(shape, dtype=torch.int32, device=device), torch.empty(shape, device=device)
        self.target = torch.empty(shape[0], dtype=torch.long, device=device)
        self.totals = torch.zeros(self.n_sources + len(self.ids), device=device)
        for part in numbers.split(self.backward.size):
            r = local.logit_reading(self.ids[part], self.at)
            pos = torch.full_like(part, self.at)
            self._take([(local.last, pos, r)], self.n_sources + part)
        done = torch.zeros(n, dtype=torch.bool, device=numbers.device)
        left = min(max_features, n)
        most = max(ROUND * self.backward.size, left // ROUNDS)
        while left > 0:
            reach = self._influence()[:n].masked_fill(done, 0.0)
            chosen = reach.topk(min(left, most)).indices
            chosen = chosen[reach[chosen] > 0]
            if not len(chosen):
                break
            done[chosen] = True
            left -= len(chosen)
            chosen = chosen[self.local.active.pos[chosen].argsort(stable=True)]  # neighbours look back at the same
            for part in chosen.split(self.backward.size):
                self._take_features(part)
        self.done = done

    def _take_features(self, part: Tensor) -> None:
        """Rows of features: sorted by member, since each reads at its own site."""
        a = self.local.active
        targets, order = [], []
        for member in a.member[part].unique().tolist():
            own = part[a.member[part] == member]
            site = self.local.members[member].site_in
            assert site is not None  # checked when the local model was made
            targets.append((site, a.pos[own], self.local.reading(member, a.pos[own], a.feature[own])))
            order.append(own)
        self._take(targets, torch.cat(order))

    def _take(self, targets: list[Any], numbers: Tensor) -> None:
        grads = dict(zip(self.backward.values, self.backward.gradients(targets), strict=True))
        row = self.sources.effects({site: g[: len(numbers)] for site, g in grads.items()})
        self._check_sum(targets, row)
        size = row.abs()
        total = size.sum(1)
        index = size.topk(self.index.shape[1], dim=1).indices
        own = slice(self.filled, self.filled + len(numbers))
        self.target[own], self.index[own], self.value[own] = numbers, index.to(self.index.dtype), row.gather(1, index)
        self.totals[numbers] = total
        self.filled = own.stop

    def _check_sum(self, targets: list[Any], row: Tensor) -> None:
        """Sources and the constant sum to what stands at the target."""
        first = 0
        for site, pos, r in targets:
            x = self.backward.read[site][0].detach().float()
            value = (r * (x - self.constant[site])[pos]).sum(-1)
            own = row[first : first + len(pos)]
            first += len(pos)
            bias = self._biases(site, pos, r)
            scale = own.abs().sum(1).clamp(min=1e-12)
            self.closure = max(self.closure, float(((own.sum(1) + bias - value).abs() / scale).max()))

    def _biases(self, site: Site, pos: Tensor, r: Tensor) -> Tensor | float:
        """What decoders' constants add to a target: no source of its own."""
        if not hasattr(self, "offset"):
            shift = {s: self.local.clean[s] - self.local.errors.get(s, 0.0) for s in self.local.cuts}
            shift[EMBED] = torch.zeros_like(shift[EMBED])
            local = self.local
            for number, d in enumerate(local.members):
                own = local.active.member == number
                pos_of, feature = local.active.pos[own], local.active.feature[own]
                for out, cut in enumerate(d.sites_out):
                    for part in torch.arange(len(pos_of), device=pos_of.device).split(2**16):
                        w = local.writing(number, out, pos_of[part], feature[part])
                        shift[cut].index_add_(0, pos_of[part], -w * local.active.value[own][part][:, None])
            with torch.no_grad():
                read = local.run({s: x[None] for s, x in shift.items()})
            self.offset = {s: x[0].float() - self.constant[s] for s, x in read.items()}
        return (r * self.offset[site][pos]).sum(-1)

    def edges(self) -> Edges:
        index, value, target = (x[: self.filled] for x in (self.index, self.value, self.target))
        kept = value != 0
        return Edges(index[kept].long(), target[:, None].expand_as(index)[kept], value[kept], self.totals)

    def _influence(self) -> Tensor:
        return flow.influence(self.edges(), self._start())

    def _start(self) -> Tensor:
        start = torch.zeros(self.n_sources + len(self.ids), dtype=torch.float64, device=self.probability.device)
        start[self.n_sources :] = self.probability.double()
        return start

    def graph(self, affine_error: float, settings: dict[str, Any]) -> AttributionGraph:
        """Selected features, and errors and tokens that something comes from."""
        edges, n = self.edges(), len(self.local.active)
        start, device = self._start(), self.probability.device
        keep = torch.ones(self.n_sources + len(self.ids), dtype=torch.bool, device=device)
        keep[:n] = self.done
        edges = edges.where(keep[edges.source])
        used = torch.zeros_like(keep).index_fill_(0, edges.source, True)
        first = self.sources.first_embedding
        keep[n:first] &= used[n:first]
        embedding, error = torch.zeros_like(keep), torch.zeros_like(keep)
        embedding[first : self.n_sources] = True
        error[n:first] = True
        replacement, completeness = flow.scores(edges, start, embedding=embedding, error=error)
        number = torch.cumsum(keep.long(), 0) - 1
        small = Edges(number[edges.source], number[edges.target], edges.weight, edges.total[keep])
        small = Edges(*(x.cpu() for x in (small.source, small.target, small.weight, small.total)))
        tokenizer = self.local.model.tokenizer
        ids = self.local.batch.ids[0].tolist()
        return AttributionGraph(
            nodes=tuple(self._node(i) for i in keep.nonzero()[:, 0].tolist()),
            edges=small,
            tokens=tuple(token_texts(ids, tokenizer)),
            prompt=" ".join(map(str, ids)) if tokenizer is None else str(tokenizer.decode(ids)),
            kept=flow.kept_share(edges, start),
            replacement=replacement,
            completeness=completeness,
            affine_error=affine_error,
            closure=self.closure,
            provenance=settings,
        )

    def _text(self, token: int) -> str:
        return token_texts([token], self.local.model.tokenizer)[0]

    def _node(self, i: int) -> Node:
        local, n = self.local, len(self.local.active)
        if i < n:
            member, pos, feature = (int(x[i]) for x in (local.active.member, local.active.pos, local.active.feature))
            site = local.members[member].site_in
            assert site is not None and site.first is not None  # checked when the local model was made
            return Node("feature", site.first, pos, str(site), feature, float(local.active.value[i]))
        if i >= self.n_sources:
            j = i - self.n_sources
            token = int(self.ids[j])
            return Node(
                "logit", local.n_layers, self.at, "logits", token, float(self.probability[j]), self._text(token)
            )
        site, pos = self.sources.place(i)
        if site == EMBED:
            token = int(local.batch.ids[0, pos])
            return Node("embedding", -1, pos, "embed", token, float(local.clean[EMBED][pos].norm()), self._text(token))
        assert site.first is not None  # cuts but embeddings are of a layer
        return Node("error", site.first, pos, str(site), 0, float(local.errors[site][pos].norm()))
