"""Why queries rest on a key: its value, the length of its key vector, its direction; and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.attention import KeyMass
from interp.batch import Batch
from interp.measurement.scoring import head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.sites import Site
from probes.sinks.places import Shares

UNITS = {
    "value_norm_ratio": "fraction",
    "key_norm_ratio": "fraction",
    "cosine": "correlation",
    "cosine_elsewhere": "correlation",
    "gap": "logit",
    "gap_norm": "logit",
    "gap_angle": "logit",
    "gap_sd": "logit",
    "output_share": "fraction",
}
SHORT = 8
"""Tokens of the prompts from which the scale of scores is read."""
Values = Mapping[str, Float[np.ndarray, "prompt layer head"]]


def reason_rows(
    model: Model,
    batch: Batch,
    keys: Bool[np.ndarray, "prompt key"],
    base: Mapping[str, object],
    found: Shares,
    *,
    method: str,
    seed: int,
) -> list[pd.DataFrame]:
    """Rows of every quantity of `UNITS` at the first of these keys, over the prompts that have one."""
    rows = np.nonzero(keys.any(1))[0]
    part = batch.select(torch.from_numpy(rows))
    values = reasons(model, part, keys[rows].argmax(1), method=method)
    tables = []
    for name, unit in UNITS.items():
        known = values[name]
        columns = interval_columns(stats.bootstrap_mean(known, seed=seed))
        tables.append(head_rows(model, name, unit, **columns, position=found.where(keys), **base))
    return tables


@torch.no_grad()
def reasons(model: Model, batch: Batch, key: Float[np.ndarray, " prompt"] | Any, *, method: str = "auto") -> Values:
    """Quantities of `UNITS` for one key of each prompt, each [prompt layer head], means over the queries behind it.

    One layer's q and k are held at a time. NaN where no query stands behind the key (or within its window).
    """
    layers = model.info.attention_layers
    column = torch.as_tensor(key)
    target = torch.nn.functional.one_hot(column, batch.ids.shape[1]).bool()
    scales = score_scales(model, batch)
    readers = {
        layer: _Layer(_Rows.of(model, batch, column, window), scales[layer])
        for layer, window in zip(layers, model.info.windows, strict=True)
    }
    capture: dict[Any, Any] = {
        Site(kind, layer): readers[layer].reader(kind) for layer in layers for kind in ("q", "k", "v", "z")
    }
    model.run(batch, capture=capture, stop=layers[-1])
    paid = (
        model.attention(batch, {"paid": KeyMass(target)}, method=method)["paid"].double().cpu()
    )  # layer prompt head i
    answers = [readers[layer].answers(paid[i]) for i, layer in enumerate(layers)]
    return {name: torch.stack([a[name] for a in answers], 1).double().cpu().numpy() for name in UNITS}


@torch.no_grad()
def score_scales(model: Model, batch: Batch) -> dict[int, float]:
    """What q . k is multiplied with in each layer: the slope of a token's score for itself, before a soft-cap.

    Biases of distance are one number per head there, which a slope leaves out.
    """
    start = int(batch.first.max())
    short = Batch.of(batch.ids[:, start : start + SHORT])
    layers = model.info.attention_layers
    run = model.run(short, capture=[Site(kind, i) for i in layers for kind in ("q", "k", "scores")], stop=layers[-1])
    slopes = {}
    for layer in layers:
        q, k, s = (run.acts[Site(kind, layer)].double() for kind in ("q", "k", "scores"))
        own = s.diagonal(dim1=-2, dim2=-1).transpose(1, 2)  # prompt query head
        if model.info.softcap is not None:
            own = model.info.softcap * torch.atanh((own / model.info.softcap).clamp(-1 + 1e-12, 1 - 1e-12))
        product = (q * k.repeat_interleave(q.shape[2] // k.shape[2], 2)).sum(-1)
        x, y = (side - side.mean((0, 1)) for side in (product, own))
        variance = float((x**2).sum())
        slopes[layer] = float((x * y).sum()) / variance if variance else q.shape[-1] ** -0.5
    return slopes


@dataclass(frozen=True, eq=False)
class _Rows:
    """Which queries stand behind the key of their prompt, and which keys each of them sees."""

    key: Tensor
    mask: Bool[Tensor, "prompt query"]
    behind: Bool[Tensor, "prompt query"]
    causal: bool
    window: int | None

    @classmethod
    def of(cls, model: Model, batch: Batch, key: Tensor, window: int | None) -> _Rows:
        key = key.to(batch.ids.device)
        distance = torch.arange(batch.ids.shape[1], device=key.device) - key[:, None]
        behind = batch.mask & (distance != 0 if not model.info.causal else distance > 0)
        if window is not None:
            behind &= distance < window
        return cls(key, batch.mask, behind, model.info.causal, window)

    def seen(self, x: Float[Tensor, "prompt key *rest"]) -> Float[Tensor, "prompt query *rest"]:
        """Sum over the keys that each query sees, but the key of the prompt."""
        real = self.mask.view(*self.mask.shape, *[1] * (x.ndim - 2))
        x = torch.where(real, x, 0.0)
        total = x.cumsum(1)
        if not self.causal:
            total = total[:, -1:].expand_as(total)
        elif self.window is not None:
            total = total - torch.nn.functional.pad(total, [0, 0] * (x.ndim - 2) + [self.window, 0])[:, : x.shape[1]]
        return total - x[torch.arange(len(x)), self.key][:, None]

    def mean(self, x: Float[Tensor, "prompt query head"]) -> Float[Tensor, "prompt head"]:
        """Mean over the queries behind the key; NaN without any."""
        rows = self.behind[..., None]
        return torch.where(rows, x, 0.0).sum(1) / rows.sum(1).where(rows.any(1), torch.nan)


@dataclass(eq=False)
class _Layer:
    """One layer: q and k held until both are there, then numbers per head."""

    rows: _Rows
    scale: float
    held: dict[str, Tensor] = field(default_factory=dict)
    found: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)

    def reader(self, kind: str) -> Any:
        def read(x: Tensor) -> Tensor:
            if kind in ("v", "z"):
                self.norms[kind] = x.detach().float().norm(dim=-1)
                return x.new_zeros(0)
            self.held[kind] = x.detach().float()
            if len(self.held) > 1:
                self._compare(self.held.pop("q"), self.held.pop("k"))
            return x.new_zeros(0)

        return read

    def _compare(self, q: Float[Tensor, "prompt query head d"], k: Float[Tensor, "prompt key kv_head d"]) -> None:
        rows, group = self.rows, q.shape[2] // k.shape[2]
        index = torch.arange(len(q), device=q.device)
        norms = k.norm(dim=-1)
        own, own_norm = k[index, rows.key], norms[index, rows.key]
        count = rows.seen(torch.ones_like(rows.mask, dtype=q.dtype))[..., None]
        others = (rows.seen(k) / count[..., None]).repeat_interleave(group, 2)
        other_norm = (rows.seen(norms) / count).repeat_interleave(group, 2)
        own, own_norm = own.repeat_interleave(group, 1)[:, None], own_norm.repeat_interleave(group, 1)[:, None]
        score, other = ((q * side).sum(-1) * self.scale for side in (own, others))
        along, beside = score / own_norm, other / other_norm  # |q| cos, as if all keys were one unit long
        gap, size = score - other, q.norm(dim=-1) * self.scale
        self.found = {
            "key_norm_ratio": self._over_median(norms).repeat_interleave(group, 1),
            "cosine": rows.mean(along / size),
            "cosine_elsewhere": rows.mean(beside / size),
            "gap": rows.mean(gap),
            "gap_norm": rows.mean((own_norm - other_norm) * (along + beside) / 2),
            "gap_angle": rows.mean((along - beside) * (own_norm + other_norm) / 2),
            "gap_sd": (rows.mean(gap**2) - rows.mean(gap) ** 2).clamp(min=0).sqrt(),
        }

    def _over_median(self, norms: Float[Tensor, "prompt key kv_head"]) -> Float[Tensor, "prompt kv_head"]:
        """The key's norm over the median of the other tokens'; NaN where that is zero."""
        index = torch.arange(len(norms), device=norms.device)
        others = norms.masked_fill(~self.rows.mask[..., None], torch.nan)
        others[index, self.rows.key] = torch.nan
        median = others.nanmedian(1).values
        return norms[index, self.rows.key] / median.where(median != 0, torch.nan)

    def answers(self, paid: Float[Tensor, "prompt head query"]) -> dict[str, Tensor]:
        """All numbers, given what each query pays the key."""
        v, z = self.norms["v"], self.norms["z"]
        group = z.shape[2] // v.shape[2]
        index = torch.arange(len(v), device=v.device)
        own = v[index, self.rows.key].repeat_interleave(group, 1)
        brought = paid.transpose(1, 2).to(z).nan_to_num() * own[:, None] / z.where(z != 0, torch.nan)
        ratio = self._over_median(v).repeat_interleave(group, 1)
        return self.found | {"value_norm_ratio": ratio, "output_share": self.rows.mean(brought.nan_to_num())}
