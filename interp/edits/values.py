"""Changes to a forward pass, as values: what to do, where, to which rows of the batch, at which tokens.

Backends apply them with `interp.edits.apply_edits` (activations) and `edit_scores`, `edit_pattern` (attention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.components import head_name, parse_head
from interp.errors import SiteError, UnknownSite, nearest
from interp.several import several
from interp.shapes import brief
from interp.sites import Site

NUMBERS = ("value", "factor", "sd")
"""Fields of edits that are numbers or tensors."""
HOW = ("zero", "mean", "resample")

AnySite = Any  # Site | str when made, a Site from then on

Rows = int | Sequence[int] | Int[Tensor, " rows"] | Bool[Tensor, " batch"] | None
Positions = str | int | Sequence[int] | Int[Tensor, " batch"] | Int[Tensor, ""] | Bool[Tensor, "batch pos"] | None


@dataclass(frozen=True, eq=False)
class Edit:
    """A change at a site.

    Values broadcast against what capturing the site gives: [batch pos (head) d], without the head axis where the site
    names a head, without the position axis where it names a position; with `rows`, batch means these rows. Where one
    position per row is chosen, a value that has the position axis all the same is read at that position.

    Attributes:
        site: where, as a `Site` or as text.
        rows: batch rows the edit applies to: an index, several, or a mask [batch]. None: all of them. So a batch of
            the same prompt can carry a different edit in each row.
        positions: tokens the edit applies to. Integers count the real tokens of each prompt, negative ones from its
            end: one for all rows, several for all rows (a sequence), or one for each row (a tensor [batch]). A mask
            [batch pos] is of the columns as they stand, padding included. A name is that of a span of the batch that is
            run ("document", see `interp.batch.Batch`): its tokens, in each prompt its own. None: the site's own `@p`,
            or every token. For the pattern, positions are those of the queries.
    """

    site: AnySite
    rows: Rows = field(default=None, kw_only=True)
    positions: Positions = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Read a site given as text; positions are said once, and numbers are numbers."""
        site = Site.parse(self.site) if isinstance(self.site, str) else self.site
        if not isinstance(site, Site):
            raise SiteError(f"an edit is of a site, written like L3H5.z; got {type(site).__name__} {site!r:.40}")
        for name in NUMBERS:
            value = getattr(self, name, None)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Tensor | Real)):
                kind = type(value).__name__
                raise SiteError(
                    f"{site}: {name} of {type(self).__name__} is a number or a tensor; got {kind} {value!r:.40}"
                )
        object.__setattr__(self, "site", site)
        if self.positions is not None and site.position is not None:
            raise SiteError(f"{site}: the site names a position already; leave `positions` out, or the @")

    @property
    def parts(self) -> Sequence[Edit]:
        """The edits of one site each that this one comes to; itself, unless it joins several sites."""
        return (self,)

    @property
    def order(self) -> int:
        """Below 0 where it comes before the other edits of its site, above 0 where it comes behind them."""
        return 0

    def begin(self, mask: Bool[Tensor, "batch prompt"], offset: int) -> None:
        """Start of a forward pass from a column on; edits that carry something from one site to another forget it."""

    def follow(self, earlier: Sequence[Edit]) -> None:
        """Take note of the edits that come before it at its site in this pass."""


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Replace an activation by zero, by its mean over a reference run, or by another run's (resampling).

    `mean` and `resample` need `value`. For a mean it may carry a leading layer axis, [layer head d_head] as
    `Model.mean(tokens, "z")` gives it, so that what is removed is the information and not the scale; for `resample` it
    is the activation of other prompts at this site.

    With `by="position"` the mean is one for each position of a prompt, [position ...] or [layer position ...] as
    `Model.mean(tokens, by="position")` gives it: each real token gets that of its own position, whatever the padding.
    New tokens of a generation have no such mean and stay.
    """

    site: AnySite
    how: str = "zero"
    value: Float[Tensor, "..."] | None = None
    by: str | None = field(default=None, kw_only=True)

    __repr__ = brief

    def __post_init__(self) -> None:
        """Check the way of ablating and that a mean comes with its value."""
        super().__post_init__()
        if not isinstance(self.how, str) or self.how not in HOW:
            raise UnknownSite(f"unknown ablation {self.how!r}; {nearest(str(self.how), HOW)}")
        if (self.how == "zero") != (self.value is None):
            name = "other prompts' activation" if self.how == "resample" else "mean"
            raise SiteError(f"a {self.how} ablation takes the {name} as `value`; a zero ablation takes none")
        check_by(self.by, mean=self.how == "mean")


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """x -> factor * x; the factor may be a tensor that broadcasts, also one that requires a gradient."""

    site: AnySite
    factor: float | Float[Tensor, "..."] = 1.0

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class Replace(Edit):
    """x -> value."""

    site: AnySite
    value: Float[Tensor, "..."]

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """x -> x + value."""

    site: AnySite
    value: Float[Tensor, "..."]

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class Apply(Edit):
    """x -> function(x), x the activation as the run reaches it; the shape must stay.

    x is what capturing the site gives: [batch pos (head) d], or [batch head query key] for patterns and scores; without
    the head axis where the site names a head, without the position axis where one position a row is meant (`@p`, an
    integer, a tensor [batch]). Several positions stand along that axis in the order given; of a mask [batch pos] the
    chosen tokens stand in one axis, [token (head) d]. With `rows`, batch means these rows. What is written
    may depend on what the same run has computed before. A pattern goes on as the function gives it, neither masked nor
    normalised; scores stay -inf where a key is not visible. While a model generates, every new token is a call.
    """

    narrows: ClassVar[bool] = True  # whether the function sees the rows and positions alone
    site: AnySite
    function: Callable[[Tensor], Tensor]

    __repr__ = brief

    def __post_init__(self) -> None:
        """Refuse what is no function."""
        super().__post_init__()
        site = self.site
        if not callable(self.function):
            raise SiteError(f"{site}: Apply takes a function of the activation; got {type(self.function).__name__}")


@dataclass(frozen=True, eq=False)
class Noise(Edit):
    """x -> x + sd * e, e standard normal, drawn from `seed` and the layer; two edits with one seed draw the same."""

    site: AnySite
    sd: float | Float[Tensor, "..."] = 1.0
    seed: int = 0

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class AttentionEdit(Edit):
    """A change of attention itself; its site's kind is `pattern`, its `positions` are those of queries."""

    def __post_init__(self) -> None:
        """Check the kind."""
        super().__post_init__()
        if self.site.kind != "pattern":
            raise SiteError(f"{self.site}: {type(self).__name__} edits attention; write a site like L3H5.pattern")


@dataclass(frozen=True, eq=False)
class AttentionBias(AttentionEdit):
    """s_ij -> s_ij + bias_ij, before the softmax; the bias broadcasts against [batch head query key]."""

    site: AnySite
    bias: float | Float[Tensor, "..."] = 0.0

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class KnockOut(AttentionEdit):
    """No attention from `queries` to `keys`.

    `queries` and `keys` are written like `positions` (None: all of them; `keys="document"`, `queries="question"`), and
    every pairing of the two is knocked out;
    or `pairs` names the pairs: (query, key) positions, or a mask [query key] or [batch query key] of columns.
    With `renormalise` the others take over, s_ij = -inf, and a query that has no key left attends to nothing (zeros);
    without, p_ij = 0 after the softmax and the mass is lost.
    """

    site: AnySite
    queries: Positions = None
    keys: Positions = None
    pairs: Sequence[tuple[int, int]] | Bool[Tensor, "query key"] | Bool[Tensor, "batch query key"] | None = None
    renormalise: bool = True

    __repr__ = brief

    def __post_init__(self) -> None:
        """Pairs, or queries and keys."""
        super().__post_init__()
        if self.pairs is not None and not (self.queries is None and self.keys is None):
            raise SiteError(f"{self.site}: KnockOut takes `pairs`, or `queries` and `keys`, not both")


@dataclass(frozen=True, eq=False)
class ForcePattern(AttentionEdit):
    """p -> pattern, broadcast against [batch head query key] and used as given: neither masked nor normalised."""

    site: AnySite
    pattern: Float[Tensor, "..."]

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class Uniform(AttentionEdit):
    """p_ij -> 1 / (number of keys that query i may see), for `queries` (written like `positions`; None: all)."""

    site: AnySite
    queries: Positions = None


def check_by(by: Any, *, mean: bool = True) -> None:
    """Raise SiteError unless `by` is None, or "position" of a mean."""
    if by is not None and not (mean and by == "position"):
        raise SiteError(f'by={by!r:.40}: a mean may be one by="position"; leave it out for one of all tokens')


def ablate_heads(
    heads: Iterable[tuple[int, int] | str],
    *,
    how: str = "zero",
    mean: Float[Tensor, "layer head d_head"] | Float[Tensor, "layer position head d_head"] | None = None,
    by: str | None = None,
    rows: Any = None,
) -> list[Ablate]:
    """One `Ablate` of z per head, given as (layer, head) or as `L3H5`; `rows` as in `Edit`, `by` as in `Ablate`.

    Args:
        heads: which.
        how: "zero", or "mean" with the mean of every head, as `Model.mean` gives it.
        mean: [layer head d_head], or [layer position head d_head] with `by="position"`.
        by: "position" where the mean is one for each position.
        rows: batch rows that are edited.

    Raises:
        SiteError: a head out of range, a mean of another shape, or none.
    """
    edits = []
    check_by(by, mean=how == "mean")
    axes = 4 if by else 3
    if mean is not None and mean.ndim != axes:
        form = "[layer position head d_head]" if by else "[layer head d_head]"
        raise SiteError(
            f"a mean of shape {tuple(mean.shape)}; expected {form}, as model.mean(tokens, by={by!r}) gives it"
        )
    for item in several(heads, "heads"):
        named: Any = item
        pair = isinstance(item, tuple | list) and len(item) == 2  # noqa: PLR2004 - layer and head
        layer, head = named if pair else parse_head(named)
        if mean is not None and not (0 <= layer < mean.shape[0] and 0 <= head < mean.shape[-2]):
            name = head_name(layer, head)
            raise SiteError(f"{name} is out of range; the mean has {mean.shape[0]} layers of {mean.shape[-2]} heads")
        value = None if how == "zero" or mean is None else mean[layer, ..., head, :]
        edits.append(Ablate(Site("z", layer, head=head), how, value, by=by, rows=rows))
    return edits
