"""`Change`: from the clean to the other run, at one site, by features (sparse) and by what they leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.node_sites import NodeSite, whole
from interp.errors import TaskError, nearest
from interp.patching.case import Case
from interp.patching.places import Place
from interp.sites import Site

BASELINES = ("counterfactual", "zero")
CHUNK = 2**24  # numbers of directions in one product


@dataclass(frozen=True, eq=False)
class Change:
    """x' - x = sum over entries of delta w + rest, w what one unit of the entry's feature writes at its token.

    Attributes:
        row, pos, feature, delta, value: of each entry: prompt, column, feature, f' - f, and f on the clean prompt;
            those of real tokens at which f' is not f.
        rest: of the error node: all of x' - x that features do not carry (skip connections and constants included).
        total: x' - x at real tokens, 0 elsewhere.
        factor: of the directions, where the dictionary undoes a normalisation of the clean input; else 1.
    """

    row: Int[Tensor, " entry"]
    pos: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]
    delta: Float[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    rest: Float[Tensor, "batch pos d"]
    total: Float[Tensor, "batch pos d"]
    factor: Float[Tensor, "batch pos 1"]

    def written(self, place: NodeSite, entry: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """w of some entries, by number: what one unit of the feature writes at the entry's token."""
        if not len(entry):  # of a site without a dictionary too
            return self.rest.new_zeros(0, self.rest.shape[-1])
        return place.directions(self.feature[entry]).to(self.rest) * self.factor[self.row[entry], self.pos[entry]]

    def slopes(self, place: NodeSite, g: Float[Tensor, "batch pos d"]) -> Float[Tensor, " entry"]:
        """w . g at each entry: what one unit of the feature does, where g is the gradient at the site."""
        entries = torch.arange(len(self.row), device=g.device).split(max(1, CHUNK // g.shape[-1]))
        return torch.cat([(self.written(place, e) * g[self.row[e], self.pos[e]]).sum(-1) for e in entries])

    def error(self, g: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos"]:
        """rest . g at each token."""
        return (self.rest * g).sum(-1)


@dataclass(eq=False)
class Portion:
    """Some of the prompts: activations at every site and what changes there.

    Attributes:
        case: these prompts. first: number of the first in the task.
        acts: on the clean prompts, where nodes stand and where dictionaries read. entry: the stream entering layers.
        changes: by number of the site. grads: gradient of the metric, likewise, once they are taken.
    """

    case: Case
    first: int
    acts: Mapping[Site, Float[Tensor, "batch pos d"]]
    entry: Mapping[int, Tensor]
    changes: list[Change]
    grads: list[Tensor] = field(default_factory=list)

    def masks(self, places: list[Place]) -> list[Tensor]:
        """Real tokens of each place, [batch pos]."""
        return masks_at(self.case, self.first, places)


def masks_at(case: Case, first: int, places: list[Place]) -> list[Tensor]:
    """Real tokens of each place, [batch pos], where the case is of a task's prompts from number `first` on."""
    mask, rows = case.task.clean.mask, slice(first, first + len(case))
    cut = [place.part(rows, mask.shape[1]).mask for place in places]
    return [mask if own is None else mask & own.to(mask.device) for own in cut]


@torch.no_grad()
def portions(case: Case, sites: tuple[NodeSite, ...], *, baseline: str, batch_size: int) -> Iterator[Portion]:
    """The prompts a few at a time, each with what changes from the clean run to the baseline.

    Args:
        case: model and prompts.
        sites: where nodes stand.
        baseline: "counterfactual", the corrupted twin, or "zero", f' = 0 and e' = 0.
        batch_size: prompts of a portion.

    Raises:
        TaskError: an unknown baseline.
    """
    if baseline not in BASELINES:
        raise TaskError(f"unknown baseline {baseline!r}; {nearest(baseline, BASELINES)}")
    layers = sorted({s.site.first for s in sites if s.site.first is not None})
    streams = {i: Site("resid_pre", i) for i in layers}
    first = 0
    for part in case.batches(batch_size):
        own = activations(part, sites, part.task.clean, others=tuple(streams.values()))
        other = None if baseline == "zero" else whole(sites, activations(part, sites, part.task.corrupt))
        acts = whole(sites, own)
        changes = [change(s, acts, other, part.task.clean.mask) for s in sites]
        yield Portion(part, first, acts, {i: own[site].detach() for i, site in streams.items()}, changes)
        first += len(part)


def activations(case: Case, sites: tuple[NodeSite, ...], batch, *, others: tuple[Site, ...] = ()) -> dict[Site, Tensor]:
    """What stands at the sites and where their dictionaries read, from a run that ends at the last of them."""
    places = list(dict.fromkeys([*(s.site for s in sites), *(s.reads for s in sites), *others]))
    stop = max((s.first for s in places if s.first is not None), default=0)
    return dict(case.model.run(batch, capture=places, stop=stop).acts)


def change(place: NodeSite, own: Mapping[Site, Tensor], other: Mapping[Site, Tensor] | None, mask: Tensor) -> Change:
    """What changes at one site; to f' = e' = 0 without another run."""
    x_in, x = own[place.reads], own[place.site]
    f = place.encode(x_in)
    new = torch.zeros_like(f) if other is None else place.encode(other[place.reads])
    written, after = place.decode(f, x_in).to(x), place.decode(new, x_in).to(x)
    real = mask.to(x.device)[..., None]
    total = (after if other is None else other[place.site]) - x
    row, pos, feature = ((f != new) & real).nonzero().T
    value = f[row, pos, feature].to(x)
    return Change(
        row=row,
        pos=pos,
        feature=feature,
        delta=new[row, pos, feature].to(x) - value,
        value=value,
        rest=(total - (after - written)) * real,
        total=total * real,
        factor=place.factor(x_in).to(x),
    )
