"""Sets of nodes judged: what the metric is where all other features and error nodes are taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.evaluation._faithfulness import ABLATIONS, Key, group_keys, reference_groups
from circuits.features.node_changes import activations, masks_at
from circuits.features.node_effects import ERROR, Nodes
from circuits.features.node_sites import NodeSite, Passage, whole
from interp.errors import TaskError, nearest
from interp.numerics import wide
from interp.patching.case import Case
from interp.patching.places import Place
from interp.patching.readout import at_end, value_at_end
from interp.sites import Site
from interp.tasks import PromptTask

Keep = list[Bool[np.ndarray, "_ _"]]
"""For each site [place feature]: which are kept at each place; error nodes in the last column."""
ERRORS = ("nodes", "kept", "removed")
Removed = Callable[[int], tuple[Tensor, Tensor]]
"""What stands in the place of features [batch pos feature] and errors [batch pos d] of a site."""


@dataclass(frozen=True, eq=False)
class NodeSetVerdict:
    """The metric of each prompt under sets of nodes.

    Attributes:
        full: of the model. empty: with every node taken out.
        values: with the sets alone. complements: with all
            but their features; error nodes stay, since some of them are all that comes by.
    """

    full: Float[np.ndarray, " prompt"]
    empty: Float[np.ndarray, " prompt"]
    values: Float[np.ndarray, "set prompt"]
    complements: Float[np.ndarray, "set prompt"]

    @property
    def faithfulness(self) -> Float[np.ndarray, " set"]:
        """(mean m(C) - mean m(0)) / (mean m(M) - mean m(0))."""
        return share(self.values.mean(1), self.full.mean(), self.empty.mean())

    @property
    def completeness(self) -> Float[np.ndarray, " set"]:
        """1 - faithfulness of the complement: 1 where the model without these features is as without any node."""
        return 1 - share(self.complements.mean(1), self.full.mean(), self.empty.mean())


def share(value: np.ndarray, full: np.ndarray | float, empty: np.ndarray | float) -> Float[np.ndarray, "*any"]:
    """(value - empty) / (full - empty)."""
    return np.asarray((value - empty) / (full - empty))


def masks_of(sites: Sequence[NodeSite], n_places: int, nodes: Nodes) -> Keep:
    """Nodes as masks."""
    masks = [np.zeros((n_places, s.n_features + 1), dtype=bool) for s in sites]
    for site, place, feature in zip(nodes.site, nodes.place, nodes.feature, strict=True):
        masks[site][place, feature] = True  # the last column for ERROR, -1
    return masks


def _treated(sites: Sequence[NodeSite], keep: Keep, errors: str, *, alone: bool = True) -> Keep:
    """Error nodes as `errors` says; where they are `alone`, without a dictionary, as they are."""
    masks = [mask.copy() for mask in keep]
    for own, mask in zip(sites, masks, strict=True):
        if errors != "nodes" and not (alone and own.dictionary is None):
            mask[:, ERROR] = errors == "kept"
    return masks


def random_nodes(chosen: Nodes, candidates: Nodes, *, seed: int) -> Nodes:
    """As many features at each site and place, drawn from those that change there; error nodes are the same."""
    rng = np.random.default_rng(seed)
    parts = [np.flatnonzero(candidates.feature == ERROR)]
    errors = {(s, p) for s, p, f in zip(chosen.site, chosen.place, chosen.feature, strict=True) if f == ERROR}
    parts = [np.array([i for i in parts[0] if (candidates.site[i], candidates.place[i]) in errors], dtype=int)]
    features = chosen.take(np.flatnonzero(chosen.feature != ERROR))
    for site, place in sorted({*zip(features.site.tolist(), features.place.tolist(), strict=True)}):
        pool = candidates.where(site, place)
        pool = pool[candidates.feature[pool] != ERROR]
        parts.append(rng.choice(pool, len(features.where(site, place)), replace=False))
    return candidates.take(np.concatenate(parts))


@torch.no_grad()
def judge(
    case: Case,
    sites: tuple[NodeSite, ...],
    places: list[Place],
    sets: Sequence[Keep],
    *,
    errors: str = "nodes",
    ablation: str = "mean",
    reference: PromptTask | None = None,
    batch_size: int = 16,
) -> NodeSetVerdict:
    """The metric with sets of nodes alone and with all but them; two passes for a set and portion.

    At each site features that are kept are what the pass itself makes of what comes, and so is the error; in the place
    of others stands, position by position, the mean over the corrupted prompts of the reference that are of the same
    template and length ("mean"), the corrupted twin's ("resample"), or 0 ("zero"). Error nodes of sites with a
    dictionary are nodes like others ("nodes"), all stay in every run ("kept"), or in none ("removed").

    Raises:
        TaskError: an unknown ablation or way with errors, or prompts of a template or length that the reference lacks.
    """
    if ablation not in ABLATIONS:
        raise TaskError(f"unknown ablation {ablation!r}; {nearest(ablation, ABLATIONS)}")
    if errors not in ERRORS:
        raise TaskError(f"unknown errors {errors!r}; {nearest(errors, ERRORS)}")
    nothing = [np.zeros((len(places), s.n_features + 1), dtype=bool) for s in sites]
    without = [_treated(sites, [~mask for mask in own], "kept", alone=False) for own in sets]
    every = [*(_treated(sites, own, errors) for own in (nothing, *sets)), *without]
    parts, first = [], 0
    for part, removed in _removals(case, sites, ablation, reference, batch_size):
        at = torch.stack(masks_at(part, first, places))
        parts.append(torch.stack([_value(part, sites, at, keep, removed) for keep in every]))
        first += len(part)
    values = torch.cat(parts, 1).double().cpu().numpy()
    n = len(sets)
    return NodeSetVerdict(case.clean.double().cpu().numpy(), values[0], values[1 : n + 1], values[n + 1 :])


def _value(
    case: Case, sites: tuple[NodeSite, ...], at: Bool[Tensor, "place batch pos"], keep: Keep, removed: Removed
) -> Float[Tensor, " batch"]:
    """The metric of each prompt where what is not kept is removed."""

    def change(i: int, passage: Passage) -> Tensor:
        own, mask = sites[i], torch.from_numpy(keep[i]).to(at.device)
        inside = torch.einsum("kbp,kf->bpf", at.float(), mask.float()) > 0
        x, read = passage.pre[own.site], passage.read(i)
        f = own.encode(read)
        f_removed, e_removed = removed(i)
        e = torch.where(inside[..., ERROR, None], x - own.decode(f, read), e_removed.to(x))
        return own.decode(torch.where(inside[..., :ERROR], f, f_removed.to(f)), read) + e

    last = Site("resid_post", case.model.info.n_layers - 1)
    passage = Passage(sites, change, others=[last])
    case.model.run(case.task.clean, edits=passage.edits, stop=last.first)
    end = at_end(case, passage.post[last])
    return value_at_end(case, end.to(getattr(torch, case.model.info.dtype)))


def _removals(
    case: Case, sites: tuple[NodeSite, ...], ablation: str, reference: PromptTask | None, batch_size: int
) -> Iterator[tuple[Case, Removed]]:
    """Prompts in portions, each with what stands for removed nodes."""
    means: dict[Key, list[tuple[Tensor, Tensor]]] = {}
    if ablation == "mean":
        source = reference or case.task
        for key, rows in reference_groups(case.task, source).items():
            own = Case(case.model, source.select(rows).to(case.task.clean.ids.device), case.metric)
            means[key] = _means(own, sites, batch_size)
    for part in case.batches(batch_size):
        if ablation == "mean":
            yield part, _of_groups([means[key] for key in group_keys(part.task)], part.task.clean.ids.shape[1])
        else:
            yield part, _of_twins(part, sites, zero=ablation == "zero")


def _means(case: Case, sites: tuple[NodeSite, ...], batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Means over corrupted prompts of one length, [pos feature] and [pos d] for each site."""
    total: list[list[Tensor]] = []
    for part in case.batches(batch_size):
        own = [[wide(x).sum(0) for x in pair] for pair in map(_of_twins(part, sites), range(len(sites)))]
        total = [[a + b for a, b in zip(*both, strict=True)] for both in zip(total, own, strict=True)] if total else own
    return [(f / len(case), e / len(case)) for f, e in total]


def _of_groups(groups: list[list[tuple[Tensor, Tensor]]], width: int) -> Removed:
    def removed(i: int) -> tuple[Tensor, Tensor]:
        both = []
        for which in (0, 1):
            rows = [own[i][which] for own in groups]
            both.append(torch.stack([torch.nn.functional.pad(r, (0, 0, 0, width - len(r))) for r in rows]))
        return both[0], both[1]

    return removed


def _of_twins(case: Case, sites: tuple[NodeSite, ...], *, zero: bool = False) -> Removed:
    acts = whole(sites, activations(case, sites, case.task.corrupt))

    def removed(i: int) -> tuple[Tensor, Tensor]:
        own = sites[i]
        f = own.encode(acts[own.reads])
        if zero:
            return torch.zeros_like(f), torch.zeros_like(acts[own.site])
        return f, acts[own.site] - own.decode(f, acts[own.reads])

    return removed
