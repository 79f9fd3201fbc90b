"""`Visitor`: a pass for backends with dense patterns, and what the lens and nnsight backends share beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.backends.plan.capture import Pass
from interp.backends.plan.decoding import Decoding
from interp.backends.plan.places import Place, SiteCapture, captures, changes, narrow, reached, unplaced
from interp.batch import Batch
from interp.edits import Edit, Tile, edit_activation_scores, edit_pattern, edit_scores, edits_scores
from interp.model import Capture, ModelInfo
from interp.sites import Site


class Visitor(Pass):
    """A `Pass` of a model with this `info`, for these prompts, that also handles scores and patterns."""

    def __init__(
        self,
        info: ModelInfo,
        capture: Capture,
        edits: Sequence[Edit],
        batch: Batch,
        *,
        gradients: bool = False,
        has: Callable[[Place], bool] = lambda _: True,
    ) -> None:
        super().__init__(captures(capture, info, has=has), changes(edits, info), gradients=gradients)
        self.begin(batch.mask, (batch.mask.shape[0], batch.mask.shape[1]), spans=batch.spans)

    def precede(self, edits: Sequence[Edit], info: ModelInfo, *, start: int | None, stop: int | None) -> None:
        """Put edits of `editing` contexts before the run's own, those that it comes by."""
        outer = {p: x for p, x in changes(edits, info).items() if reached(p, info.n_layers, start=start, stop=stop)}
        self.passed_by = unplaced(outer, self.edits, start=start, stop=stop)
        self.edits = {p: [*outer.get(p, ()), *self.edits.get(p, ())] for p in {**outer, **self.edits}}
        self.begin(None, self.shape)

    def kinds(self, layer: int | None) -> set[str]:
        """Kinds of site captured or edited at a layer."""
        return {kind for kind, at in {*self.captures, *self.edits} if at == layer}

    def scores(self, layer: int, x: Tensor, visible: Bool[Tensor, "batch query key"]) -> Tensor:
        """Scores [batch head query key] after the edits that act before the softmax; captured on the way."""
        edits = [e for e in self.at("pattern", layer) if edits_scores(e)]
        if edits:
            x = edit_scores(x.flatten(0, 1), self._tile(x, visible), edits).view_as(x)
        if not self.asks(layer, "scores"):
            return x
        self.visited.add(("scores", layer))
        x = x.masked_fill(~visible[:, None], -torch.inf)
        x = edit_activation_scores(
            x.flatten(0, 1), self._tile(x, visible), self.at("scores", layer), layer=layer
        ).view_as(x)
        return self._kept(self.captures.get(("scores", layer), ()), x)

    def pattern(self, layer: int, x: Tensor, visible: Bool[Tensor, "batch query key"]) -> Tensor:
        """Pattern [batch head query key] after the edits that act behind the softmax; captured on the way."""
        self.visited.add(("pattern", layer))
        edits = [e for e in self.at("pattern", layer) if not edits_scores(e)]
        if edits:
            x = edit_pattern(x.flatten(0, 1), self._tile(x, visible), edits, layer=layer).view_as(x)
        return self._kept(self.captures.get(("pattern", layer), ()), x)

    def _kept(self, captures: Sequence[SiteCapture], x: Tensor) -> Tensor:
        for capture in captures:
            part = capture.take(x, self.mask)
            self.store(capture, part)
            if self.gradients and capture.reducer is None and part is not x:
                x = rebuilt(x, part, capture.site, self.mask)
        return x

    def _tile(self, x: Tensor, visible: Tensor) -> Tile:
        return Tile.dense(visible, x.shape[1], mask=self.mask)


class DecodingVisitor(Decoding, Visitor):
    """A `Visitor` that is carried out again for every new token."""


def rebuilt(x: Tensor, part: Tensor, site: Site, mask: Tensor) -> Tensor:
    """The tensor with its narrowed part written over itself, so that what follows depends on that part."""
    where = narrow(torch.arange(x.numel(), device=x.device).view(x.shape), site, mask)
    return x.flatten().index_copy(0, where.flatten(), part.flatten()).view(x.shape)


def as_site(x: Tensor) -> Tensor:
    """[batch head pos d] as [batch pos head d], and back."""
    return x.transpose(1, 2)
