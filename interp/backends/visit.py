"""A pass for backends that see attention as dense patterns, and what the lens and nnsight backends share beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from interp.backends.capture import Pass, refuse
from interp.backends.checks import FIXED
from interp.backends.places import Place, captures, changes, narrow
from interp.batch import Batch
from interp.edits import Edit, Tile, edit_pattern, edit_scores, edits_scores
from interp.errors import TaskError
from interp.model import Capture, ModelInfo
from interp.sites import Site


class Visitor(Pass):
    """A `Pass` of a model with this `info`, for prompts with this mask, that also handles scores and patterns."""

    def __init__(
        self,
        info: ModelInfo,
        capture: Capture,
        edits: Sequence[Edit],
        mask: Bool[Tensor, "batch pos"],
        *,
        gradients: bool = False,
    ) -> None:
        super().__init__(captures(capture, info), changes(edits, info), gradients=gradients)
        self.begin(mask, (mask.shape[0], mask.shape[1]))

    def kinds(self, layer: int | None) -> set[str]:
        """What is to happen at a layer."""
        return {kind for kind, at in {*self.wanted, *self.edits} if at == layer}

    def check(self, missing: Mapping[Place, str]) -> None:
        """Refuse what the model does not have.

        Raises:
            SiteError: with the reason.
        """
        for place, why in missing.items():
            for thing in (*(w.site for w in self.wanted.get(place, ())), *self.edits.get(place, ())):
                raise refuse(thing, why)
        for (kind, _), edits in self.edits.items():
            if kind == "norm_scale":
                raise refuse(edits[0], f"the divisor of a norm {FIXED}")

    def scores(self, layer: int, x: Tensor, visible: Bool[Tensor, "batch query key"]) -> Tensor:
        """Scores [batch head query key] after the edits that act before the softmax."""
        edits = [e for e in self.edits.get(("pattern", layer), ()) if edits_scores(e)]
        if not edits:
            return x
        return edit_scores(x.flatten(0, 1), self._tile(x, visible), edits).view_as(x)

    def pattern(self, layer: int, x: Tensor, visible: Bool[Tensor, "batch query key"]) -> Tensor:
        """Pattern [batch head query key] after the edits that act behind the softmax; captured on the way."""
        edits = [e for e in self.edits.get(("pattern", layer), ()) if not edits_scores(e)]
        if edits:
            x = edit_pattern(x.flatten(0, 1), self._tile(x, visible), edits, layer=layer).view_as(x)
        for wanted in self.wanted.get(("pattern", layer), ()):
            part = self.acts[wanted.site] = wanted.take(x, self.mask)
            if self.gradients and wanted.reducer is None and part is not x:
                x = rebuilt(x, part, wanted.site, self.mask)
        return x

    def _tile(self, x: Tensor, visible: Tensor) -> Tile:
        return Tile.dense(visible, x.shape[1], mask=self.mask)


def rebuilt(x: Tensor, part: Tensor, site: Site, mask: Tensor) -> Tensor:
    """The tensor with its narrowed part written over itself, so that what follows depends on that part."""
    where = narrow(torch.arange(x.numel(), device=x.device).view(x.shape), site, mask)
    return x.flatten().index_copy(0, where.flatten(), part.flatten()).view(x.shape)


def checked(batch: Batch, info: ModelInfo) -> Batch:
    """The batch, if the model can run it.

    Raises:
        TaskError: empty, longer than the model's context, or ids outside its vocabulary.
    """
    length = int(batch.mask.sum(1).max())
    if length == 0:
        raise TaskError("empty prompt: at least one token is needed in each")
    if info.context is not None and length > info.context:
        raise TaskError(f"prompt of {length} tokens is longer than the model's context of {info.context}")
    low, high = int(batch.ids.min()), int(batch.ids.max())
    if low < 0 or high >= info.d_vocab:
        raise TaskError(f"token id {low if low < 0 else high} is outside the vocabulary 0..{info.d_vocab - 1}")
    return batch


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside (no dropout), each module's own mode back afterwards."""
    training = [m for m in model.modules() if m.training]
    for module in training:  # not model.eval(), which sets every module and costs more than a small model's layer
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def as_site(x: Tensor) -> Tensor:
    """[batch head pos d] as [batch pos head d], and back."""
    return x.transpose(1, 2)
