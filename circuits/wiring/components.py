"""Heads, MLPs and the logits of a case as functions of what they read, computed or checked by the model itself.

What a slot reads is the clean stream plus a gain, [row batch pos d_model]; gains that only END needs have one position.
An MLP is its module called, or where it is more a pass over single tokens with its input replaced; the logits are a
pass with the last residual replaced.
Attention of a layer is a softmax under a causal mask and window where that gives the model's own z on the clean
prompts, and where it does not (sinks) a pass through that layer alone with its q, k and v replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuits.wiring.case import Case
from circuits.wiring.ports import QKV
from interp.attention import StopForward
from interp.edits import Apply, Edit, Replace, apply_edits, of_tokens
from interp.errors import SiteError
from interp.patching.readout import unembedded
from interp.sites import Site

ALIKE = 1e-5
"""Relative error to which the formula must give the model's own z to be used."""
PORTS: tuple[QKV, ...] = ("q", "k", "v")
Key = tuple[int, QKV, int]
"""Layer, port, head."""
Gain = Float[Tensor, "row batch some d_model"]
Rows = Float[Tensor, "row batch some d_head"]
End = Int[Tensor, " batch"] | None


class Parts:
    """The components of a case.

    Attributes:
        sites: (layer, port) -> q, k or v [batch pos head d_head] of the run as it is now, clean at first.
        z: layer -> [batch pos head d_head], likewise.
        cost: layers times tokens that went through the model so far.
    """

    def __init__(self, case: Case) -> None:
        """Run the clean prompts with what every slot reads."""
        self.case, self.layout, self.ports, self.model = case, case.layout, case.ports, case.model
        layout, self.batch = case.layout, case.task.clean
        self.ports.prepare(int(self.batch.positions.max()) + 1)
        attention = [i for i in range(layout.n_layers) if layout.has_heads(i)]
        middle = "resid_pre" if layout.parallel else "resid_mid"
        sites = [Site(kind, i) for i in attention for kind in ("q", "k", "v", "z")]
        sites += [Site("resid_pre", i) for i in range(layout.n_layers)]
        sites += [Site(middle, i) for i in range(layout.n_layers) if layout.mlps and not layout.parallel]
        last = Site("resid_post", layout.n_layers - 1)
        with torch.no_grad():
            acts = self.model.run(self.batch, capture=[*sites, last], stop=layout.n_layers - 1).acts
        self.sites = {(i, port): acts[Site(port, i)].clone() for i in attention for port in ("q", "k", "v")}
        self.z = {i: acts[Site("z", i)].clone() for i in attention}
        self.resid = {i: acts[Site("resid_pre", i)] for i in range(layout.n_layers)}
        self.middle = {i: acts[Site(middle, i)] for i in range(layout.n_layers)} if layout.mlps else {}
        self.last = acts[last]
        writes = {i: self.model.writes(i).attn for i in attention}
        self._writes = {i: w for i, w in writes.items() if w is not None}
        self._matrix = {i: w.matrix(self.z[i][0, 0].numel()) for i, w in self._writes.items()}
        self._raw: dict[tuple[int, QKV], Tensor] = {}
        self._visible: dict[int, Bool[Tensor, "batch query key"] | None] = {}
        self._repeats: dict[int, Case] = {}
        self.cost = layout.n_layers * self.batch.ids.numel()
        for layer in attention:
            self._formula(layer)  # while sites and z are of one run

    def coupled(self, layer: int) -> bool:
        """Whether what a head of the layer reads or writes depends on the others: norms over all heads together."""
        has_joint_norm = any(self.ports.shared(layer, port) for port in ("q", "k", "v"))
        return has_joint_norm or self._writes[layer].norm is not None

    def read(
        self, layer: int, port: QKV, gains: Mapping[int, Gain], end: End
    ) -> tuple[dict[int, Rows], dict[int, Rows]]:
        """q, k or v of heads whose streams gain something, and these before a norm that joins all heads, if one does.

        With such a norm every head of the layer is given. With `end` the gains, and what is given, are at END alone.
        """
        rows, positions, x = len(next(iter(gains.values()))), self.batch.positions, self.resid[layer]
        if end is not None:
            x, positions = at(x, end), at(positions[..., None], end)[..., 0]
        heads, where = list(gains), positions.repeat(rows, 1)
        own = torch.stack([(x + gains[i]).flatten(0, 1) for i in heads], 2)
        raw = self.ports.raw(layer, port, own, heads)
        if not self.ports.shared(layer, port):
            sites = self.ports.finish(layer, port, raw, where, heads).unflatten(0, (rows, -1))
            return {i: sites[..., n, :] for n, i in enumerate(heads)}, {}
        now = self.raw(layer, port)
        every = (now if end is None else at(now.movedim(2, 0), end).movedim(0, 2)).repeat(rows, 1, 1, 1)
        every[:, :, heads] = raw
        sites, raw = (t.unflatten(0, (rows, -1)) for t in (self.ports.finish(layer, port, every, where), raw))
        return {i: sites[..., i, :] for i in range(sites.shape[3])}, {i: raw[..., n, :] for n, i in enumerate(heads)}

    def raw(self, layer: int, port: QKV) -> Float[Tensor, "batch pos head d_head"]:
        """q, k or v of the run as it is now, before norms inside attention and rotary."""
        if (layer, port) not in self._raw:
            self._raw[layer, port] = self.ports.raw(layer, port, self.resid[layer])
        return self._raw[layer, port]

    def attend(self, layer: int, groups: Sequence[int], new: Mapping[Key, Rows]) -> dict[int, Rows]:
        """z of the heads of key-value groups: `new` where a site is given, the run's own elsewhere."""
        g = self.layout.group
        rows = next(len(x) for (i, _, _), x in new.items() if i == layer)
        group_sizes: dict[QKV, int] = {"q": g, "k": 1, "v": 1}
        own: dict[QKV, Tensor] = {
            port: torch.cat([self._group(layer, port, group, group_sizes[port], rows, new) for group in groups])
            for port in PORTS
        }
        visible = self._formula(layer)
        z = self._z_of_model(layer, groups, rows, own) if visible is None else self._softmax(layer, own, visible)
        z_by_group = z.unflatten(0, (len(groups), rows))  # group row batch pos g d_head
        return {group * g + i: z_by_group[n, :, :, :, i] for n, group in enumerate(groups) for i in range(g)}

    def _softmax(
        self, layer: int, own: Mapping[QKV, Tensor], visible: Bool[Tensor, "batch query key"]
    ) -> Float[Tensor, "job batch pos head d_head"]:
        """softmax(cap(scale q k)) v."""
        w = self.ports.layer(layer)
        scores = torch.einsum("jbqhd,jbkd->jbhqk", own["q"], own["k"][:, :, :, 0]) * w.scale
        if w.softcap is not None:
            scores = w.softcap * torch.tanh(scores / w.softcap)
        pattern = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
        return torch.einsum("jbhqk,jbkd->jbqhd", pattern, own["v"][:, :, :, 0])

    def _formula(self, layer: int) -> Bool[Tensor, "batch query key"] | None:
        """What queries see, if with it `_softmax` gives the model's own z; None where the layer does more than that."""
        if layer not in self._visible:
            n_kv, place = self.layout.n_kv_heads, self.batch.positions
            window = self.model.info.windows[self.model.info.attention_layers.index(layer)]
            distance = place[:, :, None] - place[:, None]
            own_token = torch.eye(place.shape[1], dtype=torch.bool, device=place.device)
            visible = (distance >= 0) & self.batch.mask[:, None] | own_token  # padding sees itself: no empty row
            visible = visible if window is None else visible & (distance < window)
            own: dict[QKV, Tensor] = {
                port: self.sites[layer, port].unflatten(2, (n_kv, -1)).movedim(2, 0) for port in PORTS
            }
            real, z = self.batch.mask, self.z[layer]
            error = (self._softmax(layer, own, visible).movedim(0, 2).flatten(2, 3) - z)[real].abs().max()
            self._visible[layer] = visible if bool(error <= ALIKE * z[real].abs().max()) else None
        return self._visible[layer]

    def _z_of_model(
        self, layer: int, groups: Sequence[int], rows: int, own: Mapping[QKV, Tensor]
    ) -> Float[Tensor, "job batch pos head d_head"]:
        """The same by the model: every row is a copy of the prompts in which the groups' heads are exchanged."""
        n_kv, size, group_ids = self.layout.n_kv_heads, len(self.batch.ids), list(groups)
        inputs: dict[QKV, Tensor] = {}
        for port in PORTS:
            now = self.sites[layer, port].unflatten(2, (n_kv, -1))
            full = now.expand(rows, *now.shape).clone()
            full[:, :, :, group_ids] = own[port].unflatten(0, (len(group_ids), rows)).movedim(0, 3)
            inputs[port] = full.flatten(0, 1).flatten(2, 3)
        z = self.through(layer, inputs, rows).unflatten(0, (rows, size)).unflatten(3, (n_kv, -1))
        return z[:, :, :, group_ids].movedim(3, 0).flatten(0, 1)

    def _group(self, layer: int, port: QKV, group: int, each: int, rows: int, new: Mapping[Key, Rows]) -> Tensor:
        """[row batch pos head d_head] of a group's heads."""
        now = self.sites[layer, port]
        members = range(group * each, (group + 1) * each)
        return torch.stack([new.get((layer, port, i), now[:, :, i].expand(rows, -1, -1, -1)) for i in members], 3)

    def through(self, layer: int, inputs: Mapping[QKV, Tensor], times: int) -> Float[Tensor, "rows pos head d_head"]:
        """z of a layer whose q, k and v are replaced, for the prompts `times` over; it runs no further."""
        batch = self.batch.repeat(times)
        captures: list[Tensor] = []

        def stop_run(z: Tensor) -> Tensor:
            captures.append(z)
            raise StopForward  # what comes behind is another component's

        edits = [*(Replace(Site(port, layer), x) for port, x in inputs.items()), *self.edits(layer, "pattern", "z")]
        edits.append(Apply(Site("z", layer), stop_run))
        self.cost += batch.ids.numel()
        with self.model.resting():  # others in force stand behind z, where this run does not come by
            self.model.run(batch, edits=edits, start=(layer, self.resid[layer].repeat(times, 1, 1)), stop=layer)
        return captures[0]

    def edits(self, layer: int, *kinds: str) -> list[Edit]:
        """Edits in force at kinds of a layer, each of that layer alone."""
        info = self.model.info
        own = [e for e in self.model.edits if e.site.kind in kinds and layer in info.layers_of(e.site)]
        return [replace(e, site=e.site.at(layer)) for e in own]

    def z_constant(self, layer: int) -> Float[Tensor, "batch pos head d_head"] | None:
        """What edits in force make of z where it is zero; None without any there."""
        edits = self.edits(layer, "z")
        return apply_edits(torch.zeros_like(self.z[layer]), edits, layer=layer, mask=self.batch.mask) if edits else None

    def write(self, layer: int, heads: Sequence[int], new: Mapping[int, Rows], end: End) -> dict[int, Gain]:
        """What heads write, from their new z (all at END alone with `end`); the run's own z stands for the others."""
        write, matrix = self._writes[layer], self.matrix(layer)
        if write.norm is None:
            return {h: new[h] @ matrix[h] for h in heads}
        rows = len(next(iter(new.values())))
        now = self.z[layer].movedim(2, 0)
        now = now if end is None else at(now, end)
        z = torch.stack([new[h] if h in new else x.expand(rows, -1, -1, -1) for h, x in enumerate(now)], -2)
        divisor = write.divisor(z.flatten(-2))
        return {h: z[..., h, :] @ matrix[h] / divisor for h in heads}

    def matrix(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of every head, with gain and multiplier of what stands behind it."""
        return self._matrix[layer].unflatten(0, (-1, self.z[layer].shape[-1]))

    def divisor(self, layer: int) -> Float[Tensor, "batch pos 1"]:
        """What a norm behind attention divides the clean run's heads by; ones without."""
        return self._writes[layer].divisor(self.z[layer].flatten(2))

    def mlp(
        self, layer: int, gain: Gain, end: End, tokens: Bool[Tensor, "row batch some"]
    ) -> Shaped[Tensor, "token d"]:
        """What an MLP writes at some of the tokens."""
        x = self.middle[layer] if end is None else at(self.middle[layer], end)
        return self.mlp_of(layer, self.ports.read_mlp(layer, (x + gain)[tokens]))

    def mlp_of(self, layer: int, inputs: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What an MLP writes for inputs mlp_in, token by token.

        Raises:
            SiteError: an edit in force there that is not the same at every token.
        """
        own = self.edits(layer, "mlp_post", "mlp_out")
        for edit in own:
            if of_tokens(edit):
                raise SiteError(
                    f"{edit.site}: {type(edit).__name__} is not the same at every token, and MLPs are run token by "
                    "token here; leave positions, rows and functions out, or take another method"
                )
        with torch.no_grad():
            output = None if own else self.ports.reads[layer].mlp_of(inputs.to(self.last))
        if output is not None:
            self.cost += inputs.shape[:-1].numel()
            return output
        flat = inputs.flatten(0, -2)[:, None]
        out, ids = Site("mlp_out", layer), torch.zeros(len(flat), 1, dtype=torch.long, device=flat.device)
        edits = [Replace(Site("mlp_in", layer), flat), *own]
        self.cost += len(flat)
        with self.model.resting():
            run = self.model.run(ids, capture=[out], edits=edits, start=(layer, torch.zeros_like(flat)), stop=layer)
        return run.acts[out][:, 0].view(inputs.shape)

    def metric(self, gain: Float[Tensor, "row batch 1 d_model"]) -> Float[Tensor, " row"]:
        """Mean over prompts of the metric, from what the logits' stream gains at END."""
        rows = len(gain)
        flat = (gain + at(self.last, self.case.task.end)).flatten(0, 2)
        self.cost += len(flat)
        logits = unembedded(self.model, flat)
        if rows not in self._repeats:
            self._repeats[rows] = self.case.repeated(rows)
        values = self._repeats[rows].value(logits)
        return values.double().unflatten(0, (rows, -1)).mean(1)


def at(x: Shaped[Tensor, "*rows batch pos d"], end: Int[Tensor, " batch"]) -> Shaped[Tensor, "*rows batch 1 d"]:
    """The entry at END, with a position axis of one."""
    return x[..., torch.arange(len(end), device=end.device), end, :][..., None, :]
