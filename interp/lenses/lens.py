"""`Lens`: one affine map per layer, and its distance from the model on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.decompose.lens import LogitLens, Translate, logit_lens, read_out
from interp.errors import SchemaError, SiteError, TaskError
from interp.model import Model
from interp.results.results import frame
from interp.results.stats import benjamini_hochberg, bootstrap_mean, p_above
from interp.sites import Site
from interp.tasks import fingerprint

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST = 3
"""Prompts held out at least: fewer say nothing about how sure a mean is."""


@dataclass(frozen=True, eq=False)
class Lens:
    """stream -> stream `matrices`[layer]^T + `offsets`[layer], in the terms of the last layer.

    Attributes:
        layers: those that it has a map of; the last layer's stream is read as it is.
        matrices, offsets: one of each per layer.
        rows: distance from the model by layer; what the columns are stands at `tuned_lens`.
        provenance: of the call.
    """

    layers: tuple[int, ...]
    matrices: Float[Tensor, "layer d_model d_model"]
    offsets: Float[Tensor, "layer d_model"]
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        method = self.provenance.get("method", "lens")
        return f"<Lens ({method}) of layers {self.layers[0]} to {self.layers[-1]}, d_model {self.offsets.shape[1]}>"

    def __call__(self, layer: int, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The stream after a layer, translated.

        Raises:
            SiteError: a layer that the lens has no map of.
        """
        if layer not in self.layers:
            if layer == self.layers[-1] + 1:
                return resid
            raise SiteError(f"layer {layer}: the lens has maps of layers {self.layers}")
        i = self.layers.index(layer)
        return resid @ self.matrices[i].to(resid).mT + self.offsets[i].to(resid)

    def read(self, model: Model, tokens: Prompts, **options: Any) -> LogitLens:
        """Distributions read off after each layer: `interp.logit_lens(..., translate=self)`, with its options."""
        return logit_lens(model, tokens, translate=self, **options)

    def table(self) -> pd.DataFrame:
        """One row per lens (this one, the plain one) and layer."""
        return self.rows.copy()

    def plot(self) -> go.Figure:
        """KL from the model by layer, of this lens, of the plain one, and of one constant distribution (dashed)."""
        from interp.plots import curves
        from interp.plots.titles import heading, titled

        by = {name: part.set_index("layer")["value"] for name, part in self.rows.groupby("variant", sort=False)}
        layers = list(self.layers)
        lines: dict[str, Any] = {str(name): values.loc[layers].to_numpy() for name, values in by.items()}
        lines["constant"] = self.rows["null"].to_numpy()[: len(layers)]
        figure = curves(
            layers, lines, x_title="layer", y_title="KL(model || lens), nats", control="constant", unit="nats"
        )
        what = str(self.provenance.get("method", "lens")).replace("_", " ")
        return titled(figure, heading(self.rows, self.provenance, of=what))


def halves(model: Model, tokens: Prompts, held_out: float, *, seed: int) -> tuple[Batch, Batch]:
    """Prompts to fit on and prompts held out, drawn by the seed.

    Raises:
        SchemaError: a share outside 0 to 1.
        TaskError: fewer than three prompts are held out, or none is left.
    """
    if not 0 < held_out < 1:
        raise SchemaError(f"held_out={held_out}: expected a share between 0 and 1")
    batch = model.batch(tokens)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(batch.ids)))
    n = round(held_out * len(order))
    if n < LEAST or n == len(order):
        raise TaskError(f"{len(order)} prompts, {n} of them held out; a lens needs {LEAST} held out and some to fit on")
    test, train = order[:n].to(batch.ids.device), order[n:].to(batch.ids.device)
    return batch.select(train), batch.select(test)


def chosen_layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Layers to be mapped, all but the last without a choice.

    Raises:
        SiteError: none, one that does not exist, or the last.
    """
    last = model.info.n_layers - 1
    picked = tuple(range(last)) if layers is None else tuple(sorted(set(layers)))
    if not picked or not all(0 <= i < last for i in picked):
        raise SiteError(f"layers {picked}: a lens is of layers 0 to {last - 1}; the last is what it translates to")
    return picked


@torch.no_grad()
def streams(
    model: Model, batch: Batch, layers: Sequence[int], keep: Bool[Tensor, "batch pos"], batch_size: int
) -> Float[Tensor, "layer token d_model"]:
    """The stream after each layer, then after the last, at the tokens kept, prompt after prompt; float32."""
    last = model.info.n_layers - 1
    sites = [Site("resid_post", i) for i in (*layers, last)]
    parts = []
    for rows in torch.arange(len(batch.ids)).split(batch_size):
        kept = keep[rows]
        run = model.run(
            batch.select(rows),
            capture=dict.fromkeys(sites, lambda x: x[kept.to(x.device)].float()),  # noqa: B023  (used at once)
            stop=last,
        )
        parts.append(torch.stack([run.acts[s].to(model.device) for s in sites]))
    return torch.cat(parts, 1)


@torch.no_grad()
def distances(
    model: Model, test: Batch, layers: Sequence[int], translate: Translate, constant: Tensor, *, batch_size: int
) -> dict[str, Float[ndarray, "prompt layer"]]:
    """KL(model || lens) in nats, mean over a prompt's tokens: "lens", "plain", and "constant" (one distribution)."""
    sums: dict[str, list[Tensor]] = {"lens": [], "plain": [], "constant": []}
    for row in range(len(test.ids)):
        part = test.select(slice(row, row + 1))
        x = streams(model, part, layers, part.mask, batch_size)
        final = read_out(model, x[-1]).float().log_softmax(-1)
        p = final.exp()
        maps = {"lens": translate, "plain": lambda _, h: h}
        for name, map_ in maps.items():
            kls = [
                (p * (final - read_out(model, map_(i, x[n])).float().log_softmax(-1))).sum(-1).mean()
                for n, i in enumerate(layers)
            ]
            sums[name].append(torch.stack(kls))
        sums["constant"].append((p * (final - constant)).sum(-1).mean().expand(len(layers)))
    return {name: torch.stack(values).double().cpu().numpy() for name, values in sums.items()}


@torch.no_grad()
def constant_log_p(model: Model, last: Float[Tensor, "token d_model"]) -> Float[Tensor, " d_vocab"]:
    """log of the mean distribution over tokens: the best that a lens can do that looks at nothing."""
    total, n = torch.zeros(1), 0
    for part in last.split(256):
        p = read_out(model, part).float().softmax(-1)
        total, n = total.to(p) + p.sum(0), n + len(p)
    return (total / n).clamp(min=torch.finfo(torch.float32).tiny).log()


def lens_rows(
    name: str, layers: Sequence[int], kl: dict[str, Float[ndarray, "prompt layer"]], *, seed: int
) -> pd.DataFrame:
    """Rows of the lens, then of the plain one; p and q of the lens: that it is no nearer than the plain one."""
    rows = []
    p = p_above(kl["plain"] - kl["lens"])
    for variant, values in ((name, kl["lens"]), ("plain", kl["plain"])):
        mean = bootstrap_mean(values, seed=seed)
        for n, layer in enumerate(layers):
            row = {
                "analysis": f"{name}_lens",
                "variant": variant,
                "layer": layer,
                "component": str(Site("resid_post", layer)),
                "value": float(mean.mean[n]),
                "se": float(mean.se[n]),
                "ci_low": float(mean.low[n]),
                "ci_high": float(mean.high[n]),
                "null": float(kl["constant"][:, n].mean()),
                "n": mean.n,
                "unit": "nats",
            }
            rows.append(row | ({"p": float(p[n])} if variant == name else {}))
    table = frame(rows)
    table["q"] = benjamini_hochberg(table["p"].to_numpy(dtype=float))
    return table


def lens_data(train: Batch, test: Batch) -> dict[str, Any]:
    """What provenance says of the prompts."""
    return {
        "task": "prompts of the caller's",
        "n_prompts": len(train.ids) + len(test.ids),
        "n_held_out": len(test.ids),
        "sha256": fingerprint([train, test]),
    }
