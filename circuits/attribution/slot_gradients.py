"""One backward pass for all slots: the metric's gradient at q, k, v and the MLP inputs, and what the run wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.graph.layout import Layout
from circuits.wiring.case import Case
from interp.batch import Batch
from interp.edits import Edit
from interp.model import Start
from interp.numerics import wide
from interp.patching.metric_gradients import metric_gradients
from interp.patching.readout import at_end, value_at_end
from interp.sites import Site

QKV = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Written:
    """What the senders of a run write, heads before their output matrix (so d_value wide and not d_model).

    Attributes:
        embed: [batch pos d_model]. heads: by layer [batch pos head d_value], over the divisor of a norm behind
            attention. mlps: by layer [batch pos d_model].
    """

    embed: Float[Tensor, "batch pos d_model"]
    heads: dict[int, Float[Tensor, "batch pos head d_value"]]
    mlps: dict[int, Float[Tensor, "batch pos d_model"]]

    def __sub__(self, other: Written) -> Written:
        """Difference of two runs."""
        heads = {i: x - other.heads[i] for i, x in self.heads.items()}
        return Written(self.embed - other.embed, heads, {i: x - other.mlps[i] for i, x in self.mlps.items()})


@dataclass(frozen=True, eq=False)
class Slopes:
    """Gradients of each prompt's metric at what the slots of the layers from `first` on take.

    Attributes:
        sites: gradient at q, k, v and mlp_in, by site.
        end: gradient at the stream behind the last layer, at END, where alone it is not zero.
        stream: what a layer's attention reads; mid: what its MLP reads.
        acts: what was captured beside, detached.
        value: the metric.
    """

    sites: dict[Site, Tensor]
    end: Float[Tensor, "batch d_model"]
    stream: dict[int, Float[Tensor, "batch pos d_model"]]
    mid: dict[int, Float[Tensor, "batch pos d_model"]]
    acts: dict[Site, Tensor]
    value: Float[Tensor, " batch"]


def write_sites(layout: Layout) -> list[Site]:
    """Sites from which `writes_of` is made."""
    heads = [Site("z", i) for i in range(layout.n_layers) if layout.has_heads(i)]
    mlps = [Site("mlp_out", i) for i in range(layout.n_layers)] if layout.mlps else []
    return [Site("resid_pre", 0), *heads, *mlps]


@torch.no_grad()
def writes_of(case: Case, acts: dict[Site, Tensor]) -> Written:
    """What senders write, from the captures of a run; at least in float32."""
    heads = {}
    for site, z in acts.items():
        if site.kind != "z" or site.first is None:
            continue
        write = case.model.writes(site.first).attn
        assert write is not None  # ports exist only where attention is told apart
        heads[site.first] = wide(z) if write.norm is None else wide(z) / write.divisor(z.flatten(2))[:, :, None].to(z)
    mlps = {s.first: wide(x) for s, x in acts.items() if s.kind == "mlp_out" and s.first is not None}
    return Written(wide(acts[Site("resid_pre", 0)]), heads, mlps)


@torch.no_grad()
def end_run(case: Case, tokens: Batch, *, streams: bool = False) -> tuple[dict[Site, Tensor], Float[Tensor, " batch"]]:
    """Captures of a run that need no gradient, and the metric; `streams` adds what the activation paths start from."""
    last = case.layout.n_layers - 1
    sites = write_sites(case.layout)
    if streams:
        sites += [Site("resid_pre", i) for i in range(1, last + 1)] + [
            Site("attn_out", i) for i in range(last + 1) if case.layout.has_heads(i)
        ]
    last_stream = Site("resid_post", last)
    run = case.model.run(tokens, capture={**dict.fromkeys(sites), last_stream: lambda x: at_end(case, x)}, stop=last)
    acts = dict(run.acts)
    return acts, value_at_end(case, acts.pop(last_stream))


def slopes(
    case: Case,
    *,
    start: Start | None = None,
    edits: Sequence[Edit] = (),
    also: Sequence[Site] = (),
) -> Slopes:
    """One forward and one backward pass on the clean prompts, from a layer on or under edits.

    Raises:
        TaskError: the metric has no gradient.
    """
    layout, first = case.layout, 0 if start is None else start[0]
    layers = range(first, layout.n_layers)
    slots = [Site(kind, i) for i in layers for kind in _slot_kinds(layout, i)]
    stream_sites = [Site("resid_pre", i) for i in layers]
    if layout.mlps and not layout.parallel:
        stream_sites += [Site("attn_out", i) for i in layers if layout.has_heads(i)]
    grads = metric_gradients(case, slots, beside=[*stream_sites, *also], start=start, edits=edits)
    acts = grads.acts
    stream = {i: wide(acts[Site("resid_pre", i)]) for i in layers}
    mid = {
        i: stream[i] + wide(acts[Site("attn_out", i)]) if Site("attn_out", i) in stream_sites else stream[i]
        for i in layers
    }
    captures = {site: acts[site] for site in also}
    return Slopes(grads.sites, grads.end, stream, mid, captures, grads.value)


def _slot_kinds(layout: Layout, layer: int) -> tuple[str, ...]:
    return (*(QKV if layout.has_heads(layer) else ()), *(("mlp_in",) if layout.mlps else ()))
