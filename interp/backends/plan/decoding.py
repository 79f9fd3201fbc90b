"""`Decoding`: what a pass of edits and captures becomes when a model generates: one forward pass after another.

A mixin for `Pass` and what is made of it. Edits may belong to a step: step 0 is the prompt, step s > 0 the s-th new
token, wherever it is read, so that a generation with a cache and one without give the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from interp.backends.plan.capture import Pass
from interp.backends.plan.places import Place, SiteCapture, changes
from interp.edits import Edit, apply_edits
from interp.edits.scope import at_spans
from interp.errors import BackendError, SchemaError
from interp.model import ModelInfo
from interp.sites import SQUARE, Site

LAST = ("unembed_in", "logits")  # kinds of which a pass of `generate` has the last token alone
WHOLE = ("k", "v")  # kinds of which a pass has those of the cache as well


class Decoding(Pass):
    """A pass that is carried out again for every new token."""

    common: Mapping[Place, list[Edit]] = {}
    steps: Mapping[int, Mapping[Place, list[Edit]]] = {}

    def decode(self, steps: Mapping[int, Sequence[Edit]] | None, info: ModelInfo) -> None:
        """Take over edits by step, and start anew with what is kept.

        Raises:
            SchemaError: steps that are no {step: edits}, counted from 0.
        """
        self.common = {place: list(edits) for place, edits in self.edits.items()}
        self.parts: dict[Site, list[Tensor]] = {}
        self.kept: dict[Site, SiteCapture] = {}
        self.steps = {step: changes(edits, info) for step, edits in _checked(steps).items()}
        every = dict.fromkeys(place for places in (self.common, *self.steps.values()) for place in places)
        self.edits = {
            p: [*self.common.get(p, ()), *(e for s in self.steps.values() for e in s.get(p, ()))] for p in every
        }

    def _place(self) -> None:
        super()._place()
        self.common = {place: [at_spans(edit, self.spans) for edit in edits] for place, edits in self.common.items()}
        self.steps = {
            step: {place: [at_spans(edit, self.spans) for edit in edits] for place, edits in places.items()}
            for step, places in self.steps.items()
        }

    def at(self, kind: str, layer: int | None) -> Sequence[Edit]:
        """Edits of attention in this pass.

        Raises:
            BackendError: edits of single steps where a pass reads several of them: without a cache.
        """
        place, prompt, n = (kind, layer), self.mask.shape[1], self.shape[1]
        common = self.common.get(place, ())
        if not any(place in edits for edits in self.steps.values()):
            return common
        if self.offset == 0 and n > prompt:
            raise BackendError(f"{kind}: edits of attention by step need the cache; leave use_cache=False out")
        step = max(0, self.offset - prompt + 1)
        return [*common, *self.steps.get(step, {}).get(place, ())]

    def _change(self, x: Tensor, place: Place, offset: int) -> Tensor:
        prompt, layer, pieces = self.mask.shape[1], place[1], []
        if not any(place in edits for edits in self.steps.values()):
            return super()._change(x, place, offset)
        common = self.common.get(place, ())
        if offset < prompt:
            edits = [*common, *self.steps.get(0, {}).get(place, ())]
            pieces.append(apply_edits(x[:, : prompt - offset], edits, layer=layer, mask=self.mask, offset=offset))
        for column in range(max(offset, prompt), offset + x.shape[1]):
            token = x[:, column - offset : column - offset + 1]
            token = apply_edits(token, common, layer=layer, mask=self.mask, offset=column)
            edits = self.steps.get(column - prompt + 1, {}).get(place, ())
            pieces.append(apply_edits(token, edits, layer=layer))
        return torch.cat(pieces, dim=1)

    def keep(self, capture: SiteCapture, x: Tensor) -> Tensor:
        """Keep what is wanted of one pass; a site at a position is of the prompt's."""
        if len(x) != len(self.mask):
            raise BackendError(
                f"{capture.site}: {len(x)} sequences are generated for {len(self.mask)} prompts; capture with one for "
                "each (num_beams=1, num_return_sequences=1)"
            )
        if capture.site.position is None or self.offset == 0:
            self.store(capture, capture.take(x, self.mask))
        return x

    def store(self, capture: SiteCapture, part: Tensor) -> None:
        """Put away what is wanted of one pass, behind that of the passes before; one that reads all stands for them."""
        site, pinned = capture.site, capture.site.position is not None
        if pinned and self.offset:
            return
        part = part.detach().clone() if isinstance(part, Tensor) else part
        anew = pinned or (capture.reducer is None and site.kind not in LAST and (not self.offset or site.kind in WHOLE))
        self.parts[site] = [part] if anew else [*self.parts.get(site, []), part]
        self.kept[site] = capture

    def activations(self) -> dict[Site, Tensor]:
        """What was kept of all passes, by site.

        Raises:
            SchemaError: results of a reducer that differ in their shapes from pass to pass.
        """
        return {site: _joined(site, parts, self.kept[site]) for site, parts in self.parts.items()}


def _joined(site: Site, parts: list[Tensor], capture: SiteCapture) -> Tensor:
    if capture.reducer is not None:
        shapes = {tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts}
        if len(shapes) > 1 or not isinstance(parts[0], Tensor):
            raise SchemaError(
                f"{site}: the reducer gives {sorted(map(str, shapes))}; expected one shape for every pass"
            )
        return torch.stack(parts)
    if len(parts) == 1:
        return parts[0]
    if site.kind in SQUARE:
        fill = -torch.inf if site.kind == "scores" else 0.0
        parts = [pad(p, (0, parts[-1].shape[-1] - p.shape[-1]), value=fill) for p in parts]
        return torch.cat(parts, dim=-2)
    return torch.cat(parts, dim=1)


def _checked(steps: Any) -> dict[int, Any]:
    if steps is None:
        return {}
    if not isinstance(steps, Mapping):
        raise SchemaError(
            f"steps: expected {{step: edits}}, such as {{0: [...], 2: [...]}}; got {type(steps).__name__}"
        )
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, Integral) or step < 0:
            raise SchemaError(f"steps: {step!r:.40} is no step; 0 is the prompt, s > 0 the s-th new token")
    return {int(step): edits for step, edits in steps.items()}
