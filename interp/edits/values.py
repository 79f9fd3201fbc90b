"""Changes to a forward pass, as values that `Model.run` and `Model.attention` apply."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interp.errors import SiteError, nearest
from interp.sites import Site, parse_component

HOW = ("zero", "mean")


@dataclass(frozen=True, eq=False)
class Ablate:
    """Replace an activation by zero, or by its mean over a reference run.

    `mean` ablation needs `value`: the replacement, [d_head] for one head or [layer head d_head] for heads of every
    layer, usually `Model.mean(tokens, "z")`, so that what is removed is the information and not the scale.
    """

    site: Site
    how: str = "zero"
    value: Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        """Check the way of ablating and that a mean comes with its value."""
        if self.how not in HOW:
            raise SiteError(f"unknown ablation {self.how!r}; {nearest(self.how, HOW)}")
        if (self.how == "mean") != (self.value is not None):
            raise SiteError("a mean ablation takes the mean as `value`; a zero ablation takes none")


def ablate_heads(
    heads: Iterable[tuple[int, int] | str], *, how: str = "zero", mean: Float[Tensor, "layer head d_head"] | None = None
) -> list[Ablate]:
    """One `Ablate` of z per head, given as (layer, head) or as `L3H5`."""
    edits = []
    for item in heads:
        layer, head = parse_component(item) if isinstance(item, str) else item
        if head is None:
            raise SiteError(f"{item!r} is not a head")
        if mean is not None and not (0 <= layer < mean.shape[0] and 0 <= head < mean.shape[1]):
            raise SiteError(
                f"L{layer}H{head} is out of range; the mean has {mean.shape[0]} layers of {mean.shape[1]} heads"
            )
        value = None if how == "zero" or mean is None else mean[layer, head]
        edits.append(Ablate(Site("z", layer, head=head), how, value))
    return edits
