"""A forward pass in which edges of the model carry something else: what every judgement of a circuit stands on.

At each slot w the stream is x_w = x + sum_u (1 - keep[u, w]) (other_u - u): what a removed edge would have carried is
taken off and `other` is put in its place, before the slot's own norm. Everything else is live: norms, attention and
MLPs are computed again on what they are given. With no edge removed it is the model; with all of them removed and
another run's activations in their place it is that run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.graph.layout import Layout
from circuits.wiring.edited import check_edits
from circuits.wiring.ports import QKV, Ports
from interp.batch import Batch, Prompts
from interp.components import Port
from interp.edits import Apply, Edit
from interp.errors import SchemaError
from interp.model import Model
from interp.run import Run
from interp.sites import Site

Keep = Float[Tensor, "sender slot"] | Float[Tensor, "batch sender slot"] | Bool[Tensor, "sender slot"]
"""1 where an edge is the model's own, 0 where it is removed; in between, and with gradients, for learned masks."""
Sent = Float[Tensor, "sender batch pos d_model"]
"""What every sender writes, in the order of the layout."""
Other = Float[Tensor, "sender #batch #pos d_model"]
"""What removed edges carry instead; one for all prompts or positions will do."""


@dataclass(frozen=True, eq=False)
class Below:
    """Where a run enters that need not start at the embedding: nothing is removed in the layers before.

    Attributes:
        layer: first layer that runs.
        resid: the stream that enters it [batch pos d_model].
        sent: what the senders below it write [sender batch pos d_model].
    """

    layer: int
    resid: Float[Tensor, "batch pos d_model"]
    sent: Sent


@torch.no_grad()
def sent(model: Model, ports: Ports, tokens: Prompts, *, edits: Sequence[Edit] = ()) -> Sent:
    """What every sender writes to the stream: the embedding, each head (z W_O), each MLP.

    Behind a norm (Gemma-2, OLMo-2) it is what arrives in the stream, with that run's own divisor.
    """
    layout = ports.layout
    sites = [site for site, _ in _writers(layout)]
    run = model.run(tokens, capture=sites, edits=edits, stop=layout.n_layers - 1)
    return torch.cat([_by_sender(run.acts[site]) for site in sites])


def run_edges(
    model: Model,
    ports: Ports,
    tokens: Prompts,
    keep: Keep,
    other: Other,
    *,
    below: Below | None = None,
    gradients: bool = False,
    capture: Sequence[Site | str] = (),
) -> Run:
    """Run a model with edges removed.

    Args:
        model: any backend with its weights at hand.
        ports: of this model.
        tokens: prompts.
        keep: which edges stay, for all prompts or for each; a mask with gradients needs `gradients`.
        other: what removed edges carry: another run's `sent`, means, zeros; broadcasts over batch and positions.
        below: enter at a layer; edges into the layers before it are taken as kept.
        gradients: keep the graph.
        capture: further sites, as they are under the removed edges.

    Raises:
        SchemaError: a mask or activations of another form than the layout's.
        SiteError: an edit in force under which edges are not those of the stream; see `check_edits`.
    """
    check_edits(model)
    batch = model.batch(tokens)
    ports.prepare(int(batch.positions.max()) + 1)
    cut = _Cut(ports, batch, keep, other, gradients=gradients, below=below)
    first = 0 if below is None else below.layer
    return model.run(
        batch,
        capture={**{Site.parse(str(s)): _whole for s in capture}, **cut.captures(first)},
        edits=cut.edits(first),
        start=None if below is None else (below.layer, below.resid),
        gradients=gradients,
    )


def _whole(x: Tensor) -> Tensor:
    return x


def _writers(layout: Layout, first: int = 0) -> list[tuple[Site, slice]]:
    """Sites whose captures, one after another, are what the senders from a layer on write; and which senders."""
    sites, at = [], 0
    if first == 0:
        sites.append((Site("resid_pre", 0), slice(0, 1)))
        at = 1
    else:
        at = int((layout.sender_layers < first).sum())
    for layer in range(first, layout.n_layers):
        if layout.has_heads(layer):
            sites.append((Site("head_out", layer), slice(at, at + layout.n_heads)))
            at += layout.n_heads
        if layout.mlps:
            sites.append((Site("mlp_out", layer), slice(at, at + 1)))
            at += 1
    return sites


def _by_sender(x: Float[Tensor, "batch pos *head d_model"]) -> Sent:
    return x[None] if x.ndim == 3 else x.permute(2, 0, 1, 3)


class _Cut:
    """One run's removed edges: what has been written so far less what goes in its place, and edits that read it."""

    def __init__(
        self, ports: Ports, batch: Batch, keep: Keep, other: Other, *, gradients: bool, below: Below | None
    ) -> None:
        layout = ports.layout
        form = (len(layout.senders), len(layout.slots))
        if tuple(keep.shape[-2:]) != form or (keep.ndim == 3 and len(keep) != len(batch.ids)) or keep.ndim > 3:
            raise SchemaError(
                f"a mask of shape {tuple(keep.shape)}; expected [{form[0]} senders, {form[1]} slots], or that for each "
                f"of {len(batch.ids)} prompts"
            )
        width = ports.info.d_model
        if len(other) != form[0] or other.shape[-1] != width:
            raise SchemaError(f"activations of shape {tuple(other.shape)} for {form[0]} senders of width {width}")
        self.ports, self.layout, self.positions = ports, layout, batch.positions
        exists = torch.from_numpy(layout.exists).to(keep.device)
        self.removal = torch.where(exists, 1 - keep.to(torch.promote_types(keep.dtype, torch.float32)), 0.0)
        # a mask with a gradient must be followed even where it happens to be one
        any_row = self.removal.detach() if self.removal.ndim == 2 else self.removal.detach().amax(0)
        self.edited_slots = exists.any(0) if keep.requires_grad else (any_row != 0).any(0)
        self.other, self.gradients = other, gradients
        self.shape = (*batch.ids.shape, width)
        self.changes: list[Tensor] = []
        self.buffer: Tensor | None = None
        self.n = 0
        self.stream: dict[str, Tensor] = {}
        if below is not None:
            self._append(below.sent)

    def captures(self, first: int) -> dict[Site, Callable[[Tensor], Tensor]]:
        """Reducers that note what is written and the stream that is read, and keep nothing."""
        reducers: dict[Site, Callable[[Tensor], Tensor]] = {}
        for layer in range(first, self.layout.n_layers):
            reducers[Site("resid_pre", layer)] = self._pre_reducer(layer)
            if self.layout.mlps and not self.layout.parallel and self.edited_slots[self._slots("in", layer)].any():
                reducers[Site("resid_mid", layer)] = self._stream_reducer("mid")
        for site, _ in _writers(self.layout, first):
            if site.kind != "resid_pre":
                reducers[site] = self._write_reducer
        return reducers

    def edits(self, first: int) -> list[Edit]:
        """Edits of every slot that loses an edge."""
        edits: list[Edit] = []
        for layer in range(first, self.layout.n_layers):
            if self.layout.has_heads(layer):
                for port in ("q", "k", "v"):
                    if self.edited_slots[self._slots(port, layer)].any():
                        edits.append(Apply(Site(port, layer), self._qkv(layer, port)))
            if self.layout.mlps and self.edited_slots[self._slots("in", layer)].any():
                edits.append(Apply(Site("mlp_in", layer), self._mlp(layer)))
        if self.edited_slots[-1]:
            edits.append(Apply(Site("resid_post", self.layout.n_layers - 1), self._logits))
        return edits

    def _slots(self, what: Port, layer: int) -> slice:
        """Columns of a layer's q, k, v or MLP slots."""
        at = self.layout.slot(layer, what)
        return slice(at, at + {"q": self.layout.n_heads, "in": 1}.get(what, self.layout.n_kv_heads))

    def _pre_reducer(self, layer: int) -> Callable[[Tensor], Tensor]:
        def note(x: Tensor) -> Tensor:
            self.stream["pre"] = x
            if layer == 0:
                self._append(x[None])
            return x[:0]

        return note

    def _stream_reducer(self, name: str) -> Callable[[Tensor], Tensor]:
        def note(x: Tensor) -> Tensor:
            self.stream[name] = x
            return x[:0]

        return note

    def _write_reducer(self, x: Tensor) -> Tensor:
        self._append(_by_sender(x))
        return x[:0]

    def _append(self, x: Sent) -> None:
        """Note other - x for the next senders."""
        n = len(x)
        change = self.other[self.n : self.n + n].to(x) - x
        if self.gradients:
            self.changes.append(change)
        else:
            if self.buffer is None:
                self.buffer = x.new_empty(len(self.layout.senders), *self.shape)
            self.buffer[self.n : self.n + n] = change
        self.n += n

    def _stream_change(self, slots: Tensor | slice) -> Float[Tensor, "batch pos slot d_model"]:
        """What the slots' streams gain."""
        if self.gradients:
            self.changes = [torch.cat(self.changes)]
            changes = self.changes[0]
        else:
            assert self.buffer is not None  # a sender was noted before any slot reads
            changes = self.buffer[: self.n]
        removal = self.removal[..., : self.n, slots].to(changes)
        form = "us,ubpd->bpsd" if removal.ndim == 2 else "bus,ubpd->bpsd"
        return torch.einsum(form, removal, changes)

    def _qkv(self, layer: int, port: QKV) -> Callable[[Tensor], Tensor]:
        slots = self._slots(port, layer)
        heads = self.edited_slots[slots].nonzero()[:, 0].tolist()

        def change(site: Tensor) -> Tensor:
            x = self.stream["pre"]
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            head_ids = list(range(site.shape[2])) if self.ports.shared(layer, port) else heads
            columns = torch.tensor(head_ids) + slots.start
            own = wide[:, :, None] + self._stream_change(columns)
            new = self.ports.read(layer, port, own, self.positions, head_ids)
            old = self.ports.read(layer, port, wide, self.positions, head_ids)
            index = torch.tensor(head_ids, device=site.device)
            return site.index_add(2, index, (new - old).to(site))

        return change

    def _mlp(self, layer: int) -> Callable[[Tensor], Tensor]:
        slots = self._slots("in", layer)

        def change(site: Tensor) -> Tensor:
            x = self.stream["pre" if self.layout.parallel else "mid"]
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            new = self.ports.read_mlp(layer, wide + self._stream_change(slots)[:, :, 0])
            return site + (new - self.ports.read_mlp(layer, wide)).to(site)

        return change

    def _logits(self, x: Tensor) -> Tensor:
        return x + self._stream_change(slice(len(self.layout.slots) - 1, None))[:, :, 0].to(x)
