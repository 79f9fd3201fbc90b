"""`Window`: the first keys and the last ones, and no others; `WindowMask`, which never builds n x n.

A call says which heads of which prompts have a window (`Call.windows`); `windowed` measures such calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from interp.attention.masks import CausalMask, Segment
from interp.shapes import Bool


@dataclass(frozen=True)
class Window:
    """Query i sees the first `sinks` tokens of its prompt and the last `width` up to itself.

    With `compensate` the n_i keys between them stand there as one: their mean key, log n_i added to its score, and
    their mean value.
    """

    sinks: int
    width: int
    compensate: bool = False


class WindowMask(CausalMask):
    """Another causal mask's keys, as far as they are in a window."""

    def __init__(self, mask: CausalMask, window: Window) -> None:
        sizes = (mask.batch, mask.n_query, mask.n_key)
        super().__init__(*sizes, predicate=mask.predicate, padding=mask.padding, offset=mask.offset, device=mask.device)
        self.whole, self.window = mask, window
        self.first = self.keys().long().argmax(1)

    def visible(self, rows: Tensor, query: Tensor, key: Tensor) -> Bool[Tensor, "..."]:
        """The other mask's answer at indices that broadcast together, and whether the key is in the window."""
        near = query + self.offset - key < self.window.width
        return super().visible(rows, query, key) & (near | (key < self.first[rows] + self.window.sinks))

    @property
    def plain(self) -> CausalMask:
        """The other mask."""
        return self.whole

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The other mask's segments; where a prompt is longer than the window, its tiles are narrowed to it."""
        return tuple(self._narrowed(segment) for segment in self.whole.segments)

    def _narrowed(self, segment: Segment) -> Segment:
        sinks, width = self.window.sinks, self.window.width
        if segment.stop - segment.start <= sinks + width:
            return segment
        blocks = tuple((a, b, max(low, a + self.offset - width + 1), high) for a, b, low, high in segment.blocks)
        return replace(segment, blocks=blocks, full=False, extra=sinks)
