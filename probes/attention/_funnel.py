"""How many keys each layer needs: coverage of its strongest keys, entropy by depth, budgets that fall with depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.attention import Rows
from interp.batch import Prompts
from interp.components import attn_name
from interp.errors import NotApplicable, SchemaError
from interp.measurement.declaration import CAUSAL
from interp.measurement.prompts import PromptSet, prompt_set, visible_keys
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.figures import dots
from interp.results.stats import nan_mean, p_above

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST = 12
"""Tokens of the shortest prompt."""


def _curves(rows: pd.DataFrame) -> go.Figure:
    """Mass on the strongest keys against their number, for the layers in which it is highest."""
    from interp.plots.attention import profile_lines

    return profile_lines(rows, axis="keys kept")


@analysis(
    name="funnel",
    presumes=(CAUSAL,),
    family="attention",
    title="Keys that a layer needs",
    unit="attention layer",
    headline="coverage",
    order=270,
    figure=dots,
    figures={"curve": _curves},
    exemptions={"planted": "of whole layers; its tests make layers of a known sharpness"},
    columns={"label": "boolean"},
    means="So much of the layer's attention is on its few strongest keys: a cache of so many tokens keeps that much. "
    "Where coverage rises and entropy falls with depth, the model is a funnel, and `pyramid` says what budgets that "
    "fall with depth keep, beside the same number of tokens in every layer.",
    misleads="Mass is not effect: what little is left out may matter. The strongest keys are chosen with the pattern "
    "in hand, for each row by itself, which no cache can do: an upper bound. One sink is a key like the others. Heads "
    "of a layer are averaged; a layer of two kinds of heads is neither.",
    reference="Cai et al. 2024, arXiv 2406.02069 (PyramidKV)",
)
def funnel(
    model: Model,
    *,
    prompts: Prompts | None = None,
    budget: int = 8,
    steepness: float = 4.0,
    n_rows: int = 8,
    n_prompts: int = 32,
    length: int = 64,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Coverage of a layer: mean over prompts, heads and last rows i of the sum of the `budget` largest p(i, j).

    Variants, one row per layer with attention (component `A3`) unless said otherwise:
      coverage  as above, with null, p, q and label; the null is uniform attention, min(1, budget / n_i);
      curve     one row per layer and number of keys k (`position`: 1, 2, 4, ...), with its null;
      entropy   H_i / log n_i, mean over the same rows; the null is 1;
      budget    tokens of a budget that falls with depth in equal steps and adds up to `budget` per layer;
      pyramid   coverage under that budget; the null column holds coverage under the even one;
      depth     one row: Spearman correlation of entropy with depth, mean over prompts; below 0 for a funnel. Null 0.

    p tests over prompts that coverage is at most 0.05 above its null (one-sided Student's t); q is over layers; a label
    needs q < 0.01. The steps: the last layer gets budget / `steepness`, the first 2 budget less that.

    Args:
        model: any loaded model.
        prompts: text or ids, 12 tokens at least; distinct random tokens without.
        budget: keys per row and layer; at most half of the shortest prompt.
        steepness: 1 is the even budget; above it the last layer gets so many times less than even.
        n_rows: last rows of each prompt that are looked at.
        n_prompts: random prompts, the unit of the interval.
        length: tokens per random prompt, BOS included.
        bos: "default", "forced" or "none", for random prompts.
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for 12 tokens, or attention that is not all softmax.
        SchemaError: a steepness below 1.
        TaskError: prompts of fewer than 12 tokens, or fewer than three.

    Reference: Cai et al. 2024 (arXiv 2406.02069), whose budgets fall in equal steps too; null and test are ours.
    """
    if steepness < 1:
        raise SchemaError(f"steepness {steepness:g}: budgets that rise with depth are no funnel; give 1 or more")
    if model.info.softmax_share != 1.0:
        raise NotApplicable(f"{model.info.name}: attention is not all softmax, and what a row keeps is no share")
    data = prompt_set(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed, least=LEAST)
    shortest, layers = int(data.batch.mask.sum(1).min()), list(model.info.attention_layers)
    n_rows, budget = min(n_rows, shortest // 2), min(budget, shortest // 2)
    sorted_rows, seen = strongest(model, data, n_rows, method=method)
    curve = np.nan_to_num(sorted_rows).cumsum(-1)  # layer prompt head row key
    even = at_budget(curve, np.full(len(curve), budget))
    null = np.minimum(1.0, budget / seen).mean((1, 2))
    entropy = _entropy(sorted_rows, seen)
    q = stats.benjamini_hochberg(p := p_above((even - null[:, None]).T, margin=MARGIN))
    budgets = pyramid(budget, len(layers), steepness)

    def variant(name: str, unit: str, values: Float[np.ndarray, "layer prompt"], **more: object) -> pd.DataFrame:
        columns = interval_columns(stats.bootstrap_mean(values.T, seed=seed))
        names = {"variant": name, "unit": unit, "component": [attn_name(i) for i in layers], "layer": layers}
        return pd.DataFrame({**names, **columns, **more})

    chance = {k: np.minimum(1.0, k / seen).mean((1, 2)) for k in (2**i for i in range(20)) if k <= shortest}
    by_count = [
        variant("curve", "probability", at_budget(curve, np.full(len(curve), k)), position=k, null=null_k)
        for k, null_k in chance.items()
    ]
    tokens = pd.DataFrame({"component": [attn_name(i) for i in layers], "layer": layers, "value": budgets})
    parts = [
        variant("coverage", "probability", even, null=null, p=p, q=q, label=q < LEVEL),
        *by_count,
        variant("entropy", "fraction", entropy, null=1.0),
        tokens.assign(variant="budget", unit="tokens", null=float(budget)),
        variant("pyramid", "probability", at_budget(curve, budgets), null=even.mean(1)),
        _depth(entropy, seed=seed),
    ]
    return Findings(pd.concat(parts, ignore_index=True), data.data | {"budget": budget, "n_rows": n_rows})


def strongest(
    model: Model, data: PromptSet, n_rows: int, *, method: str = "auto"
) -> tuple[Float[np.ndarray, "layer prompt head row key"], Float[np.ndarray, "layer prompt row"]]:
    """p of the last rows of each prompt, largest first, and how many keys each of them sees."""
    batch = data.batch
    last = batch.first + batch.mask.sum(1) - 1
    rows = last[:, None] - torch.arange(n_rows).flip(0)
    answers = model.attention(batch, {"rows": Rows(rows)}, method=method)["rows"].double().cpu()
    seen = np.take_along_axis(visible_keys(model, batch), rows[None].numpy(), axis=2)
    return answers.sort(-1, descending=True).values.numpy(), seen


def at_budget(
    curve: Float[np.ndarray, "layer prompt head row key"], budgets: Int[np.ndarray, " layer"]
) -> Float[np.ndarray, "layer prompt"]:
    """Mean coverage of each layer's number of keys."""
    last = np.minimum(budgets, curve.shape[-1]) - 1
    return np.stack([x[..., k].mean((1, 2)) for x, k in zip(curve, last, strict=True)])


def pyramid(budget: int, n_layers: int, steepness: float) -> Int[np.ndarray, " layer"]:
    """Budgets in an arithmetic progression from 2 budget - budget / steepness down to budget / steepness.

    Each is at least 1; what rounding leaves over goes to the first layers, so that they add up to budget n_layers.
    """
    low = max(1.0, budget / steepness)
    exact = np.linspace(2 * budget - low, low, n_layers) if n_layers > 1 else np.array([float(budget)])
    whole = np.maximum(1, np.floor(exact + 1e-9)).astype(int)
    for layer in range(budget * n_layers - int(whole.sum())):
        whole[layer % n_layers] += 1
    return whole


def _entropy(
    rows: Float[np.ndarray, "layer prompt head row key"], seen: Float[np.ndarray, "layer prompt row"]
) -> Float[np.ndarray, "layer prompt"]:
    """Mean of H_i / log n_i over heads and rows; rows that see one key have none."""
    p = np.nan_to_num(rows)
    nats = -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)
    most = np.where(seen > 1, np.log(np.maximum(seen, 2)), np.nan)
    return nan_mean(nan_mean(nats / most[:, :, None], axis=3), axis=2)


def _depth(entropy: Float[np.ndarray, "layer prompt"], *, seed: int) -> pd.DataFrame:
    """The row of `depth`; NaN with fewer than three layers, which have no trend."""
    base = {"variant": "depth", "unit": "correlation", "component": "model", "null": 0.0}
    if len(entropy) < 3:  # noqa: PLR2004
        return pd.DataFrame([base | {"value": np.nan, "n": entropy.shape[1]}])
    rho = np.array([stats.spearman(np.arange(len(entropy)), x).rho for x in entropy.T])
    return pd.DataFrame([base | interval_columns(stats.bootstrap_mean(np.nan_to_num(rho), seed=seed))])
