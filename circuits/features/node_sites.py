"""`NodeSite`: a place where a feature circuit has nodes: features of a dictionary, and what it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.own_neurons import coordinates
from interp.dictionaries import Dictionaries, Dictionary, load
from interp.edits import Apply, Edit
from interp.errors import NotApplicable, SchemaError, nearest
from interp.model import Model
from interp.numerics import wide
from interp.sites import Site

Given = str | Dictionary | Dictionaries | Sequence[str | Dictionary | Dictionaries] | None
"""Dictionaries, or folders and hub ids of them (a text names several between commas); None for coordinates."""
ELSEWHERE = ("error", "none")
EMBED = Site("embed")
ORDER = (
    *("embed", "resid_pre", "attn_in", "z", "attn_out"),
    *("resid_mid", "mlp_in", "mlp_pre", "mlp_up", "mlp_post", "mlp_out", "resid_post"),
)
"""Kinds of site in the order in which a forward pass comes by."""
STANDS_FOR = {"z": "attn_out", "mlp_post": "mlp_out"}
"""Output of a part of which a dictionary of its inside stands for the whole."""


@dataclass(frozen=True, eq=False)
class NodeSite:
    """Where nodes stand: at `site` the activation is x = decode(f) + e, f the features and e the error node.

    Attributes:
        site: where the features write. dictionary: None where e is all there is.
    """

    site: Site
    dictionary: Dictionary | None = None

    @property
    def reads(self) -> Site:
        """Where the dictionary reads, another site for a transcoder."""
        return self.site if self.dictionary is None or self.dictionary.site_in is None else self.dictionary.site_in

    @property
    def n_features(self) -> int:
        """Features; 0 without a dictionary."""
        return 0 if self.dictionary is None else self.dictionary.n_features

    @property
    def size(self) -> list[float]:
        """Features and the length of the decoder: one dictionary from another."""
        d = self.dictionary
        return [0.0, 0.0] if d is None else [float(d.n_features), float(d.w_dec.double().norm())]

    @property
    def depth(self) -> tuple[int, int]:
        """Place in the forward pass."""
        return (-1 if self.site.first is None else self.site.first, ORDER.index(self.site.kind))

    def encode(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos feature"]:
        """Features of what stands where it reads."""
        return x.new_zeros(*x.shape[:2], 0) if self.dictionary is None else self.dictionary.encode(x)

    def decode(
        self, f: Float[Tensor, "batch pos feature"], x: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d2"]:
        """What features write, constants included; 0 without a dictionary."""
        return torch.zeros_like(x) if self.dictionary is None else self.dictionary.decode(f, x, out=0)

    def directions(self, feature: Int[Tensor, " n"]) -> Float[Tensor, "n d2"]:
        """What one unit of each feature writes, before a normalisation is undone."""
        assert self.dictionary is not None  # features are of a dictionary
        return self.dictionary.directions(feature)

    def factor(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos 1"]:
        """By which directions are multiplied where a normalisation of the input x is undone; 1 elsewhere."""
        d, one = self.dictionary, x.new_ones(*x.shape[:2], 1)
        if d is None or not d.normalisation.undo or d.normalisation.kind == "none":
            return one
        return one * d.normalisation.apply(x)[2]

    def to(self, device: torch.device) -> NodeSite:
        """The same on another device."""
        return NodeSite(self.site, None if self.dictionary is None else self.dictionary.to(device))


def node_sites(model: Model, dictionaries: Given, *, elsewhere: str = "error") -> tuple[NodeSite, ...]:
    """Where the nodes of a feature circuit stand, in the order of the forward pass.

    One for each dictionary. With `elsewhere="error"` also the embedding and the output of every attention and MLP that
    no dictionary stands for, as a single error node each; the stream between layers, all of which would be one node,
    has none there. Without dictionaries: the coordinates of attention, MLP and stream of every layer as features.

    Raises:
        SchemaError: two dictionaries that write at one site, one without sites, or an unknown `elsewhere`.
        NotApplicable: a dictionary of single heads, or one that writes at several sites, or at one without gradient.
    """
    if elsewhere not in ELSEWHERE:
        raise SchemaError(f"unknown elsewhere {elsewhere!r}; {nearest(elsewhere, ELSEWHERE)}")
    members = dictionaries_of(model, dictionaries).members
    sites: dict[Site, NodeSite] = {}
    for d in members:
        if len(d.sites_out) != 1:
            raise NotApplicable(
                f"{d!r} writes at {len(d.sites_out)} sites, and a node stands at one: take `attribution_graph`"
            )
        site = d.sites_out[0]
        for place in (d.site_in or site, site):
            if place.kind not in ORDER or place.head is not None or (place.first != place.last):
                raise NotApplicable(f"{place}: nodes stand at a whole activation, one of {', '.join(ORDER)}")
        model.info.layers_of(site)  # refuses a layer that there is not
        sites[site] = NodeSite(site, d)
    if elsewhere == "error":
        covered = {Site(STANDS_FOR.get(s.kind, s.kind), s.first) for s in sites}
        mlps = [i for i in range(model.info.n_layers) if "mlp_out" not in model.reads(i).missing]
        outputs = [Site("attn_out", i) for i in model.info.attention_layers] + [Site("mlp_out", i) for i in mlps]
        sites |= {site: NodeSite(site) for site in (EMBED, *outputs) if site not in covered}
    return tuple(s.to(model.device) for s in sorted(sites.values(), key=lambda s: s.depth))


def dictionaries_of(model: Model, dictionaries: Given) -> Dictionaries:
    """The dictionaries meant, loaded and checked against the model where they are named.

    Raises:
        SchemaError: something that is none, or nothing.
        ModelLoadError: files that are missing, or of another model.
    """
    if dictionaries is None:
        return coordinates(model)
    if isinstance(dictionaries, Dictionaries):
        return dictionaries
    parts = [dictionaries] if isinstance(dictionaries, Dictionary) else dictionaries
    if isinstance(parts, str):
        parts = [part.strip() for part in parts.split(",")]
    members: list[Dictionary] = []
    for part in parts:
        if not isinstance(part, str | Dictionary | Dictionaries):
            raise SchemaError(f"dictionaries: expected Dictionary, Dictionaries or where they lie; got {part!r:.40}")
        members += (load(part, model) if isinstance(part, str) else part).members
    if not members:
        raise SchemaError("no dictionaries; leave the argument out for coordinates as features")
    for d in members:
        if d.site_in is None or not d.sites_out:
            raise SchemaError(f"{d!r} does not say where it belongs; give its sites: dictionary.at('L3.resid_post')")
    outs = [d.sites_out[0] for d in members]
    for site in outs:
        if outs.count(site) > 1:
            raise SchemaError(f"two dictionaries write at {site}; a feature circuit has one for each site")
    return Dictionaries(tuple(members))


def flat(x: Tensor) -> Float[Tensor, "batch pos d"]:
    """Heads side by side, half precision as float32."""
    return wide(x.flatten(2))


class Passage:
    """What one forward pass has before (`pre`) and behind (`post`) each place, where `change` of it goes on.

    `change(i, passage)` gives what stands at node site i from then on, None for what comes; it may look at what the
    pass has been by already.
    """

    def __init__(
        self,
        sites: Sequence[NodeSite],
        change: Callable[[int, Passage], Tensor | None],
        others: Sequence[Site] = (),
    ) -> None:
        self.sites, self.change = sites, change
        self.pre: dict[Site, Tensor] = {}
        self.post: dict[Site, Tensor] = {}
        self.number = {s.site: i for i, s in enumerate(sites)}
        self.places = list(dict.fromkeys([*self.number, *(s.reads for s in sites), *others]))

    @property
    def edits(self) -> list[Edit]:
        """One at each place."""
        return [Apply(site, self._at(site)) for site in self.places]

    def read(self, i: int) -> Float[Tensor, "batch pos d"]:
        """What the dictionary of site i reads: at its own site what comes, elsewhere what goes on from there."""
        own = self.sites[i]
        return (self.pre if own.reads == own.site else self.post)[own.reads]

    def _at(self, site: Site) -> Callable[[Tensor], Tensor]:
        def pass_on(x: Tensor) -> Tensor:
            x = x.clone()  # so that gradients come back to this tensor and no view of it
            self.pre[site] = self.post[site] = flat(x)
            new = self.change(self.number[site], self) if site in self.number else None
            if new is None:
                # attached to what goes on, so that a reader of this site sees what is behind it
                return x
            self.post[site] = new
            return new.reshape(x.shape).to(x.dtype)

        return pass_on


def whole(sites: Sequence[NodeSite], acts: Mapping[Site, Tensor]) -> dict[Site, Float[Tensor, "batch pos d"]]:
    """Activations where nodes stand and where dictionaries read."""
    places = dict.fromkeys([*(s.site for s in sites), *(s.reads for s in sites)])
    return {site: flat(acts[site].detach()) for site in places}
