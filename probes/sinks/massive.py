"""Massive activations in a stream: found layer by layer without keeping it, followed along it, set to other values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.components import EMBED, attn_name, mlp_name
from interp.edits import Apply, Edit
from interp.model import Model
from interp.shapes import brief
from interp.sites import Site
from probes.sinks.places import delimiters

PLACES = ("first", "delimiter", "other")
"""What a token is to a massive activation: the first, punctuation or a line end, or any other."""
ABSOLUTE, TIMES_MEDIAN, TIMES_RMS = 100.0, 1000.0, 50.0
TOP = 3
"""Largest dimensions of a layer that are listed whether or not they are massive."""
Track = tuple[int, int]
"""Dimension, and number of its place in `PLACES`."""


@dataclass(frozen=True, eq=False)
class Stage:
    """The stream at one place of the model.

    Attributes:
        site: where. layer: after which it stands, None before the first.
        median: of |x| over all tokens and dimensions. rms: median over tokens of a token's root mean square.
        absolute, scale_free: track -> share of the prompts with such a token in which it meets the criterion.
        top: tracks of the largest |x|.
        massive: tokens with an activation that meets either.
    """

    site: Site
    layer: int | None
    median: float
    rms: float
    absolute: Mapping[Track, float]
    scale_free: Mapping[Track, float]
    top: tuple[Track, ...]
    massive: Bool[Tensor, "prompt token"]

    __repr__ = brief

    def labelled(self, track: Track) -> bool:
        """Whether a track is massive here: by either criterion, in at least half of the prompts."""
        return max(self.absolute.get(track, 0.0), self.scale_free.get(track, 0.0)) >= 1 / 2


def token_places(model: Model, batch: Batch) -> Int[Tensor, "prompt token"]:
    """Number of each token's place in `PLACES`, -1 at padding."""
    mask = batch.mask.cpu()
    found = torch.where(delimiters(model, batch), 1, 2).masked_fill(~mask, -1)
    found[torch.arange(len(found)), batch.first.cpu()] = 0
    return found


@torch.no_grad()
def stages(
    model: Model,
    batch: Batch,
    *,
    absolute: float = ABSOLUTE,
    times_median: float = TIMES_MEDIAN,
    times_rms: float = TIMES_RMS,
) -> list[Stage]:
    """The stream before the first layer and after each, one at a time in memory.

    An activation is massive by size where |x| > `absolute` and |x| >= `times_median` medians of |x| there; free of
    scale where |x| >= `times_rms` times the root mean square of a typical token.
    """
    kinds = token_places(model, batch)

    found: dict[Site, Stage] = {}

    def reader(site: Site, layer: int | None) -> Callable[[Tensor], Tensor]:
        def read(x: Tensor) -> Tensor:
            size = x.detach().float().abs()
            mask = batch.mask.to(size.device)
            real = size[mask]
            median, rms = float(real.median()), float(real.pow(2).mean(1).sqrt().median())
            size = size.masked_fill(~mask[..., None], 0.0)
            by_size = (size > absolute) & (size >= times_median * median)
            free = size >= times_rms * rms if rms else torch.zeros_like(by_size)
            tokens = (by_size | free).any(-1).cpu()
            hits = _hits(by_size, kinds), _hits(free, kinds)
            found[site] = Stage(site, layer, median, rms, *hits, _top(size, kinds), tokens)
            return x.new_zeros(0)

        return read

    sites = {Site("resid_pre", 0): None, **{Site("resid_post", i): i for i in range(model.info.n_layers)}}
    capture: dict[Any, Any] = {site: reader(site, at) for site, at in sites.items()}
    model.run(batch, capture=capture, stop=model.info.n_layers - 1)
    return [found[site] for site in sites]


def _hits(meets: Bool[Tensor, "prompt token d"], kinds: Int[Tensor, "prompt token"]) -> dict[Track, float]:
    """Share of the prompts with such a token that have each (dimension, place)."""
    where = meets.nonzero().cpu()
    place = kinds[where[:, 0], where[:, 1]]
    found = {(int(p), int(d), int(k)) for p, d, k in zip(where[:, 0], where[:, 2], place, strict=True)}
    sizes = [int((kinds == k).any(1).sum()) for k in range(len(PLACES))]
    counts: dict[Track, int] = {}
    for _, d, k in found:
        counts[d, k] = counts.get((d, k), 0) + 1
    return {track: n / sizes[track[1]] for track, n in sorted(counts.items())}


def _top(size: Float[Tensor, "prompt token d"], kinds: Int[Tensor, "prompt token"]) -> tuple[Track, ...]:
    """The dimensions with the largest |x| anywhere, and where each has it."""
    largest, at = size.flatten(0, 1).max(0)
    best = largest.topk(min(TOP, len(largest))).indices
    flat = kinds.flatten()
    return tuple((int(d), int(flat[int(at[d])])) for d in best)


@dataclass(frozen=True, eq=False)
class Path:
    """One track along the stream, at the token of each prompt that has most of it.

    Attributes:
        dimension, place: what is followed. rows: prompts that have such a token. column: which one it is.
        position: of it within its prompt, None where prompts differ.
        value: activation at each stage, [prompt stage].
        written: component -> what it adds to the dimension there, [prompt].
    """

    dimension: int
    place: str
    rows: Int[Tensor, " prompt"]
    column: Int[Tensor, " prompt"]
    position: int | None
    value: Float[np.ndarray, "prompt stage"]
    written: Mapping[str, Float[np.ndarray, " prompt"]]

    __repr__ = brief

    @property
    def name(self) -> str:
        """Dimension and place: "d138 first"."""
        return f"d{self.dimension} {self.place}"

    def born(self) -> str | None:
        """The component that writes most of it, where that is at least half of its largest mean value."""
        return self._extreme(1)

    def erased(self) -> str | None:
        """The component that takes most of it away again, where that is at least half of its largest mean value."""
        return self._extreme(-1)

    def _extreme(self, sign: int) -> str | None:
        mean = self.value.mean(0)
        peak = mean[np.abs(mean).argmax()]
        best = max(self.written, key=lambda name: sign * np.sign(peak) * self.written[name].mean())
        enough = sign * np.sign(peak) * self.written[best].mean() >= abs(peak) / 2
        return best if enough else None


@torch.no_grad()
def paths(model: Model, batch: Batch, tracks: Iterable[Track]) -> dict[Track, Path]:
    """The stream and what components add to it along the dimensions of these tracks; no other dimension is kept."""
    tracks = tuple(dict.fromkeys(tracks))
    dims = sorted({d for d, _ in tracks})
    kinds, last = token_places(model, batch), model.info.n_layers - 1
    stream = [Site("resid_pre", 0), *(Site("resid_post", i) for i in range(last + 1))]
    names = {
        Site(kind, i): name(i)
        for i in range(last + 1)
        for kind, name in (("attn_out", attn_name), ("mlp_out", mlp_name))
        if kind not in model.writes(i).missing and (kind == "mlp_out" or i in model.info.attention_layers)
    }
    index = torch.tensor(dims)

    def narrow(x: Tensor) -> Tensor:
        return x[..., index.to(x.device)].float().cpu()

    acts = model.run(batch, capture=dict.fromkeys([*stream, *names], narrow), stop=last).acts
    values = torch.stack([acts[site] for site in stream], -1)  # prompt token dim stage
    writes = {EMBED: values[..., 0], **{name: acts[site] for site, name in names.items()}}
    positions = batch.positions.cpu()
    found = {}
    for d, k in tracks:
        i, there = dims.index(d), kinds == k
        rows = there.any(1).nonzero()[:, 0]
        peak = values[:, :, i].abs().amax(-1).masked_fill(~there, -1.0)
        column = peak[rows].argmax(1)
        at = positions[rows, column].unique()
        written = {name: x[rows, column, i].double().numpy() for name, x in writes.items()}
        position = int(at) if len(at) == 1 else None
        value = values[rows, column, i].double().numpy()
        found[d, k] = Path(d, PLACES[k], rows, column, position, value, written)
    return found


def setting(site: Site, paths: Sequence[Path], dimensions: Sequence[int], values: Sequence[float]) -> Edit:
    """An edit that sets dimensions, one for each path, to a value at the path's tokens."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        for path, dimension, value in zip(paths, dimensions, values, strict=True):
            x[path.rows.to(x.device), path.column.to(x.device), dimension] = value
        return x

    return Apply(site, change)
