"""`Dictionary`: a sparse autoencoder or transcoder as a frozen value; `Dictionaries`: several, used together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.activations import Activation, GroupMax, Normalisation, ReLU
from interp.errors import SchemaError
from interp.sites import Site


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Features of activations at one site, and what they write there or elsewhere.

    With n(x) the normalised input, c = `b_dec` where `centred` and 0 elsewhere:

        f = activation((n(x) - c) W_enc, b_enc)        x_hat = n^-1(f W_dec + b_dec) + x skip

    A sparse autoencoder writes where it reads; a transcoder writes at another site; a layer of a cross-layer transcoder
    at several, W_dec then with an axis for them, b_dec and skip at the first of them alone.

    Attributes:
        w_enc: [d_in feature].
        w_dec: [feature d_out], or [feature out d_out] for several sites.
        b_enc: [feature]; of a gated dictionary, the bias of magnitudes.
        b_dec: [d_out].
        activation: one of `interp.dictionaries.activations`, with its k or threshold.
        site_in: where it reads; None where the file does not say.
        sites_out: where it writes, in the order of W_dec; empty where the file does not say.
        normalisation: of x, and whether it is undone.
        centred: whether b_dec is subtracted from the input.
        scaled: whether features are in units of their decoder's length: (a + b) |W_dec| before the activation, divided
            by |W_dec| on the way out.
        skip: [d_in d_out], None without.
        format: which layout it was read from, "" for none.
        claims: what the file says of itself: "l0", "fve" (fraction of variance explained), "loss_recovered".
        metadata: what else the file's configuration holds.

    Raises:
        SchemaError: shapes that do not go together, or numbers that are none.
    """

    w_enc: Float[Tensor, "d_in feature"]
    w_dec: Float[Tensor, "feature *out d_out"]
    b_enc: Float[Tensor, " feature"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation = field(default_factory=ReLU)
    site_in: Site | None = None
    sites_out: tuple[Site, ...] = ()
    normalisation: Normalisation = field(default_factory=Normalisation)
    centred: bool = False
    scaled: bool = False
    skip: Float[Tensor, "d_in d_out"] | None = None
    format: str = ""
    claims: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every shape, that all numbers are finite, and that the parts go together."""
        _check_shapes(self)
        for name, x in self.tensors.items():
            if not x.is_floating_point():
                raise SchemaError(f"{name} is of {x.dtype}; floating-point numbers are needed")
            bad = int((~torch.isfinite(x)).sum())
            if bad:
                raise SchemaError(f"{name} has {bad} of {x.numel()} numbers that are NaN or infinite")

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.w_enc.shape[0]

    @property
    def n_features(self) -> int:
        """Features."""
        return self.w_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.w_dec.shape[-1]

    @property
    def site_out(self) -> Site | None:
        """Where it writes first."""
        return self.sites_out[0] if self.sites_out else None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by name."""
        own = {name: getattr(self, name) for name in ("w_enc", "w_dec", "b_enc", "b_dec")}
        own |= {} if self.skip is None else {"skip": self.skip}
        return own | self.activation.tensors

    @property
    def members(self) -> tuple[Dictionary, ...]:
        """Itself: what `Dictionaries` has several of."""
        return (self,)

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch2 feature"]:
        """Features [... feature] of activations [... d_in], or [... head d_head] of a site with heads.

        Raises:
            SchemaError: another width.
        """
        return self._encode(self._flat(x))

    def decode(
        self,
        features: Float[Tensor, "*batch feature"],
        x: Float[Tensor, "*batch2 d"] | None = None,
        *,
        out: int | None = None,
    ) -> Float[Tensor, "*batch3 d_out"]:
        """What features write, [... (out) d_out]; `x`, what they were encoded from, is for the skip and norms undone.

        `out`: at which of several sites, by number; None for all of them.

        Raises:
            SchemaError: `x` is needed and missing.
        """
        if self.scaled:
            features = features / self._lengths
        crossing = self.w_dec.ndim == 3
        if crossing and out is None:
            return torch.stack([self.decode(features, x, out=i) for i in range(self.w_dec.shape[1])], dim=-2)
        y = features @ (self.w_dec[:, out] if crossing else self.w_dec)
        if out:  # of several sites, the first has the constants
            return y
        y = y + self.b_dec
        undo = self.normalisation.undo and self.normalisation.kind != "none"
        if x is None and (undo or self.skip is not None):
            raise SchemaError("decoding needs the input as well: a skip connection, or a normalisation to undo")
        if x is not None and (undo or self.skip is not None):
            x = self._flat(x)
            if undo:
                _, shift, factor = self.normalisation.apply(x)
                y = y * factor + shift
            if self.skip is not None:
                y = y + x @ self.skip
        return y

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch2 d2"]:
        """decode(encode(x)), in the shape of x where it writes what it reads."""
        out = self.decode(self.encode(x), x)
        return out.reshape(x.shape) if out.ndim != x.ndim and out.numel() == x.numel() else out

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch2 d2"]:
        """As `forward`."""
        return self.forward(x)

    def directions(self, feature: int | Sequence[int] | Tensor, *, out: int = 0) -> Float[Tensor, "*feature d_out"]:
        """What one unit of a feature writes at its site of number `out`, [d_out], or [feature d_out] for several.

        A normalisation of the input that is undone on the way out is not: it is another for every input.
        """
        rows = self.w_dec[feature] if self.w_dec.ndim == 2 else self.w_dec[feature, out]
        return rows / rows.norm(dim=-1, keepdim=True) if self.scaled else rows

    def at(self, site_in: Site | str, *sites_out: Site | str) -> Dictionary:
        """The same dictionary with its sites said; without `sites_out` it writes where it reads."""
        places = [Site.parse(s) if isinstance(s, str) else s for s in (site_in, *sites_out)]
        return replace(self, site_in=places[0], sites_out=tuple(places[1:] or places[:1]))

    def folded(self) -> Dictionary:
        """The same dictionary with the scale of its input in the weights: s W_enc, W_dec / s, b_dec / s.

        Raises:
            SchemaError: features in units of their decoder's length, whose order the scale is part of.
        """
        s, undo = self.normalisation.scale, self.normalisation.undo
        if self.normalisation.kind != "scale" or s == 1.0:
            return self
        if self.scaled or (self.centred and not undo):
            raise SchemaError("the scale of the input cannot be folded into these weights")
        out = {"w_dec": self.w_dec / s, "b_dec": self.b_dec / s} if undo else {}
        return replace(self, w_enc=self.w_enc * s, **out, normalisation=Normalisation())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """The same dictionary on another device, in another dtype."""
        names = ("w_enc", "w_dec", "b_enc", "b_dec", "skip")
        moved = {n: x.to(device=device, dtype=dtype) for n in names if (x := getattr(self, n)) is not None}
        return replace(self, **moved, activation=self.activation.to(device, dtype))

    def __repr__(self) -> str:
        """One line: kind, sizes, sites."""
        kind = "transcoder" if self.writes_elsewhere else "sparse autoencoder"
        sites = f"{self.site_in or '?'}" + (f" -> {', '.join(map(str, self.sites_out))}" * self.writes_elsewhere)
        return f"<Dictionary: {kind}, {self.n_features} features, {self.activation.name}, d {self.d_in}, {sites}>"

    @property
    def writes_elsewhere(self) -> bool:
        """Whether it is a transcoder: its sites differ, it has a skip connection, or several sites to write to."""
        return self.skip is not None or self.w_dec.ndim == 3 or self.sites_out not in ((), (self.site_in,))

    @property
    def _lengths(self) -> Tensor:
        return self.w_dec.norm(dim=-1)

    def _encode(self, x: Tensor) -> Tensor:
        n, _, _ = self.normalisation.apply(x)
        a, b = (n - self.b_dec if self.centred else n) @ self.w_enc, self.b_enc
        if self.scaled:
            a, b = a * self._lengths, b * self._lengths
        return self.activation(a, b)

    def _flat(self, x: Tensor) -> Tensor:
        x = x.to(self.w_enc.dtype)
        if x.shape[-1] == self.d_in:
            return x
        if x.ndim > 1 and x.shape[-1] * x.shape[-2] == self.d_in:
            return x.flatten(-2)
        raise SchemaError(f"activations of shape {tuple(x.shape)} for a dictionary that reads vectors of {self.d_in}")


@dataclass(frozen=True, eq=False)
class Dictionaries:
    """Dictionaries of one model that are used together: transcoders of all layers, or a cross-layer transcoder.

    What members write to one site is summed. Features are numbered within each member.

    Raises:
        SchemaError: none, a member without sites, or two that read one site.
    """

    members: tuple[Dictionary, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the sites."""
        if not self.members:
            raise SchemaError("no dictionaries")
        sites = [d.site_in for d in self.members]
        if None in sites or not all(d.sites_out for d in self.members):
            raise SchemaError("a set of dictionaries needs the sites of each; give them with Dictionary.at(...)")
        if len(set(sites)) < len(sites):
            raise SchemaError(f"two dictionaries of a set read one site: {', '.join(map(str, sites))}")

    def __len__(self) -> int:
        """Members."""
        return len(self.members)

    def __iter__(self) -> Iterator[Dictionary]:
        """Members in order."""
        return iter(self.members)

    def __getitem__(self, index: int) -> Dictionary:
        """Member by number."""
        return self.members[index]

    @property
    def sites_out(self) -> tuple[Site, ...]:
        """Sites that any member writes to, in order of first mention."""
        return tuple(dict.fromkeys(site for d in self.members for site in d.sites_out))

    def encode(self, x: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
        """Features [... feature] of each member, of activations [... d_in] for each."""
        return tuple(d.encode(x_of) for d, x_of in zip(self.members, x, strict=True))

    def decode(self, features: Sequence[Tensor], x: Sequence[Tensor] | Tensor) -> dict[Site, Tensor]:
        """What is written to each site, [... d_out], the sum over members that write there."""
        total: dict[Site, Tensor] = {}
        for d, f, x_of in zip(self.members, features, x, strict=True):
            out = d.decode(f, x_of)
            for i, site in enumerate(d.sites_out):
                part = out if d.w_dec.ndim == 2 else out[..., i, :]
                total[site] = total[site] + part if site in total else part
        return {site: total[site] for site in self.sites_out}

    def forward(self, x: Sequence[Tensor] | Tensor) -> dict[Site, Tensor]:
        """decode(encode(x)) by site."""
        return self.decode(self.encode(x), x)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dictionaries:
        """The same dictionaries on another device, in another dtype."""
        return replace(self, members=tuple(d.to(device, dtype) for d in self.members))

    def __repr__(self) -> str:
        """One line: how many, sizes, sites."""
        crossing = any(d.w_dec.ndim == 3 for d in self.members)
        kind = "cross-layer transcoder" if crossing else f"{len(self)} dictionaries"
        features = sum(d.n_features for d in self.members)
        return f"<Dictionaries: {kind}, {features} features, {self.members[0].site_in} ... {self.members[-1].site_in}>"


def member_of(dictionary: Dictionary | Dictionaries, member: int) -> Dictionary:
    """One dictionary of a set, by number.

    Raises:
        SchemaError: out of range.
    """
    if not 0 <= member < len(dictionary.members):
        raise SchemaError(f"member {member} is out of range; there are {len(dictionary.members)}")
    return dictionary.members[member]


def _check_shapes(d: Dictionary) -> None:
    for name, ndims in (("w_enc", (2,)), ("w_dec", (2, 3)), ("b_enc", (1,)), ("b_dec", (1,))):
        x = getattr(d, name)
        if not isinstance(x, Tensor) or x.ndim not in ndims or not x.numel():
            what = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            axes = {"w_enc": "[d_in feature]", "w_dec": "[feature (out) d_out]", "b_enc": "[feature]"}.get(
                name, "[d_out]"
            )
            raise SchemaError(f"{name} is {axes}; got {what}")
    n, width = d.w_enc.shape[1], d.w_dec.shape[-1]
    expected: dict[str, tuple[int, ...]] = {"b_enc": (n,), "b_dec": (width,)}
    expected |= {} if d.skip is None else {"skip": (d.d_in, width)}
    expected |= {name: (n,) for name, x in d.activation.tensors.items() if x.ndim}
    if d.w_dec.shape[0] != n:
        raise SchemaError(f"w_dec has {d.w_dec.shape[0]} features and w_enc {n}")
    for name, shape in expected.items():
        if tuple(d.tensors[name].shape) != shape:
            raise SchemaError(f"{name} has shape {list(d.tensors[name].shape)}; expected {list(shape)}")
    k = getattr(d.activation, "k", None)
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n):
        raise SchemaError(f"{d.activation.name}: k is {k!r}; expected 1 to {n}, the number of features")
    if isinstance(d.activation, GroupMax) and n % d.activation.k:
        raise SchemaError(f"{d.activation.name}: {n} features do not fall into {d.activation.k} groups of one size")
    if (d.centred or d.normalisation.undo and d.normalisation.kind != "none") and width != d.d_in:
        raise SchemaError(f"it reads {d.d_in} and writes {width} wide: its input cannot be centred by b_dec")
    if d.scaled and not bool((d.w_dec.norm(dim=-1) > 0).all()):
        raise SchemaError("features in units of their decoder's length, and some decoder is 0")
    if d.scaled and d.w_dec.ndim == 3:
        raise SchemaError("features in units of their decoder's length need one decoder, not several")
    if d.sites_out and (d.w_dec.shape[1] if d.w_dec.ndim == 3 else 1) != len(d.sites_out):
        raise SchemaError(f"w_dec has shape {list(d.w_dec.shape)}, and {len(d.sites_out)} sites to write to are named")
