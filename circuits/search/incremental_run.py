"""A run with edges removed, kept as values, so that one more removal recomputes only what still depends on it.

Held are, under the edges removed so far, what every sender writes and what every slot that matters reads. A trial gives
one slot other streams, many of them as rows of a batch, and follows the change upwards through edges that are left:
heads whose q, k or v changed, MLPs, the logits. Components that lead nowhere are not computed, those that only END
depends on are computed at END alone, and of a layer only the heads that change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from circuits.wiring.case import Case
from circuits.wiring.components import PORTS, Key, Parts, at
from circuits.wiring.edges import Other
from interp.components import LOGITS, kind, layer_of


@dataclass(eq=False)
class Trial:
    """What a change of one slot's stream makes of everything above it, row by row.

    Attributes:
        streams: slot -> what its stream gains over the clean one. writes: sender -> what it writes more than clean.
        sites, raw, z: (layer, port, head) -> q, k or v, and before a norm that joins heads; (layer, head) -> values.
        value: the metric, mean over prompts, of each row.
    """

    streams: dict[int, Float[Tensor, "row batch some d_model"]]
    writes: dict[int, Float[Tensor, "row batch some d_model"]] = field(default_factory=dict)
    sites: dict[Key, Float[Tensor, "row batch pos d_head"]] = field(default_factory=dict)
    raw: dict[Key, Float[Tensor, "row batch some d_head"]] = field(default_factory=dict)
    z: dict[tuple[int, int], Float[Tensor, "row batch some d_head"]] = field(default_factory=dict)
    value: Float[Tensor, " row"] = field(default_factory=lambda: torch.zeros(0))


class Splice:
    """The run of a case under a mask that loses edges, slot after slot, from the logits down.

    Attributes:
        keep: edges not removed yet. value: the metric's mean over prompts under them.
        gap: what removed edges carry less what senders write on the clean prompts.
    """

    def __init__(self, case: Case, other: Other) -> None:
        """Run the clean prompts once."""
        self.case, self.layout, self.parts = case, case.layout, Parts(case)
        clean = case.sent_clean
        self.gap = (other.to(clean) - clean).expand_as(clean)
        self.writes = torch.zeros_like(clean)  # over the clean run, under the edges left
        self.keep: Bool[ndarray, "sender slot"] = self.layout.exists.copy()
        self.end = case.task.end
        self.value = float(case.clean.double().mean())
        self._streams: dict[int, Tensor] = {}
        self.refresh()

    def refresh(self) -> None:
        """Find again which slots matter (`needed`), and which of them at END alone (`narrow`)."""
        layout, owners = self.layout, self.layout.owners
        live = np.asarray(self.keep.any(1))
        wide = np.zeros(len(live), dtype=bool)
        keys = np.array([port in ("k", "v") for _, port in layout.slots])
        for layer in reversed(range(layout.n_layers)):
            in_layer = np.flatnonzero(layout.sender_layers == layer)
            heads = np.array([u for u in in_layer.tolist() if kind(layout.senders[u]) == "head"], dtype=int)
            for group in (np.setdiff1d(in_layer, heads), heads):  # an MLP stands above the heads of its layer
                wide_slots = owners.any(1) & (owners & wide[None, :]).any(1)
                reads = (keys & (owners & live[None, :]).any(1)) | wide_slots
                wide[group] = (self.keep[group] & reads[None, :]).any(1)
            if len(heads) and self.parts.coupled(layer):
                wide[heads], live[heads] = wide[heads].any(), live[heads].any()
        logits = np.array([name == LOGITS for name, _ in layout.slots])
        self.needed = (owners & live[None, :]).any(1) | logits
        self.narrow = self.needed & ~keys & ~(owners & wide[None, :]).any(1)
        self.wide = wide

    def leads(self, slot: int) -> bool:
        """Whether a component that the slot feeds has an edge left."""
        return self.layout.slots[slot][0] == LOGITS or bool(self.keep[self.layout.owners[slot]].any())

    def stream(self, slot: int) -> Float[Tensor, "batch some d_model"]:
        """What the slot's stream gains over the clean run's: changes that arrive, and what removed edges carry."""
        gain = self._streams.get(slot)
        if gain is None:
            present = torch.from_numpy(self.keep[:, slot]).to(self.gap)
            removal = torch.from_numpy(self.layout.exists[:, slot] & ~self.keep[:, slot]).to(self.gap)
            writes, gap = (at(x, self.end) if self.narrow[slot] else x for x in (self.writes, self.gap))
            gain = torch.einsum("u,ubpd->bpd", present, writes) + torch.einsum("u,ubpd->bpd", removal, gap)
        elif self.narrow[slot] and gain.shape[1] > 1:
            gain = at(gain, self.end)
        self._streams[slot] = gain
        return gain

    @torch.no_grad()
    def without(self, slot: int, senders: Sequence[int], *, at_once: bool = False) -> Trial:
        """Row i with the first i + 1 of the senders removed from the slot as well; one row for all with `at_once`."""
        steps = self.gap[list(senders)] - self.writes[list(senders)]
        if self.narrow[slot]:
            steps = at(steps, self.end)
        rows = self.stream(slot) + (steps.sum(0, keepdim=True) if at_once else steps.cumsum(0))
        trial = Trial({slot: rows})
        for layer in range(layer_of(self.layout.slots[slot][0], self.layout.n_layers), self.layout.n_layers):
            if self.layout.has_heads(layer):
                self._attention(layer, trial)
            if self.layout.mlps:
                self._mlp(layer, trial)
        last = trial.streams.get(len(self.layout.slots) - 1)
        unchanged = torch.full((len(rows),), self.value, dtype=torch.float64)
        trial.value = unchanged if last is None else self.parts.metric(last)
        return trial

    def commit(self, slot: int, senders: Sequence[int], trial: Trial | None, row: int = 0) -> None:
        """Remove the senders; the trial's row is what the run is then (None: nothing that matters has changed)."""
        self.keep[list(senders), slot] = False
        if trial is None:
            self._streams.pop(slot, None)
            return
        for w, rows in trial.streams.items():
            self._streams[w] = rows[row].clone()
        for u, rows in trial.writes.items():
            self._overwrite(self.writes[u], rows[row])
        for (layer, port, i), rows in trial.sites.items():
            self.parts.sites[layer, port][:, :, i] = rows[row]
        for (layer, port, i), rows in trial.raw.items():
            self._overwrite(self.parts.raw(layer, port)[:, :, i], rows[row])
        for (layer, i), rows in trial.z.items():
            self._overwrite(self.parts.z[layer][:, :, i], rows[row])
        self.value = float(trial.value[row])

    def _attention(self, layer: int, trial: Trial) -> None:
        """What heads write whose q, k or v changed."""
        groups = self._changed_groups(layer, trial)
        if not groups:
            return
        first = self.layout.sender(layer, 0)
        heads = np.arange(self.layout.n_heads)
        wide = bool(self.wide[first + heads].any())
        end = None if wide else self.end
        z = {h: x if wide else at(x, self.end) for h, x in self.parts.attend(layer, groups, trial.sites).items()}
        trial.z |= {(layer, h): x for h, x in z.items()}
        changed_heads = heads if self.parts.coupled(layer) else np.array(sorted(z))
        writers = changed_heads[self.keep[first + changed_heads].any(1)].tolist()
        for h, out in self.parts.write(layer, writers, z, end).items():
            self._propagate(trial, first + h, out)

    def _changed_groups(self, layer: int, trial: Trial) -> list[int]:
        """New q, k and v of slots whose streams changed; the key-value groups they belong to."""
        layout, parts, groups = self.layout, self.parts, set()
        for port in PORTS:
            gains: dict[bool, dict[int, Tensor]] = {}
            for i in range(layout.n_heads if port == "q" else layout.n_kv_heads):
                slot = layout.slot(layer, port, i)
                if slot in trial.streams and self.needed[slot]:
                    gains.setdefault(bool(self.narrow[slot]), {})[i] = trial.streams[slot]
            for narrow, head_gains in gains.items():
                sites, raw = parts.read(layer, port, head_gains, self.end if narrow else None)
                trial.raw |= {(layer, port, i): x for i, x in raw.items()}
                for i, x in sites.items():
                    trial.sites[layer, port, i] = (
                        self._expand_end(parts.sites[layer, port][:, :, i], x) if narrow else x
                    )
                    groups.add(i // layout.group if port == "q" else i)
        return sorted(groups)

    def _mlp(self, layer: int, trial: Trial) -> None:
        slot = self.layout.slot(layer, "in")
        if slot not in trial.streams or not self.needed[slot]:
            return
        gain, u, end = trial.streams[slot], self.layout.sender(layer), None
        now, real = self.case.sent_clean[u] + self.writes[u], self.case.task.clean.mask[..., None]
        if self.narrow[slot]:
            now, real, end = at(now, self.end), at(real, self.end), self.end
        tokens = (gain != self.stream(slot)).any(-1) & real[..., 0]  # at the others nothing has changed
        out = now.repeat(len(gain), 1, 1, 1)
        if tokens.any():
            out[tokens] = self.parts.mlp(layer, gain, end, tokens)
        self._propagate(trial, u, out)

    def _propagate(self, trial: Trial, u: int, out: Float[Tensor, "row batch some d_model"]) -> None:
        """Note what a sender writes, and hand the difference to every slot that still hears of it."""
        end_only = out.shape[2] < self.gap.shape[2]
        clean, before = (at(x[u], self.end) if end_only else x[u] for x in (self.case.sent_clean, self.writes))
        trial.writes[u] = out - clean
        step = trial.writes[u] - before
        for w in np.flatnonzero(self.keep[u] & self.needed).tolist():
            part = step if end_only or not self.narrow[w] else at(step, self.end)
            if w in trial.streams:
                trial.streams[w] += part
            else:
                trial.streams[w] = self.stream(w)[None] + part

    def _expand_end(
        self, now: Float[Tensor, "batch pos d"], end_rows: Float[Tensor, "row batch 1 d"]
    ) -> Float[Tensor, "row batch pos d"]:
        """The same in every row but at END."""
        rows = now.repeat(len(end_rows), 1, 1, 1)
        rows[:, torch.arange(len(self.end)), self.end] = end_rows[:, :, 0]
        return rows

    def _overwrite(self, into: Float[Tensor, "batch pos d"], values: Float[Tensor, "batch some d"]) -> None:
        """Over all positions, or at END where there is but one."""
        if values.shape[1] == into.shape[1]:
            into.copy_(values)
        else:
            into[torch.arange(len(self.end)), self.end] = values[:, 0]
