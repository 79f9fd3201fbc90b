"""`StreamRun`: a run that keeps every write to the stream at the chosen positions, and nothing larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attention import Rows
from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.edits.where import one_column
from interp.errors import SiteError, TaskError
from interp.model import Model
from interp.run import Run
from interp.sites import Site
from interp.weights.stream import Writes


@dataclass(frozen=True, eq=False)
class StreamRun:
    """A run up to `last`, narrowed to `position`; tensors are [batch pos ...], pos being 1 for a single position.

    `edits` are those in force, under which it was made.
    """

    model: Model
    batch: Batch
    run: Run
    last: int
    position: int | None
    writes: tuple[Writes, ...]
    patterns: dict[int, Float[Tensor, "batch head key"]]
    edits: tuple[Edit, ...] = ()

    def edits_at(self, kind: str, layer: int | None = None) -> list[Edit]:
        """Edits in force at a place, in the order in which they were given."""
        return [e for e in self.edits if e.site.kind == kind and layer in self.model.info.layers_of(e.site)]

    def at(self, kind: str, layer: int | None = None) -> Tensor:
        """An activation at the chosen positions, at least in float32."""
        x = self.run.acts[Site(kind, layer, position=self.position)]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x if self.position is None else x[:, None]

    def values(self, layer: int) -> Float[Tensor, "batch key head d_value"]:
        """Values of every token, one per query head."""
        v = self.run.acts[Site("v", layer)]
        v = v.to(torch.promote_types(v.dtype, torch.float32))
        return v.repeat_interleave(self.model.info.n_heads // v.shape[2], dim=2)

    @property
    def columns(self) -> Int[Tensor, "batch pos"]:
        """Columns of the chosen positions."""
        return position_columns(self.batch, self.position)

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """Which of the chosen positions are real tokens."""
        return self.batch.mask.gather(1, self.columns)

    @property
    def ids(self) -> Int[Tensor, "batch pos"]:
        """Tokens at the chosen positions."""
        return self.batch.ids.gather(1, self.columns)


def run_stream(
    model: Model,
    tokens: Prompts,
    *,
    layer: int | None,
    position: int | None,
    heads: bool = True,
    sources: bool = False,
    neurons: Sequence[int] = (),
    logits: bool = False,
) -> StreamRun:
    """One pass (two with `sources`) that keeps what is written to the stream up to a layer.

    Raises:
        SiteError: a layer or position out of range, neurons of a layer that has none, sources where heads cannot be
            told apart.
        TaskError: sources of all positions at once.
    """
    if sources and (position is None or not heads):
        raise TaskError("sources=True splits heads at one query position: give `position`, and leave heads=True")
    batch = model.batch(tokens)
    last = _layer(model, layer)
    writes = tuple(model.writes(i) for i in range(last + 1))
    for i in neurons:
        if not 0 <= i <= last or (writes[i].mlp is None and not model.reads(i).whole):
            reason = (
                "out of range" if not 0 <= i <= last else writes[i].missing.get("mlp_post", "no single set of neurons")
            )
            raise SiteError(f"neurons of layer {i}: {reason}; layers here are 0 to {last}")
    split_layers = tuple(i for i in range(last + 1) if sources and writes[i].attn is not None)
    edits = model.edits
    changed = {kind: _layers_edited(model, kind) for kind in ("pattern", "head_out")}
    dense = [Site("pattern", i, position=position) for i in split_layers if i in changed["pattern"]]
    whole = [Site("head_out", i, position=position) for i in range(last + 1) if i in changed["head_out"]]
    mixtures = [Site("mlp_in", i, position=position) for i in neurons if writes[i].mlp is None]
    streams = [Site("embed", position=position), *_sites(writes, position), *mixtures]
    capture = [*streams, *(Site("v", i) for i in split_layers), *dense, *whole]
    run = model.run(batch, capture=capture, stop=None if logits else last)
    patterns: dict[int, Tensor] = {i: run.acts[site] for site in dense if (i := site.first) is not None}
    plain = [i for i in split_layers if i not in patterns]
    if plain:
        answers = model.attention(batch, {"rows": Rows(position_columns(batch, position))}, layers=plain)["rows"]
        patterns |= {i: answers[n, :, :, 0].nan_to_num() for n, i in enumerate(plain)}
    return StreamRun(model, batch, run, last, position, writes, patterns, edits)


def _layers_edited(model: Model, kind: str) -> set[int | None]:
    """Layers at which edits in force change a kind."""
    return {layer for e in model.edits if e.site.kind == kind for layer in model.info.layers_of(e.site)}


def position_columns(batch: Batch, position: int | None) -> Int[Tensor, "batch pos"]:
    """Columns of a position counted over each prompt's real tokens, or of all positions."""
    size, n = batch.ids.shape
    rows = torch.arange(size, device=batch.ids.device)
    if position is None:
        return torch.arange(n, device=batch.ids.device).expand(size, n)
    return one_column(None, Site("resid_post", position=position), batch.mask, rows)[:, None]


def _layer(model: Model, layer: int | None) -> int:
    n = model.info.n_layers
    if layer is None:
        return n - 1
    if not 0 <= layer < n:
        raise SiteError(f"layer {layer} is out of range; the model has {n} layers")
    return layer


def _sites(writes: Sequence[Writes], position: int | None) -> list[Site]:
    """Sites captured at each layer."""
    sites = []
    for i, w in enumerate(writes):
        kinds = ["resid_post"]
        if "attn_out" in w.missing or w.rest:
            kinds.append("resid_pre")
        if "attn_out" not in w.missing:
            kinds += ["attn_out"] + (["z"] if w.attn is not None else [])
            kinds += [] if "mlp_out" in w.missing else ["mlp_out"]
            kinds += ["mlp_post"] if w.mlp is not None else []
        sites += [Site(kind, i, position=position) for kind in kinds]
    return sites
