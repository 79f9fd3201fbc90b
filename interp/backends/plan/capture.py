"""`Pass`: the plan of one forward pass, edits and then captures at each place. Knows no module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.backends.plan.places import Place, SiteCapture
from interp.edits import Edit, Replace, RotaryEdit, RotaryPlanes, apply_edits
from interp.edits.scope import at_spans
from interp.errors import SiteError
from interp.sites import Site


class Pass:
    """Edits and captures of one forward pass, applied as the backend reaches each place.

    Args:
        wanted: what to keep, by place.
        edits: what to change, by place.
        gradients: put what is kept back onto the path to the logits, so that gradients reach it.
        clones: keep copies, for models that overwrite activations in place.

    Attributes:
        acts: what was kept. mask: real tokens of the prompts. spans: stretches of them that have a name.
        offset: column of the first token of this pass.
        on: False while edits of a context make way for a run that carries them itself.
        passing: whether a forward pass of the model is under way; parts that are called by themselves are not edited.
        visited: places that the pass came by.
        ended: the state to go back to, where an outer context was closed first.
        passed_by: places of a context's edits that a run of some layers alone need not come by.
        standing: edits of an `editing` context, outer ones included, of which this is the plan.
        planes: rotary planes of the layers at which an edit is of them.
    """

    def __init__(
        self,
        captures: Mapping[Place, Sequence[SiteCapture]],
        edits: Mapping[Place, Sequence[Edit]],
        *,
        gradients: bool = False,
        clones: bool = False,
    ) -> None:
        self.captures, self.edits, self.gradients, self.clones = captures, edits, gradients, clones
        self.acts: dict[Site, Tensor] = {}
        self.mask: Bool[Tensor, "batch prompt"] = torch.ones(0, 0, dtype=torch.bool)
        self.spans: Mapping[str, Bool[Tensor, "batch prompt"]] = {}
        self.shape = (0, 0)
        self.offset, self.on, self.frozen = 0, True, False
        self.passing = True
        self.visited: set[Place] = set()
        self.ended: Any = None
        self.passed_by: set[Place] = set()
        self.standing: tuple[Edit, ...] = ()
        self.planes: dict[int, RotaryPlanes] = {}

    def begin(
        self,
        mask: Bool[Tensor, "batch prompt"] | None,
        shape: tuple[int, int],
        offset: int = 0,
        *,
        spans: Mapping[str, Bool[Tensor, "batch prompt"]] | None = None,
    ) -> None:
        """Start of a forward pass of `shape` tokens; a pass that continues a prompt keeps the prompt's mask and spans.

        Raises:
            SiteError: an edit is of a span that the prompts do not have.
        """
        self.shape, self.offset = shape, offset
        if mask is not None:
            self.mask, self.spans = mask, spans or {}
        self._place()
        for edits in self.edits.values():
            for edit in edits:
                edit.begin(self.mask, offset)

    def _place(self) -> None:
        """Put the tokens of spans in place of their names in edits."""
        self.edits = {place: [at_spans(edit, self.spans) for edit in edits] for place, edits in self.edits.items()}

    @property
    def active(self) -> bool:
        """Whether hooks do what they are there for."""
        return self.on and self.passing

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Context in which nothing is changed, for a run that carries these edits itself."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def asks(self, layer: int | None, *kinds: str) -> bool:
        """Whether anything is to be done at one of these kinds."""
        for kind in kinds:  # noqa: SIM110  (a generator costs three calls, many times a layer)
            if (kind, layer) in self.captures or (kind, layer) in self.edits:
                return True
        return False

    def edited(self, layer: int | None, *kinds: str) -> bool:
        """Whether anything is changed at one of these kinds."""
        return any((kind, layer) in self.edits for kind in kinds)

    def visit(self, kind: str, layer: int | None, x: Tensor, *, offset: int | None = None) -> Tensor:
        """The activation of a place after its edits; what was asked for is kept."""
        if not self.active:
            return x
        self.visited.add((kind, layer))
        edits = self.edits.get((kind, layer))
        if edits:
            x = self._change(x, (kind, layer), self.offset if offset is None else offset)
        for capture in self.captures.get((kind, layer), ()):
            x = self.keep(capture, x)
        return x

    def spread(self, kind: str, layer: int | None, x: Tensor) -> Tensor:
        """`visit` for a tensor whose batch and position axes may be flattened into one."""
        flat = x.shape[:2] != self.shape
        wide = x.reshape(*self.shape, -1) if flat else x
        result = self.visit(kind, layer, wide)
        if flat and result is wide and not self.gradients:
            return x
        return result.reshape(x.shape) if flat else result

    def tolerant(self, kind: str) -> Callable[[Any], Any]:
        """`visit` for what a module takes or gives, whatever its form; batch and position may be flattened into one."""

        def visit(x: Any) -> Any:
            site = Site(kind)
            if not self.active:
                return x
            if not isinstance(x, Tensor):
                raise refuse(site, f"the module takes or gives {type(x).__name__}, not a tensor")
            if not x.is_floating_point() and self.edited(None, kind):
                raise refuse(site, f"its values are {str(x.dtype).removeprefix('torch.')}, which have no edits here")
            rows, n = self.shape
            if x.ndim > 1 and len(x) == rows * n != rows:
                wide = x.reshape(rows, n, *x.shape[1:])
                result = self.visit(kind, None, wide)
                return x if result is wide and not self.gradients else result.reshape(x.shape)
            tokens = x.ndim > 2 and x.shape[:2] == self.shape
            if not tokens and any(w.site.position is not None for w in self.captures.get((kind, None), ())):
                raise refuse(site, f"its shape {tuple(x.shape)} is not [batch pos ...], so that it has no positions")
            return self.visit(kind, None, x)

        return visit

    def keep(self, capture: SiteCapture, x: Tensor) -> Tensor:
        """Keep what is wanted of an activation; with gradients, the activation is rebuilt from what was kept."""
        if self.gradients and not x.requires_grad:  # set by an edit: constant, and gradients start here
            x = x.detach().requires_grad_()
        part = capture.take(x, self.mask)
        keep = not self.clones or self.gradients or not isinstance(part, Tensor)
        self.store(capture, part if keep else part.clone())
        if self.gradients and part is not x and capture.reducer is None:
            return apply_edits(x, [Replace(capture.site, part)], layer=capture.site.first, mask=self.mask)
        return x

    def store(self, capture: SiteCapture, part: Tensor) -> None:
        """Put away what is wanted of an activation."""
        self.acts[capture.site] = part

    def at(self, kind: str, layer: int | None) -> Sequence[Edit]:
        """Edits of a place in this pass."""
        return self.edits.get((kind, layer), ())

    def rotary(self, layer: int) -> list[RotaryEdit]:
        """Edits of a layer's rotary embedding in this pass."""
        return [e for e in self.at("pattern", layer) if isinstance(e, RotaryEdit)]

    def turned(self) -> set[int]:
        """Layers whose rotary planes an edit is of, in any pass of this plan."""
        places = [(layer, e) for (kind, layer), edits in self.edits.items() if kind == "pattern" for e in edits]
        return {layer for layer, e in places if isinstance(e, RotaryEdit) and layer is not None}

    def _change(self, x: Tensor, place: Place, offset: int) -> Tensor:
        prompt, edits, layer = self.mask.shape[1], self.edits[place], place[1]
        if offset == 0 and x.shape[1] > prompt:  # generated tokens behind the prompt, without a cache
            parts = x[:, :prompt], x[:, prompt:]
            pieces = [
                apply_edits(p, edits, layer=layer, mask=self.mask, offset=o)
                for p, o in zip(parts, (0, prompt), strict=True)
            ]
            return torch.cat(pieces, dim=1)
        return apply_edits(x, edits, layer=layer, mask=self.mask, offset=offset)


def refuse(site: Site | Edit, why: str) -> SiteError:
    """Error for a place that does not exist."""
    return SiteError(f"{site.site if isinstance(site, Edit) else site}: {why}")
