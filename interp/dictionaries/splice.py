"""`Splice`: dictionaries put into the forward pass, with their features ablated, clamped or steered, as an edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.edits.values import Apply, Edit, Positions, Rows
from interp.edits.where import column_mask, row_index
from interp.errors import SiteError
from interp.several import several
from interp.sites import UNLAYERED, Site


@dataclass(frozen=True, eq=False)
class FeatureEdit:
    """A change of features of a dictionary, all of `feature` alike.

    Attributes:
        feature: a feature, or several. value: what it is set to, or what is added.
        member: of which dictionary of a set, by number.
        rows: batch rows, written as in `interp.edits.Edit`; None: all of them.
        positions: tokens of the prompt, written likewise; None: every token, generated ones too.
    """

    feature: int | Sequence[int]
    value: float = 0.0
    member: int = 0
    rows: Rows = None
    positions: Positions = None

    def of(self, f: Tensor) -> Tensor:
        """The features chosen after the change."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Clamp(FeatureEdit):
    """f -> value; 0, which is ablation, unless said otherwise."""

    def of(self, f: Float[Tensor, "*batch chosen"]) -> Float[Tensor, "*batch chosen"]:
        """The features chosen after the change."""
        return torch.full_like(f, self.value)


@dataclass(frozen=True, eq=False)
class Steer(FeatureEdit):
    """f -> f + value, whether the feature is active or not: adds value times its decoder direction."""

    def of(self, f: Float[Tensor, "*batch chosen"]) -> Float[Tensor, "*batch chosen"]:
        """The features chosen after the change."""
        return f + self.value


@dataclass(frozen=True, eq=False)
class Scaled(FeatureEdit):
    """f -> value f."""

    def of(self, f: Float[Tensor, "*batch chosen"]) -> Float[Tensor, "*batch chosen"]:
        """The features chosen after the change."""
        return f * self.value


@dataclass(frozen=True, eq=False, init=False)
class Splice(Apply):
    """y -> decode(f') + (y - decode(f)) where `error`, else decode(f'); f are the features, f' after `changes`.

    Without changes and with the error term nothing changes in value, and gradients go through the dictionary, the error
    being held constant. At any site, on every backend, while generating too. What a dictionary reads is what the same
    pass has there; transcoders and cross-layer transcoders write at their own sites.

    Args:
        dictionary: with its sites, or several.
        changes: `Clamp`, `Steer` and `Scaled` of features, in order.
        error: whether what the dictionary leaves out is kept.

    Raises:
        SiteError: a dictionary without sites, or at several layers at once; a feature or a member out of range.
    """

    dictionary: Dictionary | Dictionaries
    changes: tuple[FeatureEdit, ...]
    error: bool

    def __init__(
        self,
        dictionary: Dictionary | Dictionaries,
        changes: FeatureEdit | Sequence[FeatureEdit] = (),
        *,
        error: bool = True,
    ) -> None:
        for d in dictionary.members:
            _check_sites(d)
        listed = tuple(several(changes, "changes", one=FeatureEdit))
        for change in listed:
            _check_change(change, dictionary)
        first = dictionary.members[0].sites_out[0]
        for name, entry in (
            ("site", Site(first.kind, first.first)),
            ("function", _alone),
            ("rows", None),
            ("positions", None),
            ("dictionary", dictionary),
            ("changes", listed),
            ("error", error),
        ):
            object.__setattr__(self, name, entry)

    @property
    def parts(self) -> Sequence[Edit]:
        """A reader at each site that is read, and a writer at each that is written to."""
        through = _Passage(self)
        name = f"{self.dictionary!r}, {len(self.changes)} changes, {'with' if self.error else 'without'} error"
        functions = [(d.site_in, through.reader(i)) for i, d in enumerate(self.dictionary.members)]
        functions += [(site, through.writer(site)) for site in through.sources]
        return [_Part(_whole(site), function, through, name) for site, function in functions]


def ablate_features(dictionary: Dictionary | Dictionaries, feature: int | Sequence[int], **options: Any) -> Splice:
    """`Splice` with features set to 0 and all else kept; options as of `Clamp`."""
    return Splice(dictionary, Clamp(feature, 0.0, **options))


@dataclass(frozen=True, eq=False)
class _Part(Apply):
    """One site of a splice; its rows and positions say what the changes mean, and are theirs to find."""

    narrows: ClassVar[bool] = False
    through: _Passage
    splice: str

    def __post_init__(self) -> None:
        """Say of the rows and prompts of which batch the changes are, for those who make batches of their own."""
        super().__post_init__()
        for name, values in self.through.narrowed.items():
            if values:
                object.__setattr__(self, name, values[0])

    def begin(self, mask: Bool[Tensor, "batch prompt"], offset: int) -> None:
        self.through.begin(mask, offset)


class _Passage:
    """What one forward pass has read so far; `sources` says which members write to a site, and at which of theirs.

    A pass may come in pieces (prompt, then tokens generated without a cache): each site has them in the same order.
    """

    def __init__(self, splice: Splice) -> None:
        self.members, self.error = splice.dictionary.members, splice.error
        self.changes = [[c for c in splice.changes if c.member == i] for i in range(len(self.members))]
        of_prompts = [x for c in splice.changes if isinstance(x := c.positions, Tensor) and x.ndim]
        self.narrowed = {"rows": [c.rows for c in splice.changes if c.rows is not None], "positions": of_prompts}
        self.sources: dict[Site, list[tuple[int, int]]] = {}
        for i, d in enumerate(self.members):
            for k, site in enumerate(d.sites_out):
                self.sources.setdefault(site, []).append((i, k))
        self.begin(torch.ones(0, 0, dtype=torch.bool), 0)

    def begin(self, mask: Tensor, offset: int) -> None:
        self.mask, self.offset = mask, offset
        self.pieces: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in self.members]
        self.written = dict.fromkeys(self.sources, 0)

    def reader(self, i: int) -> Callable[[Tensor], Tensor]:
        def read(y: Tensor) -> Tensor:
            d = self._moved(i, y)
            x = _of_head(y, d.site_in)
            f = d.encode(x)
            column = self.offset + sum(f.shape[1] for _, f, _ in self.pieces[i])
            self.pieces[i].append((x, f, self._changed(i, f, column)))
            return y

        return read

    def writer(self, site: Site) -> Callable[[Tensor], Tensor]:
        def write(y: Tensor) -> Tensor:
            number, before, after = self.written[site], [], []
            self.written[site] += 1
            for i, k in self.sources[site]:
                if number >= len(self.pieces[i]):
                    raise SiteError(
                        f"{site}: the dictionary that writes here reads {self.members[i].site_in}, which this run does "
                        "not come by; start it lower"
                    )
                d, (x, f, changed) = self._moved(i, y), self.pieces[i][number]
                after.append(d.decode(changed, x, out=k))
                before.append(after[-1] if changed is f else d.decode(f, x, out=k))
            new = sum(after[1:], after[0])
            own = _of_head(y, site)
            if self.error:
                kept = own.to(new.dtype).reshape(new.shape).detach()
                new = kept + (new - sum(before[1:], before[0]).detach())
            return _with_head(y, new.reshape(own.shape).to(y.dtype), site)

        return write

    def _moved(self, i: int, y: Tensor) -> Dictionary:
        """The member where the activation is."""
        if self.members[i].w_enc.device != y.device:
            self.members = tuple(d.to(y.device) if j == i else d for j, d in enumerate(self.members))
        return self.members[i]

    def _changed(self, i: int, f: Tensor, column: int) -> Tensor:
        site = self.members[i].site_in
        assert site is not None  # checked when the splice was made
        for change in self.changes[i]:
            index = torch.as_tensor(change.feature, device=f.device).reshape(-1)
            new = change.of(f[..., index])
            if change.rows is not None or change.positions is not None:
                new = torch.where(self._points(change, site, f, column)[..., None], new, f[..., index])
            f = f.index_copy(-1, index, new)
        return f

    def _points(self, change: FeatureEdit, site: Site, f: Tensor, column: int) -> Tensor:
        """Rows and columns meant by a change, [batch pos]; of tokens after the prompt, positions mean none."""
        if len(self.mask) != len(f):
            raise SiteError(f"{site}: the change is for a batch of {len(self.mask)} rows; this pass has {len(f)}")
        rows = row_index(change.rows, len(f), site, self.mask.device)
        points = torch.zeros(f.shape[:2], dtype=torch.bool, device=f.device)
        if change.positions is None:
            points[rows] = True
            return points
        chosen = column_mask(change.positions, site, self.mask, rows)[:, column : column + f.shape[1]]
        points[rows, : chosen.shape[1]] = chosen.to(f.device)
        return points


def _alone(x: Tensor) -> Tensor:
    raise SiteError("a splice is carried out by the model that it is given to, as `parts` at its sites")


def _whole(site: Site | None) -> Site:
    """The site with all its heads: functions see the whole activation."""
    assert site is not None  # checked when the splice was made
    return Site(site.kind, site.first)


def _of_head(y: Tensor, site: Site | None) -> Tensor:
    return y if site is None or site.head is None else y[:, :, site.head]


def _with_head(y: Tensor, new: Tensor, site: Site) -> Tensor:
    if site.head is None:
        return new
    return y.index_copy(2, torch.tensor([site.head], device=y.device), new[:, :, None])


def _check_sites(d: Dictionary) -> None:
    if d.site_in is None or not d.sites_out:
        raise SiteError(f"{d!r} does not say where it belongs; give its sites: dictionary.at('L3.resid_post')")
    for site in (d.site_in, *d.sites_out):
        one = site.first is not None and site.first == site.last
        if site.position is not None or not (one or site.kind in UNLAYERED):
            raise SiteError(f"{site}: a dictionary is of one layer, and of every position")


def _check_change(change: Any, dictionary: Dictionary | Dictionaries) -> None:
    if not isinstance(change, FeatureEdit):
        raise SiteError(f"changes of features are Clamp, Steer or Scaled; got {type(change).__name__}")
    if not 0 <= change.member < len(dictionary.members):
        raise SiteError(f"member {change.member} is out of range; there are {len(dictionary.members)}")
    n = dictionary.members[change.member].n_features
    for feature in torch.as_tensor(change.feature).reshape(-1).tolist():
        if not 0 <= feature < n:
            raise SiteError(f"feature {feature} is out of range; the dictionary has {n}")
