"""Receivers that read another stream: edits of q, k, v and of the MLP's input, other receivers in other rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.graph.layout import Layout
from circuits.wiring.ports import QKV, Ports
from interp.components import Component, Port, kind, layer_of
from interp.edits import Apply, Edit
from interp.numerics import wide
from interp.sites import Site

Stage = tuple[int, Literal["attn", "mlp"]]
"""Layer and what reads there: q, k and v of its heads take one stream, its MLP another."""


def stage_of(layout: Layout, slot: int) -> Stage:
    """Where a slot reads; it is not that of the logits."""
    name, _ = layout.slots[slot]
    return layer_of(name, layout.n_layers), "mlp" if kind(name) == "mlp" else "attn"


def stream_site(layout: Layout, stage: Stage) -> Site:
    """The stream that is read at a stage."""
    layer, kind = stage
    return Site("resid_mid" if kind == "mlp" and not layout.parallel else "resid_pre", layer)


class Receivers:
    """Slots by blocks of rows, and the streams they are to read.

    Args:
        ports: how slots read.
        slots: those of each block; the one of the logits is passed over.
        streams: stage -> what the blocks' slots gain, or with `fixed` what they read whatever the run has there.
        positions: of every row.
        fixed: receivers are set, not added to.
    """

    def __init__(
        self,
        ports: Ports,
        slots: Sequence[Sequence[int]],
        streams: Mapping[Stage, Float[Tensor, "block batch pos d_model"]],
        positions: Int[Tensor, "row pos"],
        *,
        fixed: bool,
    ) -> None:
        self.ports, self.layout, self.positions, self.fixed = ports, ports.layout, positions, fixed
        self.streams = {stage: wide(x.flatten(0, 1)) for stage, x in streams.items()}
        self.n = len(positions) // len(slots)
        self.rows: dict[Stage, dict[Port, dict[tuple[int, ...], Tensor]]] = {stage: {} for stage in streams}
        for stage in streams:
            for block, own in enumerate(slots):
                self._note(stage, block, own)
        self.acts: dict[Site, Tensor] = {}

    def captures(self) -> dict[Site, Callable[[Tensor], Tensor]]:
        """Reducers that note the streams that are read, and keep nothing."""

        def reducer(site: Site) -> Callable[[Tensor], Tensor]:
            def note(x: Tensor) -> Tensor:
                self.acts[site] = x
                return x[:0]

            return note

        return {} if self.fixed else {site: reducer(site) for site in {self._site(stage) for stage in self.streams}}

    def edits(self) -> list[Edit]:
        """One for every port that is read otherwise."""
        edits: list[Edit] = []
        for stage, by_port in self.rows.items():
            for port, rows in by_port.items():
                if port == "in":
                    edits.append(Apply(Site("mlp_in", stage[0]), self._mlp(stage, rows[(0,)])))
                else:
                    edits.append(Apply(Site(port, stage[0]), self._port(stage, port, rows)))
        return edits

    def _note(self, stage: Stage, block: int, slots: Sequence[int]) -> None:
        heads: dict[Port, list[int]] = {}
        for slot in slots:
            name, port = self.layout.slots[slot]
            if slot < len(self.layout.slots) - 1 and stage_of(self.layout, slot) == stage:
                heads.setdefault(port, []).append(Component.parse(name).index or 0)
        rows = torch.arange(self.n) + block * self.n
        for port, head_list in heads.items():
            row_table = self.rows[stage].setdefault(port, {})
            key = tuple(sorted(head_list))
            row_table[key] = torch.cat([row_table[key], rows]) if key in row_table else rows

    def _site(self, stage: Stage) -> Site:
        return stream_site(self.layout, stage)

    def _mlp(self, stage: Stage, rows: Int[Tensor, " some"]) -> Callable[[Tensor], Tensor]:
        def change(site: Tensor) -> Tensor:
            value, out = self.streams[stage][rows], site.clone()
            if self.fixed:
                out[rows] = self.ports.read_mlp(stage[0], value).to(site)
            else:
                x = wide(self.acts[self._site(stage)])[rows]
                new, old = (self.ports.read_mlp(stage[0], stream) for stream in (x + value, x))
                out[rows] += (new - old).to(site)
            return out

        return change

    def _port(
        self, stage: Stage, port: QKV, rows: Mapping[tuple[int, ...], Int[Tensor, " some"]]
    ) -> Callable[[Tensor], Tensor]:
        layer = stage[0]

        def change(site: Tensor) -> Tensor:
            out = site.clone()
            for heads, row_ids in rows.items():
                value, at, block = self.streams[stage][row_ids], self.positions[row_ids], out[row_ids]
                if self.fixed:
                    block[:, :, list(heads)] = self._read_stream(layer, port, value, heads, at).to(site)
                else:
                    x = wide(self.acts[self._site(stage)])[row_ids]
                    changed_heads, change = self._site_gain(layer, port, x, value, heads, at)
                    block[:, :, changed_heads] += change.to(site)
                out[row_ids] = block
            return out

        return change

    def _read_stream(self, layer: int, port: QKV, x: Tensor, heads: Sequence[int], at: Tensor) -> Tensor:
        """What heads read from x."""
        if self.ports.shared(layer, port):
            return self.ports.read(layer, port, x, at)[:, :, list(heads)]
        return self.ports.read(layer, port, x, at, heads)

    def _site_gain(
        self, layer: int, port: QKV, x: Tensor, gain: Tensor, heads: Sequence[int], at: Tensor
    ) -> tuple[list[int], Tensor]:
        """What the site gains where heads read x + gain: all of its heads, where a norm joins them."""
        if not self.ports.shared(layer, port):
            new, old = (self.ports.read(layer, port, stream, at, heads) for stream in (x + gain, x))
            return list(heads), new - old
        raw = self.ports.raw(layer, port, x)
        other = raw.clone()
        other[:, :, list(heads)] = self.ports.raw(layer, port, x + gain, heads)
        new, old = (self.ports.finish(layer, port, each, at) for each in (other, raw))
        return list(range(raw.shape[2])), new - old
