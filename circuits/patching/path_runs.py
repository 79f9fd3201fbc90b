"""Paths from senders to receivers, carried out: what they carry to each receiver, and what becomes of the run then.

Many paths share a forward, each in rows of its own, entered at the lowest layer at which anything changes and left
behind the last, where only END goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from circuits.patching.paired_runs import Both
from circuits.patching.receiver_edits import Receivers, Stage, stage_of, stream_site
from circuits.wiring.edges import Sent, run_edges, sent
from interp.batch import Batch
from interp.components import Kind, kind
from interp.edits import Edit, Replace
from interp.parallel import cached_property
from interp.patching.readout import Exit
from interp.sites import Site

Streams = Mapping[Stage, Float[Tensor, "path batch pos d_model"]]


@dataclass(frozen=True, eq=False)
class Path:
    """Senders (a mask) that are patched together, and the slots that hear of it."""

    senders: Bool[Tensor, " sender"]
    slots: tuple[int, ...]


class Reach:
    """Runs paths over one portion of prompts.

    Args:
        both: the two runs.
        way_out: from the last layer to the metric.
        live: MLPs between sender and receiver see the change, and receivers are set to what they would read (Wang et
            al. 2022); otherwise only the direct edges carry it, and it is added to what receivers read.
        batch_size: rows of a forward.
        frozen_norm: the final norm keeps the base run's divisor.
    """

    def __init__(self, both: Both, way_out: Exit, *, live: bool, batch_size: int, frozen_norm: bool = False) -> None:
        self.both, self.exit, self.live = both, way_out, live
        self.ports, self.layout, self.model = both.part.ports, both.layout, both.part.model
        self.n, self.last = len(both.part), both.part.model.info.n_layers - 1
        self.size = max(1, batch_size // self.n)
        self.logits = len(self.layout.slots) - 1
        self.exists = torch.from_numpy(self.layout.exists)
        self.divisor = way_out.divisor(both.end[0]) if frozen_norm else None
        self._other: Sent | None = None

    @torch.no_grad()
    def values(self, paths: Sequence[Path]) -> Float[Tensor, "path batch"]:
        """The metric of each prompt with each path patched."""
        values = torch.zeros(len(paths), self.n, dtype=torch.float64, device=self.both.end.device)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, path in enumerate(paths):
            if not self.live and self._has_feedback(path):
                values[i] = self._value_by_full_run(path).to(values)
            else:
                groups.setdefault((self._first(path), self._lowest(path) if self.live else -1), []).append(i)
        for (first, _), members in sorted(groups.items()):
            analytic = first > self.last and not self.live
            size = len(members) if analytic else self.size
            for at in range(0, len(members), size):
                block = members[at : at + size]
                resid = self._end([paths[i] for i in block], first)
                values[block] = self.exit.values(self.both.part, resid, divisor=self.divisor).to(values)
        return values

    def _has_feedback(self, path: Path) -> bool:
        """Whether a sender is changed by what a receiver hears: what it writes is then not the base run's."""
        changed_senders = (path.senders & self.exists[:, list(path.slots)].any(1)).numpy()
        return bool(self._feeds[list(path.slots)][:, changed_senders].any())

    @cached_property
    def _feeds(self) -> Bool[ndarray, "slot sender"]:
        """Which senders depend on what a slot reads: those that it belongs to, and all that these come before."""
        owners, exists = self.layout.owners, self.layout.exists
        later = exists.astype(np.int64) @ owners.astype(np.int64) > 0  # [sender sender]
        return owners | (owners.astype(np.int64) @ later.astype(np.int64) > 0)

    def _value_by_full_run(self, path: Path) -> Float[Tensor, " batch"]:
        """The path by a whole run with its edges removed."""
        part = self.both.part
        if self._other is None:
            task = part.task
            self._other = sent(self.model, self.ports, task.corrupt if self.both.base is task.clean else task.clean)
        edge_mask = torch.ones(self.exists.shape)
        edge_mask[path.senders.nonzero(), torch.tensor(path.slots)] = 0
        return part.value(run_edges(self.model, self.ports, self.both.base, edge_mask, self._other).logits)

    def _end(self, paths: Sequence[Path], first: int) -> Float[Tensor, "path batch d_model"]:
        """The stream behind the last layer at END."""
        stages = sorted({stage for path in paths for stage in self._stages(path)})
        out = [self.logits in path.slots for path in paths]
        if self.live:
            streams, gain = self._through_mlps(paths, stages, logits=any(out))
        else:
            streams = {stage: torch.stack([self._direct_change(path, stage) for path in paths]) for stage in stages}
            gain = torch.stack([self._at_end(self._direct_change(path, None)) for path in paths]) if any(out) else None
        resid = self._run(paths, first, streams) if stages else self.both.end[0].expand(len(paths), -1, -1)
        if gain is None:
            return resid
        wide = torch.promote_types(resid.dtype, torch.float32)
        return resid.to(wide) + gain.to(wide) * torch.tensor(out, device=gain.device)[:, None, None]

    def _direct_change(self, path: Path, stage: Stage | None) -> Float[Tensor, "batch pos d_model"]:
        """What direct edges carry to what reads at a stage, or to the logits (None)."""
        slots = self._of_stage(path, stage) if stage is not None else (self.logits,)
        if not slots:
            return torch.zeros_like(self.both.gap[0])
        return self.both.stream_change(path.senders & self.exists[:, slots[0]])

    def _through_mlps(
        self, paths: Sequence[Path], stages: Sequence[Stage], *, logits: bool
    ) -> tuple[Streams, Float[Tensor, "path batch d_model"] | None]:
        """Streams at the stages, and what the logits gain: attention as it was but for the senders, MLPs live."""
        both, times = self.both, len(paths)
        first = min(self._lowest(path) for path in paths)
        places = {stage: self._site_before(stage) for stage in stages}
        stop = self.last if logits else max((site.first or 0 for site in places.values() if site), default=-1)
        embed = torch.stack([both.stream_change(path.senders & self._senders_of_kind(-1, "embed")) for path in paths])
        start, acts = both.pre[first][None] + embed, dict[Site, Tensor]()
        if stop >= first:
            stage_sites = [
                site for site in places.values() if site is not None and site.first in range(first, stop + 1)
            ]
            acts = self.model.run(
                self._batch(times, end_only=both.only_end),
                start=(first, start.flatten(0, 1)),
                stop=stop,
                edits=[edit for layer in range(first, stop + 1) for edit in self._frozen_edits(paths, layer)],
                capture=list(dict.fromkeys([*stage_sites, Site("resid_post", stop)])),
            ).acts
        streams: dict[Stage, Tensor] = {}
        for stage, site in places.items():
            if site in acts:
                streams[stage] = acts[site].unflatten(0, (times, self.n))
            else:
                enters = stage[0] == first and (stage[1] == "attn" or self.layout.parallel)
                streams[stage] = start if enters else self._base(stage).expand(times, -1, -1, -1)
        if not logits:
            return streams, None
        end = acts[Site("resid_post", self.last)].unflatten(0, (times, self.n))
        return streams, torch.stack([self._at_end(x) for x in end]) - both.end[0]

    def _site_before(self, stage: Stage) -> Site | None:
        """Where the stream that is read at a stage is found before anything of that stage runs; None at the bottom."""
        site = stream_site(self.layout, stage)
        if site.kind == "resid_mid":
            return site
        return Site("resid_post", stage[0] - 1) if stage[0] else None

    def _senders_of_kind(self, layer: int, what: Kind) -> Bool[Tensor, " sender"]:
        """Senders of a kind in a layer."""
        layers = self.layout.sender_layers
        members = [layers[i] == layer and kind(name) == what for i, name in enumerate(self.layout.senders)]
        return torch.tensor(members)

    def _frozen_edits(self, paths: Sequence[Path], layer: int) -> list[Edit]:
        """What attention of a layer writes, senders from the other run; and MLPs that are senders."""
        both, edits = self.both, []
        if layer in both.attn:
            heads = self._senders_of_kind(layer, "head")
            out = torch.cat([both.attn[layer] + both.stream_change(path.senders & heads) for path in paths])
            edits.append(Replace(Site("attn_out", layer), out))
        if layer in both.mlp:
            at = self.layout.sender(layer)
            value, blocks = both.mlp[layer] + both.gap[at], [i for i, path in enumerate(paths) if path.senders[at]]
            edits += [Replace(Site("mlp_out", layer), value, rows=torch.arange(self.n) + i * self.n) for i in blocks]
        return edits

    def _run(self, paths: Sequence[Path], first: int, streams: Streams) -> Float[Tensor, "path batch d_model"]:
        """The run from the lowest receiver on, everything above live; at END, behind the last layer."""
        times, batch = len(paths), self._batch(len(paths))
        ends, exit_site = self.both.part.task.end.repeat(times), Site("resid_post", self.last)
        self.ports.prepare(int(batch.positions.max()) + 1)
        receivers = Receivers(self.ports, [path.slots for path in paths], streams, batch.positions, fixed=self.live)
        captures: dict[Site | str, Callable[[Tensor], Tensor] | None] = {
            exit_site: lambda x: x[torch.arange(len(x)), ends],
            **receivers.captures(),
        }
        run = self.model.run(
            batch,
            start=(first, self.both.pre[first].repeat(times, 1, 1)),
            stop=self.last,
            edits=receivers.edits(),
            capture=captures,
        )
        return run.acts[exit_site].unflatten(0, (times, self.n))

    def _batch(self, times: int, *, end_only: bool = False) -> Batch:
        """The base prompts so many times over; or one token in the place of each, where END is all that runs."""
        base = self.both.base
        if end_only:
            return Batch.of(torch.zeros(times * self.n, 1, dtype=torch.long, device=base.ids.device))
        return base.repeat(times)

    def _at_end(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        return x[:, 0] if self.both.only_end else x[torch.arange(len(x)), self.both.part.task.end]

    def _base(self, stage: Stage) -> Float[Tensor, "batch pos d_model"]:
        """The stream that is read at a stage of the base run."""
        layer, kind = stage
        between = kind == "mlp" and not self.layout.parallel and layer in self.both.attn
        return self.both.pre[layer] + self.both.attn[layer] if between else self.both.pre[layer]

    def _stages(self, path: Path) -> set[Stage]:
        return {stage_of(self.layout, slot) for slot in path.slots if slot != self.logits}

    def _of_stage(self, path: Path, stage: Stage) -> list[int]:
        return [slot for slot in path.slots if slot != self.logits and stage_of(self.layout, slot) == stage]

    def _first(self, path: Path) -> int:
        """Layer of the lowest receiver; one above the last where there are but the logits."""
        return min((layer for layer, _ in self._stages(path)), default=self.last + 1)

    def _lowest(self, path: Path) -> int:
        """Layer of the lowest sender; 0 for the embedding."""
        return max(0, int(self.layout.sender_layers[path.senders.numpy()].min()))
