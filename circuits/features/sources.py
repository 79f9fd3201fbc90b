"""What each source changes, from gradients where it writes: all sources of a target at once, or chosen pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features.feature_graph import Node, node_name
from circuits.features.local import EMBED, LocalModel
from interp.errors import SchemaError
from interp.sites import Site

CHUNK = 2**22  # numbers of decoder directions in one product
TOKENS = 64  # positions in one product at most

Target = tuple[Site, int, Tensor]


@dataclass(frozen=True, eq=False)
class _Block:
    """Neighbouring positions of one member: features of each, filled up to one length."""

    member: int
    first: int
    number: Int[Tensor, "pos slot"]
    real: Bool[Tensor, "pos slot"]


class Sources:
    """Sources of a held model, numbered: active features, errors by site and position, embeddings by position."""

    def __init__(self, local: LocalModel) -> None:
        self.local, self.n_features = local, len(local.active)
        self.sites = list(local.errors)
        self.first_embedding = self.n_features + len(self.sites) * local.n_pos
        self.n = self.first_embedding + local.n_pos
        self.blocks = [block for i in range(len(local.members)) for block in self._blocks(i)]

    def numbers(self, nodes: Sequence[Node]) -> Int[Tensor, " node"]:
        """Which source each node is; -1 for logits.

        Raises:
            SchemaError: a feature that is not active here: the graph is of another prompt, model or dictionary.
        """
        a, n_pos = self.local.active, self.local.n_pos
        sites = [str(d.site_in) for d in self.local.members]
        columns = zip(a.member.tolist(), a.pos.tolist(), a.feature.tolist(), strict=True)
        index = {(sites[m], p, f): i for i, (m, p, f) in enumerate(columns)}
        first = {str(site): self.n_features + i * n_pos for i, site in enumerate([*self.sites, EMBED])}
        out = []
        for node in nodes:
            key = (node.site, node.position, node.number)
            if (node.kind == "feature" and key not in index) or (node.kind == "error" and node.site not in first):
                raise SchemaError(f"{node.name} is not active; the graph is of another prompt, model or dictionary")
            place = {"logit": -1, "feature": index.get(key, -1)}.get(node.kind)
            out.append(first[node.site] + node.position if place is None else place)
        return torch.tensor(out, dtype=torch.long, device=a.pos.device)

    def targets(self, nodes: Sequence[Node]) -> list[Target]:
        """(site, position, direction) at which each node reads, features and logits only."""
        numbers, local, a = self.numbers(nodes), self.local, self.local.active
        out: list[Target] = []
        for node, i in zip(nodes, numbers, strict=True):
            if node.kind == "logit":
                r = local.logit_reading(torch.tensor([node.number]), node.position)[0]
                out.append((local.last, node.position, r))
            else:
                member = int(a.member[i])
                site = local.members[member].site_in
                assert site is not None  # checked when the local model was made
                r = local.reading(member, a.pos[i][None], a.feature[i][None])[0]
                out.append((site, node.position, r))
        return out

    def place(self, source: int) -> tuple[Site, int]:
        """Site and position of an error or an embedding."""
        block, pos = divmod(source - self.n_features, self.local.n_pos)
        return (EMBED if block == len(self.sites) else self.sites[block]), pos

    def name(self, source: int) -> str:
        """Name of its node in a graph."""
        a, local = self.local.active, self.local
        if source < self.n_features:
            site = local.members[int(a.member[source])].site_in
            return node_name("feature", str(site), int(a.feature[source]), int(a.pos[source]))
        site, pos = self.place(source)
        if site == EMBED:
            return node_name("embedding", str(site), int(local.batch.ids[0, pos]), pos)
        return node_name("error", str(site), 0, pos)

    def vectors(self, source: Int[Tensor, " n"], site: Site) -> Float[Tensor, "n d_model"]:
        """What each source writes at a cut; 0 where it writes elsewhere."""
        local, a = self.local, self.local.active
        out = torch.zeros(len(source), local.clean[site].shape[-1], device=source.device)
        for member, d in enumerate(local.members):
            own = (source < self.n_features).nonzero()[:, 0]
            own = own[a.member[source[own]] == member]
            for k, cut in enumerate(d.sites_out):
                if cut == site and len(own):
                    i = source[own]
                    out[own] += local.writing(member, k, a.pos[i], a.feature[i]) * a.value[i][:, None]
        block, pos = (source - self.n_features) // local.n_pos, (source - self.n_features) % local.n_pos
        for i, cut in enumerate([*self.sites, EMBED]):
            own = (source >= self.n_features) & (block == i)
            if cut == site:
                out[own] = (local.clean[EMBED] if cut == EMBED else local.errors[cut])[pos[own]]
        return out

    def positions(self, source: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Position of each source."""
        if not self.n_features:
            return source % self.local.n_pos
        own = self.local.active.pos[source.clamp(max=self.n_features - 1)]
        return torch.where(source < self.n_features, own, (source - self.n_features) % self.local.n_pos)

    def pairs(
        self, source: Int[Tensor, " n"], row: Int[Tensor, " n"], grads: Mapping[Site, Float[Tensor, "batch pos d"]]
    ) -> Float[Tensor, " n"]:
        """What each source writes times the gradient where it writes, in one row for each."""
        pos, total = self.positions(source), torch.zeros(len(source), device=source.device)
        for site, g in grads.items():
            total += (self.vectors(source, site) * g[row, pos]).sum(-1)
        return total

    def effects(self, grads: Mapping[Site, Float[Tensor, "batch pos d"]]) -> Float[Tensor, "batch source"]:
        """What every source writes times the gradient where it writes, in every row."""
        local, a = self.local, self.local.active
        total = grads[EMBED].new_zeros(len(grads[EMBED]), self.n)
        for block in self.blocks:
            number, last = block.number[block.real], block.first + len(block.number)
            for k, site in enumerate(local.members[block.member].sites_out):
                w = local.writing(block.member, k, a.pos[number], a.feature[number]) * a.value[number][:, None]
                wide = w.new_zeros(*block.number.shape, w.shape[-1])
                wide[block.real] = w
                product = grads[site][:, block.first : last].transpose(0, 1) @ wide.mT  # pos batch slot
                total[:, number] += product.transpose(0, 1)[:, block.real]
        for i, site in enumerate([*self.sites, EMBED]):
            x = local.clean[EMBED] if site == EMBED else local.errors[site]
            first = self.n_features + i * local.n_pos
            total[:, first : first + local.n_pos] = torch.einsum("bpd,pd->bp", grads[site], x)
        return total

    def _blocks(self, member: int) -> list[_Block]:
        local = self.local
        own = (local.active.member == member).nonzero()[:, 0]
        pos = local.active.pos[own]
        counts = torch.bincount(pos, minlength=local.n_pos)
        start = counts.cumsum(0) - counts
        blocks, first, d = [], 0, local.members[member].d_out
        while first < local.n_pos:
            most, last = 0, first
            while last < local.n_pos and last - first < TOKENS:
                wider = max(most, int(counts[last]))
                if last > first and wider * (last + 1 - first) * d > CHUNK:
                    break
                most, last = wider, last + 1
            slot = torch.arange(most, device=pos.device)
            real = slot < counts[first:last, None]
            index = (start[first:last, None] + slot).clamp(max=max(len(own) - 1, 0))
            if most:
                blocks.append(_Block(member, first, own[index], real))
            first = last
        return blocks
