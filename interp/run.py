"""What a model hands back: `Run` of a pass, `Generation` with captures, `AttentionRun` of attention statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import NotApplicable, SiteError, nearest
from interp.sites import Site


@dataclass(frozen=True, eq=False)
class Run:
    """Outcome of a forward pass: logits [batch pos d_vocab] and captured activations by site.

    `acts` holds one tensor per captured site and layer, its key the site at that layer (`Site("L3.z")`). `differs` says
    why a name of TransformerLens means another tensor in this model, None where it does not.
    """

    logits: Float[Tensor, "batch pos d_vocab"] | None
    acts: dict[Site, Tensor] = field(default_factory=dict)
    differs: Callable[[Site], str | None] | None = field(default=None, repr=False)

    def __getitem__(self, site: Site | str) -> Tensor:
        """Activation of one site: `run["L3.z"]`."""
        key = Site.parse(site) if isinstance(site, str) else site
        why = self.differs(key) if key.alias and self.differs is not None else None
        if why:
            raise SiteError(why)
        if key not in self.acts:
            raise SiteError(f"{str(key)!r} was not captured; {nearest(str(key), map(str, self.acts))}")
        return self.acts[key]

    def stack(self, site: Site | str) -> Tensor:
        """Activations of a site at every layer captured, in order of layer, [layer ...]."""
        key = Site.parse(site) if isinstance(site, str) else site
        found = sorted(s for s in self.acts if s.first is not None and key == (s if key.first is not None else _any(s)))
        if not found:
            raise SiteError(f"{str(key)!r} was not captured; {nearest(str(key), map(str, self.acts))}")
        shapes = {tuple(self.acts[s].shape) for s in found}
        if len(shapes) > 1:
            raise SiteError(f"{str(key)!r}: layers differ in their sizes {sorted(shapes)}; take them one at a time")
        return torch.stack([self.acts[s] for s in found])


class MuteRun(Run):
    """A run of a model that gives no logits (an encoder): activations, and a reason where logits are asked for."""

    def __init__(
        self, acts: dict[Site, Tensor], reason: str, differs: Callable[[Site], str | None] | None = None
    ) -> None:
        object.__setattr__(self, "acts", acts)
        object.__setattr__(self, "differs", differs)
        object.__setattr__(self, "reason", reason)

    def __repr__(self) -> str:
        """Its activations."""
        return f"MuteRun(acts={self.acts!r})"

    @property
    def logits(self) -> Tensor:  # type: ignore[override]  # a field there
        """There are none.

        Raises:
            NotApplicable: always.
        """
        raise NotApplicable(self.__dict__["reason"])


def _any(site: Site) -> Site:
    """The site without its layer."""
    return Site(site.kind, head=site.head, position=site.position)


@dataclass(frozen=True, eq=False)
class Generation(Run):
    """Outcome of `Model.generate` with captures.

    Attributes:
        ids: tokens [batch pos], prompts included.
        text: one a prompt where text was asked for, else None.
        acts: activations of the tokens that were read, [batch read ...] with read = pos - 1: all but the last new one;
            patterns and scores [batch head read read], where a later pass has more keys filled up with what no key has
            (0 and -inf). `unembed_in` and `logits` are those of the last token of each pass, [batch new ...]. Of a
            reducer, its results of every pass, stacked along a first axis. A site at a position is of the prompt.
        logits: None; capture the site.
    """

    ids: Int[Tensor, "batch pos"] = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    text: list[str] | None = None


@dataclass(frozen=True, eq=False)
class AttentionRun:
    """Answers by name, each [layer batch head ...] on the CPU; `layers[i]` is the layer of row i."""

    layers: tuple[int, ...]
    values: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """Answer by name."""
        return self.values[name]
