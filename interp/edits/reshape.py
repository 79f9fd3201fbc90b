"""Edits of attention that keep its form: columns re-weighted, spans levelled, windows, rotary base and planes.

    ScaleColumns("L3H5.pattern", 0.4, threshold=0.1), SinkWindow("pattern", 4, 512), RotaryBase("pattern", 2e4)

Each keeps what a row of the pattern sums to. `columns` and `rotary` beside this file carry them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.values import AnySite, AttentionEdit, Positions
from interp.errors import SiteError
from interp.shapes import brief


@dataclass(frozen=True, eq=False)
class ScaleColumns(AttentionEdit):
    """p_ij -> factor * p_ij for some keys j; the freed mass goes to the row's other keys in proportion to theirs.

    With m_i the mass of row i on the chosen keys and t_i that on all, p_ij is scaled by factor there and by
    (t_i - factor m_i) / (t_i - m_i) elsewhere, so that t_i stays; a factor above 1 takes no more than there is. A row
    with nothing on other keys stays as it is. This is no bias of the scores: how far the others rise depends on the
    row.

    `keys` are written like `positions`. Or `threshold` chooses them, for each head of each prompt: keys that receive
    more than it on average over the prompt's queries that see them, c_j = sum_i p_ij / #{i: i sees j}, but for the
    prompt's first and for keys that fewer than `least` queries see: what one query gives to a key near the end is a
    large part of its average. They are found once, on the prompt, and stay for tokens generated after it.

    Raises:
        SiteError: neither or both of `keys` and `threshold`, or a negative factor.

    Reference: Yu et al. 2024, ACT, arXiv 2406.15765 (factor 0.4; threshold of 5 / n in the paper, 0.1 in its script).
    """

    site: AnySite
    factor: float = 0.4
    keys: Positions = None
    threshold: float | None = None
    least: int = 16
    _found: dict[int | None, Tensor] = field(default_factory=dict, init=False, repr=False)

    __repr__ = brief

    def __post_init__(self) -> None:
        """One way of choosing keys, and a factor that leaves probabilities."""
        super().__post_init__()
        if (self.keys is None) == (self.threshold is None):
            raise SiteError(f"{self.site}: ScaleColumns takes `keys`, or a `threshold` that chooses them")
        _number(self, "factor", least=0.0)
        if self.threshold is not None:
            _number(self, "threshold", least=0.0)
        _number(self, "least", least=1, whole=True)

    def begin(self, mask: Bool[Tensor, "batch prompt"], offset: int) -> None:
        """A prompt anew: columns of the last one are forgotten."""
        if offset == 0:
            self._found.clear()


@dataclass(frozen=True, eq=False)
class CalibrateSpans(AttentionEdit):
    """Attention to documents less what a dummy document gets at the same place; their sum in each row stays.

    With m_ik the mass of row i on span k and b_k the baseline, the share of span k becomes
    w_ik = softmax_k((m_ik - b_k) / temperature) of sum_k m_ik; keys of a span keep their proportions. Rows that stand
    behind all spans are changed, generated tokens included; spans with no mass get none.

    `spans` are one a document: names of spans of the batch that is run, or masks [batch pos]. `baseline` is [span],
    [head span] or [batch head span], without the head axis where the site names a head;
    `interp.measurement.documents.baseline_mass` measures it.

    Raises:
        SiteError: no spans, or a temperature that is not above 0.

    Reference: Hsieh et al. 2024, Found in the Middle, arXiv 2406.16008 (temperature 5e-5, last 16 layers).
    """

    site: AnySite
    spans: Sequence[str | Bool[Tensor, "batch pos"]] = ()
    baseline: float | Float[Tensor, "..."] = 0.0
    temperature: float = 0.05

    __repr__ = brief

    def __post_init__(self) -> None:
        """Spans there are, and a temperature."""
        super().__post_init__()
        if not len(self.spans):
            raise SiteError(
                f"{self.site}: CalibrateSpans takes `spans`, a name or a mask [batch pos] for each document"
            )
        _number(self, "temperature", above=0.0)


@dataclass(frozen=True, eq=False)
class SinkWindow(AttentionEdit):
    """Queries see the first `sinks` tokens of their prompt and the last `window` up to themselves, no others.

    In O(n) memory and O(n (sinks + window)) time where nothing else changes the heads' patterns and scores have no
    bias; positions stay those of the whole prompt. A layer's own window holds besides. With `compensate` the keys left
    out stand there as one, in each row: their mean key and mean value, counted as often as they are, so that each gets
    the probability of the mean score.

    Raises:
        SiteError: fewer than 0 sinks, or no window; attention that sees later tokens, or goes to a source.

    Reference: Xiao et al. 2023, arXiv 2309.17453 (4 sinks; there positions count within the cache); `compensate`: Tang
    et al. 2024, RazorAttention, arXiv 2407.15891.
    """

    site: AnySite
    sinks: int = 4
    window: int = 512
    compensate: bool = False

    __repr__ = brief

    def __post_init__(self) -> None:
        """Whole numbers of tokens."""
        super().__post_init__()
        _number(self, "sinks", least=0, whole=True)
        _number(self, "window", least=1, whole=True)


@dataclass(frozen=True, eq=False)
class RotaryEdit(AttentionEdit):
    """A change of how positions turn queries and keys; it comes behind captures of q and k."""


@dataclass(frozen=True, eq=False)
class RotaryBase(RotaryEdit):
    """Rotary angles of another base, theta_i = base^(-2i / d) / factor; without a base, the model's own over factor.

    i counts the layer's rotary planes from the fastest, d / 2 of them. Queries and keys are turned on by the difference
    of the angles, so that scores are those of the new ones; what else the model scales stays. `positions` do not apply.

    Raises:
        SiteError: neither base nor factor, or one that is not above 0.

    Reference: Chen et al. 2023, Attention Buckets, arXiv 2312.04455 (bases of 10,000 to 30,000); `factor`: Chen et al.
    2023, position interpolation, arXiv 2306.15595.
    """

    site: AnySite
    base: float | None = None
    factor: float = 1.0

    __repr__ = brief

    def __post_init__(self) -> None:
        """Something to change."""
        super().__post_init__()
        if self.base is None and self.factor == 1.0:
            raise SiteError(f"{self.site}: RotaryBase takes a `base`, or a `factor` other than 1")
        if self.positions is not None or self.site.position is not None:
            raise SiteError(f"{self.site}: another base is one for all tokens; leave positions out")
        if self.base is not None:
            _number(self, "base", above=0.0)
        _number(self, "factor", above=0.0)


@dataclass(frozen=True, eq=False)
class RotaryPlane(RotaryEdit):
    """Planes of the rotary embedding out of a head's scores, or scaled, or turned by an angle (radians).

    A score is a sum over planes, s_ij = sum_p |q_p| |k_p| cos(phi_p + theta_p (i - j)) and what does not turn; that of
    plane p becomes scale * |q_p| |k_p| cos(phi_p + angle + theta_p (i - j)). Planes count from the fastest, 0; negative
    ones from the slowest. It is queries that are changed, so that heads of one group can be told apart.

    Raises:
        SiteError: no planes; when run, a plane that the layer does not have.
    """

    site: AnySite
    planes: int | Sequence[int] = ()
    scale: float = 0.0
    angle: float = 0.0

    __repr__ = brief

    def __post_init__(self) -> None:
        """Planes as a tuple."""
        super().__post_init__()
        planes: Any = (self.planes,) if isinstance(self.planes, int) else tuple(self.planes)
        if not planes or not all(isinstance(p, int) and not isinstance(p, bool) for p in planes):
            raise SiteError(f"{self.site}: RotaryPlane takes the numbers of planes, 0 the fastest; got {planes!r:.60}")
        object.__setattr__(self, "planes", planes)
        _number(self, "scale")
        _number(self, "angle")


def _number(
    edit: AttentionEdit, name: str, *, least: float | int | None = None, above: float | None = None, whole: bool = False
) -> None:
    value: Any = getattr(edit, name)
    kinds = (int,) if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and value == value  # noqa: PLR0124  (no NaN)
    fits = fits and (least is None or value >= least) and (above is None or value > above)
    if not fits:
        limit = f" of at least {least:g}" if least is not None else f" above {above:g}" if above is not None else ""
        what = "a whole number" if whole else "a number"
        raise SiteError(f"{edit.site}: {name} of {type(edit).__name__} is {what}{limit}; got {value!r:.40}")
