"""How far back each head has to see: change of the loss, to first order, where keys beyond a span are masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.components import head_name
from interp.edits import KnockOut
from interp.errors import NotApplicable
from interp.measurement.declaration import CAUSAL, TOKEN_LOGITS, PlantedTask, Stage
from interp.measurement.prompt_losses import mean_loss
from interp.measurement.prompts import own_prompts, repeat_groups
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows
from interp.measurement.scoring import LEVEL, head_rows, interval_columns, ranked_heads
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head, p_above
from interp.sites import Site
from interp.tasks import fingerprint
from interp.tokens.losses import token_losses

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST = 12
"""Tokens of the shortest prompt."""
TINY = 1e-6
"""Mass below which a row keeps nothing that could be scaled up."""


def _profiles(rows: pd.DataFrame) -> go.Figure:
    """Change of the loss against the span that is kept, for the heads in which it is largest."""
    from interp.plots.attention import profile_lines

    return profile_lines(rows, axis="keys kept")


@analysis(
    name="span_profile",
    presumes=(CAUSAL, TOKEN_LOGITS),
    family="attention",
    title="Long-range heads",
    headline="beyond",
    order=290,
    default=False,
    stage=Stage("long-range"),
    planted=PlantedTask("induction"),
    figures={"profile": _profiles},
    quick={"n_prompts": 8, "n_random": 1},
    columns={"label": "boolean"},
    means="Without what lies further back than the span, the loss would rise: the head needs a long cache. `span` is "
    "the shortest one with which it would not.",
    misleads="To first order, head by head: the slope at the whole pattern, which an actual mask may leave far behind, "
    "and heads that stand in for each other seem to need little. The interventions say what masking does. On repeated "
    "random tokens far context is all there is; text needs less. A cache of one span for all heads is another thing.",
    reference="Fu et al. 2024, arXiv 2406.14909 (MoA)",
)
def span_profile(
    model: Model,
    *,
    prompts: Prompts | None = None,
    spans: Sequence[int] = (2, 4, 8, 16),
    sinks: int = 1,
    tolerance: float = 0.01,
    n_prompts: int = 16,
    n_random: int = 3,
    most: int = 4,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Loss change: sum over rows i of dL/dz_i . (z_i(span) - z_i), z_i(w) being row i on its last w keys and the sinks.

    L is the mean next-token loss of a prompt in nats. The row without the keys beyond the span, which takes mass m_i
    from it, is scaled up again: z_i(w) = sum over kept j of p_ij v_j / (1 - m_i). Variants, one row per head each
    unless said otherwise:
      beyond   at the shortest span, with null 0, p, q and label;
      profile  one row per head and span (`position`), with null 0;
      span     the shortest span from which on the estimate is `tolerance` nats at most; the whole prompt where none is;
      mass     attention beyond the shortest span, a probability; the null is uniform attention.

    p tests over prompts that the change is at most `tolerance` (one-sided Student's t); q is over heads; a label needs
    q < 0.01. The interventions mask one labelled head beyond the shortest span, of the `most` with the largest
    estimate, beside `n_random` others of the same layer: mean loss in nats.

    Args:
        model: any loaded model that runs with gradients.
        prompts: text or ids, 12 tokens at least; repeated random blocks of varied length without.
        spans: keys kept, the query's own included; those as long as the shortest prompt are left out.
        sinks: first tokens of the prompt that are always kept.
        tolerance: nats of a prompt's mean loss that do not matter.
        n_prompts: repeated random prompts, the unit of the interval.
        n_random: other heads that masking is compared with.
        most: labelled heads that are masked, one at a time.
        bos: "default", "forced" or "none", for random prompts.
        seed: of prompts, other heads and bootstrap.

    Raises:
        NotApplicable: no room for prompts of 12 tokens, no span shorter than that, or not all softmax.
        TaskError: prompts of fewer than 12 tokens, or fewer than three.

    Reference: Fu et al. 2024 (arXiv 2406.14909), who mask entries and add their first-order changes up; here a row's
    own mask is one change, so that what is left is scaled up exactly. Nulls, tests and controls are ours.
    """
    if model.info.softmax_share != 1.0:
        raise NotApplicable(f"{model.info.name}: attention is not all softmax, and a row is not scaled up again")
    batches, facts = _prompts(model, prompts, n_prompts=n_prompts, bos=bos, seed=seed)
    stats.enough_units(sum(len(batch.ids) for batch in batches))
    shortest = min(int(batch.mask.sum(1).min()) for batch in batches)
    kept = sorted({w for w in spans if w < shortest - sinks})
    if not kept:
        raise NotApplicable(f"no span of {tuple(spans)} is shorter than prompts of {shortest} tokens")
    found = [span_changes(model, batch, kept, sinks=sinks) for batch in batches]
    change = np.concatenate([x for x, _, _ in found])  # prompt span layer head
    mass, chance = (np.concatenate([x[i] for x in found]) for i in (1, 2))
    beyond = change[:, 0]
    p = p_above(beyond, margin=tolerance)
    q = stats.benjamini_hochberg(p)
    label = q < LEVEL
    longest = max(int(batch.mask.sum(1).max()) for batch in batches)
    span = needed_span(change.mean(0), kept, tolerance, longest)

    def variant(name: str, unit: str, values: np.ndarray, **more: object) -> pd.DataFrame:
        return head_rows(model, name, unit, **interval_columns(stats.bootstrap_mean(values, seed=seed)), **more)

    parts = [
        variant("beyond", "nats", beyond, null=0.0, p=p, q=q, label=label, position=kept[0]),
        *(variant("profile", "nats", change[:, i], null=0.0, position=w) for i, w in enumerate(kept)),
        head_rows(model, "span", "tokens", value=span, null=float(longest), n=len(change)),
        variant("mass", "probability", mass, null=chance.mean(0), position=kept[0]),
    ]
    heads = ranked_heads(model, label, beyond.mean(0))[:most]
    effects = _masked(model, batches, heads, kept[0], sinks, n_random=n_random, seed=seed)
    return Findings(pd.concat(parts, ignore_index=True), facts | {"spans": kept, "sinks": sinks}, effects)


def _prompts(
    model: Model, prompts: Prompts | None, *, n_prompts: int, bos: str, seed: int
) -> tuple[list[Batch], dict[str, object]]:
    """Prompts padded on the right, in batches of one length, and what provenance says of them."""
    if prompts is not None:
        own = own_prompts(model, prompts, least=LEAST)
        return [own.batch], own.data
    groups = repeat_groups(model, n_prompts=n_prompts, lengths=(16, 32), n_lengths=3, bos=bos, seed=seed)
    batches = [g.batch for g in groups]
    if min(b.ids.shape[1] for b in batches) < LEAST:
        raise NotApplicable(f"no room for prompts of {LEAST} tokens, in which something is far back")
    lengths = [g.length for g in groups]
    facts = {"task": "repeated random tokens", "lengths": lengths, "n": sum(len(b.ids) for b in batches), "bos": bos}
    return batches, {**facts, "sha256": fingerprint(batches)}


def beyond_span(batch: Batch, span: int, sinks: int) -> Bool[Tensor, "batch query key"]:
    """Pairs of a query and an earlier key that is neither among its last `span` nor among the first `sinks` tokens."""
    place = batch.positions
    far = place[:, :, None] - place[:, None] >= span
    return far & (place[:, None] >= sinks) & batch.mask[:, None] & batch.mask[:, :, None]


def span_changes(
    model: Model, batch: Batch, spans: Sequence[int], *, sinks: int
) -> tuple[
    Float[np.ndarray, "prompt span layer head"],
    Float[np.ndarray, "prompt layer head"],
    Float[np.ndarray, "prompt layer head"],
]:
    """First-order change of each prompt's loss under each span; mass beyond the first span, and what uniform pays."""
    layers = model.info.attention_layers
    sites = [Site(kind, i) for i in layers for kind in ("z", "v")]
    run = model.run(batch, capture=sites, gradients=True)
    assert run.logits is not None  # the run has no `stop`
    losses = token_losses(run.logits, batch.ids, batch.mask)
    loss = (losses.nan_to_num().sum(1) / losses.isfinite().sum(1)).sum()
    slopes = torch.autograd.grad(loss, [run.acts[Site("z", i)] for i in layers])
    masks = [beyond_span(batch, w, sinks) for w in spans]
    changes, masses = [], []
    for layer, slope in zip(layers, slopes, strict=True):
        z, v = (run.acts[Site(kind, layer)].detach().float().cpu() for kind in ("z", "v"))
        pattern = _pattern(model, batch, layer)
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        by_span = [_change(pattern, v, z, slope.float().cpu(), far) for far in masks]
        changes.append(torch.stack([change for change, _ in by_span], 1))
        masses.append(by_span[0][1])
    n_rows, mass = batch.mask.sum(1), torch.stack(masses, 1) / batch.mask.sum(1)[:, None, None]
    chance = torch.stack([_uniform(batch, masks[0], w) for w in model.info.windows], 1) / n_rows[:, None]
    return (
        torch.stack(changes, 2).double().numpy(),
        mass.double().numpy(),
        chance[..., None].expand(mass.shape).double().numpy(),
    )


def _uniform(batch: Batch, far: Bool[Tensor, "batch query key"], window: int | None) -> Float[Tensor, " batch"]:
    """Share of each row's visible keys that is far, summed over rows."""
    place = batch.positions
    distance = place[:, :, None] - place[:, None]
    seen = (distance >= 0) & batch.mask[:, None] & (True if window is None else distance < window)
    return ((far & seen).sum(2) / seen.sum(2).clamp(min=1) * batch.mask).sum(1)


def _pattern(model: Model, batch: Batch, layer: int) -> Float[Tensor, "batch head query key"]:
    site = Site("pattern", layer)
    with torch.no_grad():
        return model.run(batch, capture=[site], stop=layer).acts[site].float().cpu()


def _change(
    pattern: Float[Tensor, "batch head query key"],
    v: Float[Tensor, "batch key head d"],
    z: Float[Tensor, "batch query head d"],
    slope: Float[Tensor, "batch query head d"],
    far: Bool[Tensor, "batch query key"],
) -> tuple[Float[Tensor, "batch head"], Float[Tensor, "batch head"]]:
    """slope . (z of the kept keys, scaled up, less z), and the mass that is masked, summed over queries.

    A row that keeps no mass at all, or from which nothing is masked, is left as it is.
    """
    masked = pattern.masked_fill(~far[:, None], 0.0).sum(-1)  # batch head query
    near = torch.einsum("bhqk,bkhd->bqhd", pattern.masked_fill(far[:, None], 0.0), v)
    scaled = near / (1 - masked).clamp(min=TINY).mT[..., None]
    touched = far.any(2)[..., None] & (masked < 1 - TINY).mT  # batch query head
    change = torch.where(touched, (slope * (scaled - z)).sum(-1), 0.0).sum(1)
    return change, masked.sum(-1)


def needed_span(
    change: Float[np.ndarray, "span layer head"], spans: Sequence[int], tolerance: float, longest: int
) -> Float[np.ndarray, "layer head"]:
    """The shortest span from which on no span changes the loss by more than `tolerance`; `longest` where none is."""
    fine = np.flip(np.logical_and.accumulate(np.flip(change <= tolerance, 0), axis=0), 0)
    choices = np.array([*spans, longest], dtype=float)
    return choices[np.where(fine.any(0), fine.argmax(0), len(spans))]


def _masked(
    model: Model, batches: Sequence[Batch], heads: Sequence[Head], span: int, sinks: int, *, n_random: int, seed: int
) -> list[dict[str, object]]:
    """Rows of the intervention table: one head masked beyond the span, and others of its layer."""

    def losses(chosen: Sequence[Head] = ()) -> dict[str, float]:
        values, sizes = [], []
        for batch in batches:
            pairs = beyond_span(batch, span, sinks)
            edits = [KnockOut(Site("pattern", i, head=h), pairs=pairs, renormalise=True) for i, h in chosen]
            values.append(mean_loss(model, batch, edits, block=len(batch.ids)))
            sizes.append(len(batch.ids))
        return {"loss_nats": float(np.average(values, weights=sizes))}

    rows: list[dict[str, object]] = []
    clean = losses() if heads else {}
    for head in heads:
        pool = [(head[0], h) for h in range(model.info.n_heads) if (head[0], h) not in heads]
        others = stats.matched_sets([head], pool, n_sets=n_random, seed=seed).get("same layers", [])
        name = f"last {span} keys: {head_name(*head)}"
        controls = [losses(own) for own in others]
        rows += intervention_rows(name, 1, "same layers" if controls else "none", clean, losses([head]), controls)
    return rows
