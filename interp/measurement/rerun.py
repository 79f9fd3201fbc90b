"""The same prompts under one set of edits after another: what lies below all edits is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch
from interp.edits import Edit
from interp.errors import SiteError
from interp.model import Model
from interp.results.stats import Head
from interp.sites import Site


class Rerun:
    """Logits of a batch under edits; once it has been run without edits, edits from `lowest` on start at that layer.

    The same numbers as whole runs: whether a run that starts there gives the very same logits is tried on each batch
    first, and where it does not (an edit of a context below, layers that share what they computed) every run is whole.
    One residual per batch is kept.

    Args:
        model: any loaded model.
        lowest: layer of the lowest edit in most of the runs; 0 runs everything whole.
    """

    def __init__(self, model: Model, lowest: int = 0) -> None:
        self.model, self.lowest = model, lowest
        self._entry: dict[tuple[bytes, bytes], Tensor] = {}

    @classmethod
    def of_heads(cls, model: Model, heads: Iterable[Head]) -> Rerun:
        """For sets of heads as low as the lowest of these, or higher."""
        return cls(model, min((layer for layer, _ in heads), default=0))

    def __call__(self, batch: Batch, edits: Sequence[Edit] = ()) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the batch under these edits."""
        key = (batch.ids.cpu().numpy().tobytes(), batch.mask.cpu().numpy().tobytes())
        if not edits and self.lowest > 0 and key not in self._entry:
            return self._first(batch, key)
        entry = self._entry.get(key)
        if entry is None or any(e.site.first is None or e.site.first < self.lowest for e in edits):
            return _some(self.model.run(batch, edits=edits).logits)
        return _some(self.model.run(batch, edits=edits, start=(self.lowest, entry)).logits)

    def _first(self, batch: Batch, key: tuple[bytes, bytes]) -> Tensor:
        """A whole run that leaves its residual, if the rest can be had from it."""
        site = Site("resid_pre", self.lowest)
        run = self.model.run(batch, capture=[site])
        logits = _some(run.logits)
        try:
            again = self.model.run(batch, start=(self.lowest, run.acts[site])).logits
        except SiteError:
            return logits
        if again is not None and torch.equal(logits, again):
            self._entry[key] = run.acts[site]
        return logits


def _some(logits: Tensor | None) -> Tensor:
    if logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    return logits
