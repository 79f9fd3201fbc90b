"""`Program`: a pass as plain data, for a server that has no `interp`; `served.carry_out` runs it.

Every activation edit sets, scales or adds, so each becomes (verb, where, value): found by applying it here to zeros and
to ones of the site's shape, with its errors raised here. Axes along which nothing varies are sent once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.nnsight.replica import Chart
from interp.backends.plan.capture import Pass
from interp.backends.plan.places import Place, SiteCapture
from interp.edits import Edit, apply_edits
from interp.edits.apply import change
from interp.edits.where import one_column, row_index
from interp.model import Start

_STEP = {"enter": None, "remember": None, "middle": None, "norm": None, "finite": False, "heads": None, "scale": 1.0}


class Program:
    """Steps of one pass in execution order, and under which key each thing asked for comes back."""

    def __init__(self, chart: Chart, plan: Pass, sizes: dict[str, tuple[int, ...]]) -> None:
        """`sizes`: axes of a kind after batch and position; the stream's for kinds that are not named."""
        self.chart, self.plan, self.sizes = chart, plan, sizes
        self.captures: list[SiteCapture] = [w for captures in plan.captures.values() for w in captures]
        self._keys = {id(w): i for i, w in enumerate(self.captures)}
        self.steps: list[dict[str, Any]] = []

    def write(self, *, start: Start | None = None, stop: int | None = None) -> list[dict[str, Any]]:
        """Every step of the pass, in execution order; `start` and `stop` as in `Model.run`."""
        blocks = self.chart.anatomy.blocks
        first, last = 0 if start is None else start[0], len(blocks) - 1 if stop is None else stop
        if start is not None:
            for layer in range(first):
                bundled = self.chart.anatomy.bundled
                self._step(blocks[layer], "skip", [], enter=start[1].cpu(), bundled=bundled)
        for layer in range(first, last + 1):
            self._layer(layer, None if start is None or layer != first else start[1].cpu())
        self._step(blocks[last], "output", [], finite=True)
        end = (len(blocks), 0)
        self.steps.sort(key=lambda s: self.chart.order.get((s["path"], s["order"]), end))
        if stop is None:
            if self.plan.asks(None, "norm_scale"):
                self._norm(self.chart.anatomy.final_norm, "norm_scale", None)
            self._add("", "logits", [self._visit("logits", None)])
        return self.steps

    def _layer(self, layer: int, enter: Tensor | None) -> None:
        plan, part, stream = self.plan, self.chart.anatomy.part(layer), self.chart.anatomy.stream[layer]
        block = self.chart.anatomy.blocks[layer]
        middle = plan.edited(layer, "resid_mid")
        embeds = layer == 0 and enter is None and plan.asks(None, "embed")
        if enter is not None or middle or embeds or plan.asks(layer, "resid_pre"):
            visits = [self._visit("embed", None)] if embeds else []
            remember = layer if middle else None
            self._step(block, "input", [*visits, self._visit("resid_pre", layer)], enter=enter, remember=remember)
        if part is not None and plan.asks(layer, "z"):
            self._step(part.output, "input", [self._visit("z", layer)], heads=part.n_heads)
        if part is not None and plan.asks(layer, "attn_in"):
            self._step(part.module, "input", [self._visit("attn_in", layer)])
        around = {"mlp_norm_scale": stream.mlp_norm, "mlp_out_norm_scale": stream.mlp_norm_after}
        if part is not None:
            around |= {"norm_scale": part.norm_before, "attn_out_norm_scale": part.norm_after}
        for kind in (kind for kind in around if plan.asks(layer, kind)):
            self._norm(around[kind], kind, layer)
        if stream.attn_out is not None and (middle or plan.asks(layer, "attn_out")):
            between = (layer, [self._visit("resid_mid", layer)]) if middle else None
            self._step(
                stream.attn_out, "output", [self._visit("attn_out", layer)], scale=stream.attn_scale, middle=between
            )
        if plan.asks(layer, "resid_mid") and not middle:
            self._step(stream.resid_mid, "input", [self._visit("resid_mid", layer)])
        self._mlp(layer)
        if plan.asks(layer, "resid_post"):
            self._step(block, "output", [self._visit("resid_post", layer)])

    def _mlp(self, layer: int) -> None:
        plan, stream = self.plan, self.chart.anatomy.stream[layer]
        if plan.asks(layer, "mlp_in"):
            for i, module in enumerate(stream.mlp_in):  # all take one tensor: each is changed, one is kept
                self._step(module, "input", [self._visit("mlp_in", layer, keep=i == 0)])
        for kind, module in (("mlp_pre", stream.mlp_pre), ("mlp_up", stream.mlp_up)):
            if plan.asks(layer, kind):
                self._step(module, "output", [self._visit(kind, layer)])
        if plan.asks(layer, "mlp_post"):
            self._step(stream.mlp_post, "input", [self._visit("mlp_post", layer)])
        if plan.asks(layer, "mlp_out"):
            self._step(stream.mlp_out, "output", [self._visit("mlp_out", layer)], scale=stream.mlp_scale)

    def _norm(self, norm: nn.Module | None, kind: str, layer: int | None) -> None:
        assert norm is not None  # refused before
        visits = [self._visit(kind, layer)]
        self._step(norm, "input", visits, norm=self.chart.norms[self.chart.paths[id(norm)]])

    def _step(self, module: nn.Module | None, port: str, visits: list[dict[str, Any]], **more: Any) -> None:
        assert module is not None  # refused before
        self._add(self.chart.paths[id(module)], port, visits, **more)

    def _add(self, path: str, port: str, visits: list[dict[str, Any]], **more: Any) -> None:
        shape = tuple(self.plan.shape)
        self.steps.append(
            {**_STEP, "path": path, "port": port, "order": port, "shape": shape, "visits": visits, **more}
        )

    def _visit(self, kind: str, layer: int | None, *, keep: bool = True) -> dict[str, Any]:
        place: Place = (kind, layer)
        edits = [self._edit(e, kind, layer) for e in self.plan.edits.get(place, ())]
        captures = self.plan.captures.get(place, ()) if keep else ()
        return {"edits": edits, "keep": [self._keep(w) for w in captures]}

    def _keep(self, capture: SiteCapture) -> tuple[int, int | None, Tensor | None]:
        site, mask = capture.site, self.plan.mask
        rows = row_index(None, len(mask), site, mask.device)
        column = None if site.position is None else one_column(None, site, mask, rows)
        return self._keys[id(capture)], site.head, column

    def _edit(self, edit: Edit, kind: str, layer: int | None) -> tuple[str, Tensor | None, Tensor]:
        tail = self.sizes.get(kind, self.sizes["resid_pre"])
        shape = (*self.plan.shape, *tail)
        verb, _ = change(edit, shape, layer, 0)

        def on(fill: float) -> Tensor:
            return apply_edits(torch.full(shape, fill), [edit], layer=layer, mask=self.plan.mask)

        if verb != "set":
            return verb, None, _compact(on(1.0 if verb == "scale" else 0.0))
        zero, one = on(0.0), on(1.0)
        return verb, _compact(~((zero == 0) & (one == 1))), _compact(zero)


def _compact(x: Tensor) -> Tensor:
    """The same values with axes of size one where they do not vary: what broadcasting gives back."""
    for axis in range(x.ndim):
        one = x.narrow(axis, 0, 1)
        if x.shape[axis] > 1 and bool((x == one).all()):
            x = one
    return x.clone()
