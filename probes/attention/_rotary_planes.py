"""Which rotary planes make a head's scores depend on distance, and what heads of the slow planes are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.edits import Edit, RotaryPlane, RotaryPlanes
from interp.errors import NotApplicable
from interp.measurement.declaration import CAUSAL, TOKEN_LOGITS, Stage
from interp.measurement.prompts import describe_repeats, own_prompts, repeat_groups
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows, set_name
from interp.measurement.rotary import PlaneScores, rotary_planes
from interp.measurement.scoring import LEVEL, head_rows, interval_columns, ranked_heads
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head
from interp.sites import Site

HALF_TURN = np.pi
"""Slow is a plane that turns by no more than this over the distances measured: along them its part is monotone."""
DISTANCES = 64
SMALLEST, CLEAR = 0.1, 0.5
"""Correlation up to which nothing is claimed, and from which a head is labelled."""
METRIC = "loss_nats"


@analysis(
    name="rotary_heads",
    presumes=(CAUSAL, TOKEN_LOGITS),
    family="attention",
    title="Positional heads (slow rotary planes)",
    headline="positional",
    order=213,
    two_sided=True,
    stage=Stage("positional"),
    quick={"n_prompts": 8, "n_random": 2, "n_top": 1},
    exemptions={"planted": "planted heads that look at an offset use the fast planes; its tests write a slow one"},
    columns={"label": "boolean", "angle": "float64"},
    means="The part of the head's scores that turns slowly goes with the distance between tokens: below 0 it prefers "
    "near keys, above 0 far ones. `share` says which planes make its curve by distance.",
    misleads="A correlation says nothing of size: a head whose scores hardly depend on distance may have a clean one; "
    "`spread` beside it is how much the curve varies, in units of the score. A slow plane carries content as well.",
    reference="Hong et al. 2024, arXiv 2410.08703 (positional heads)",
)
def rotary_heads(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 16,
    block: int = 32,
    n_top: int = 4,
    n_random: int = 8,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """r = corr(c_slow(i, i - d), d) over pairs: the slow rotary planes' part of the score against distance.

    q_i . k_j is a sum over rotary planes, c_P = scale (q_a k_a + q_b k_b) over the plane's channels a and b, and of
    what does not turn. Slow are planes that turn at most half a turn over the distances measured, the slowest at least.
    Variants:
      positional  one row per head: the mean of r over prompts, with null 0, p, q and label;
      spread      standard deviation over distances of the mean score s(d), in units of the score; the null is 0;
      slow_share  part of the variance of s(d) that slow planes make, sum_P cov_d(c_P, s) / var_d(s);
      share       the same of each plane (`position`, 0 the fastest; `angle` in radians a token), one row per head and
                  plane; position -1 is what does not turn. They sum to 1; the null is one plane's equal share.

    p tests over prompts that |r| is at most 0.1 (Student's t, the sign taken from the mean, p doubled); q is
    Benjamini-Hochberg over all heads. A head is labelled at q < 0.01 and |r| >= 0.5. Interventions: slow planes removed
    (`RotaryPlane`, scale 0) in the `n_top` heads with the largest |r|, beside as many random heads of the same layers,
    in nats of next-token loss.

    Args:
        model: any loaded model with rotary positions.
        prompts: text or ids, 16 tokens at least, cut to the shortest; without, random blocks said twice.
        n_prompts: random prompts, the unit of the interval; three at least.
        block: tokens of a block, shorter where the context is.
        n_top: heads whose slow planes are removed.
        n_random: random sets beside them.
        bos: "default", "forced" or "none", for random prompts.
        seed: of prompts, sets and bootstrap.

    Raises:
        NotApplicable: no rotary positions, or such as cannot be read; no room for two blocks of 8.
        TaskError: fewer than three prompts, or shorter ones.

    Reference: Hong et al. 2024 (arXiv 2410.08703), who correlate each dimension with the range of attention. This
    correlation and its test are ours.
    """
    planes = rotary_planes(model)
    batch, counted, data = plane_prompts(model, prompts, n=n_prompts, block=block, bos=bos, seed=seed)
    readings = {layer: _reading(model, batch, layer, own) for layer, own in planes.items()}
    r = _by_layer(model, {layer: x.correlation for layer, x in readings.items()})
    sign = np.sign(np.nan_to_num(r.mean(0)))
    p = np.minimum(1.0, 2 * stats.p_above(r * sign, margin=SMALLEST))
    q = stats.benjamini_hochberg(p)
    value = stats.bootstrap_mean(r, seed=seed)
    label = (q < LEVEL) & (np.abs(value.mean) >= CLEAR)
    slow = _by_layer(model, {layer: x.share[..., x.slow].sum(-1)[None] for layer, x in readings.items()})[0]
    spread = _by_layer(model, {layer: x.spread[None] for layer, x in readings.items()})[0]
    parts = [
        head_rows(model, "positional", "correlation", **interval_columns(value), null=0.0, p=p, q=q, label=label),
        head_rows(model, "spread", "score", value=spread, null=0.0, n=len(batch.ids)),
        head_rows(model, "slow_share", "fraction", value=slow, null=_slow_null(model, readings), n=len(batch.ids)),
        *(_share_rows(layer, x, planes[layer], len(batch.ids)) for layer, x in readings.items()),
    ]
    slow_planes = {layer: x.slow_planes for layer, x in readings.items()}
    ranked = ranked_heads(model, np.isfinite(r.mean(0)), np.abs(np.nan_to_num(value.mean)))
    removed = _removals(model, batch, counted, ranked, slow_planes, n_top=n_top, n_random=n_random, seed=seed)
    facts = {"slow_planes": {str(layer): list(s) for layer, s in slow_planes.items()}}
    return Findings(pd.concat(parts, ignore_index=True), data | facts, removed)


def plane_prompts(
    model: Model, prompts: Prompts | None, *, n: int, block: int, bos: str, seed: int
) -> tuple[Batch, Bool[Tensor, "prompt pos"], dict[str, object]]:
    """Prompts of one length, the tokens whose loss counts, and provenance: second copies, or all of a caller's own."""
    if prompts is not None:
        own = own_prompts(model, prompts, least=16).cut()
        counted = own.batch.mask.clone()
        counted[:, 0] = False
        return own.batch, counted, own.data
    block = min(block, ((model.info.context or 2 * block + 2) - 2) // 2)
    if block < 8:  # noqa: PLR2004
        raise NotApplicable(f"two blocks of 8 tokens are needed; the context leaves {block}")
    group = repeat_groups(model, n_prompts=n, lengths=(block, block), n_lengths=1, bos=bos, seed=seed, least=1)[0]
    counted = torch.zeros_like(group.batch.mask)
    counted[:, group.second] = True
    return group.batch, counted, describe_repeats([group], bos)


@dataclass(frozen=True, eq=False)
class _Reading:
    """Of one layer: r of each prompt, and of the mean curve its spread and each part's share."""

    correlation: Float[np.ndarray, "prompt head"]
    share: Float[np.ndarray, "head part"]
    spread: Float[np.ndarray, " head"]
    slow: Bool[np.ndarray, " part"]

    @property
    def slow_planes(self) -> tuple[int, ...]:
        """Numbers of the slow planes."""
        return tuple(np.flatnonzero(self.slow).tolist())


def _reading(model: Model, batch: Batch, layer: int, planes: RotaryPlanes) -> _Reading:
    scores = PlaneScores.of(model, batch, layer, planes)
    n = batch.ids.shape[1]
    distances = np.unique(np.linspace(0, n // 2, min(DISTANCES, n // 2 + 1)).round().astype(int))
    rows = torch.arange(n // 2, n)
    slow = np.append(slow_planes(planes.angle.numpy(), int(distances[-1])), False)
    curve, sums = [], np.zeros((3, len(batch.ids), scores.query.shape[2]))
    for distance in distances.tolist():
        parts = scores.parts(distance, rows).double().numpy()
        curve.append(parts.mean((0, 1)))
        low = parts[..., slow].sum(-1)
        sums += np.stack([low.mean(1), (low**2).mean(1), distance * low.mean(1)])
    mean, square, product = sums / len(distances)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(np.maximum(square - mean**2, 0)) * distances.std()
        correlation = np.where(spread > 0, (product - mean * distances.mean()) / spread, np.nan)
    return _Reading(correlation, *shares(np.stack(curve, -1)), slow)


def slow_planes(angle: Float[np.ndarray, " plane"], reach: int) -> Bool[np.ndarray, " plane"]:
    """Planes that turn by half a turn at most over a distance; the slowest where there is none."""
    slow = angle * reach <= HALF_TURN
    slow[np.argmin(angle)] = True
    return slow


def shares(
    curve: Float[np.ndarray, "head part distance"],
) -> tuple[Float[np.ndarray, "head part"], Float[np.ndarray, " head"]]:
    """cov_d(c_P, s) / var_d(s) with s the sum of the parts, and the standard deviation of s; NaN where s is flat."""
    score = curve.sum(1)
    around, part = score - score.mean(-1, keepdims=True), curve - curve.mean(-1, keepdims=True)
    variance = (around**2).mean(-1)
    flat = variance <= (1e-6 * np.abs(curve).max((1, 2))) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (part * around[:, None]).mean(-1) / variance[:, None]
    return np.where(flat[:, None], np.nan, share), np.sqrt(variance)


def _by_layer(model: Model, values: dict[int, np.ndarray]) -> Float[np.ndarray, "any layer head"]:
    """Layers without rotary planes are NaN."""
    size = len(next(iter(values.values())))
    blank = np.full((size, model.info.n_heads), np.nan)
    return np.stack([values.get(layer, blank) for layer in model.info.attention_layers], 1)


def _slow_null(model: Model, readings: dict[int, _Reading]) -> Float[np.ndarray, "layer head"]:
    """Share of slow planes among all parts."""
    shares = {
        layer: np.full((1, model.info.n_heads), x.slow.sum() / (len(x.slow) - 1)) for layer, x in readings.items()
    }
    return _by_layer(model, shares)[0]


def _share_rows(layer: int, reading: _Reading, planes: RotaryPlanes, n: int) -> pd.DataFrame:
    """One row per head and plane; the last part, what does not turn, is at -1."""
    heads, parts = reading.share.shape
    place = np.append(np.arange(parts - 1), -1)
    columns = {
        "layer": layer,
        "head": np.repeat(np.arange(heads), parts),
        "position": np.tile(place, heads),
        "angle": np.tile(np.append(planes.angle.numpy(), 0.0), heads),
        "value": reading.share.ravel(),
        "null": 1 / (parts - 1),
        "n": n,
    }
    return pd.DataFrame({"variant": "share", "unit": "fraction", **columns})


def plane_edits(heads: Sequence[Head], planes: dict[int, tuple[int, ...]]) -> list[Edit]:
    """Edits that take planes out of the scores of heads, each those of its layer."""
    return [RotaryPlane(Site("pattern", layer, head=head), planes=planes[layer]) for layer, head in heads]


def prompt_losses(
    model: Model, batch: Batch, counted: Bool[Tensor, "prompt pos"], edits: Sequence[Edit] = ()
) -> Float[np.ndarray, " prompt"]:
    """Mean next-token loss of the tokens of each prompt that count, in nats; the first of a prompt never does."""
    logits = model.run(batch, edits=edits).logits
    assert logits is not None  # the run has no early stop
    target = batch.ids[:, 1:].to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), target, reduction="none")
    weight = counted[:, 1:].to(loss)
    return ((loss * weight).sum(1) / weight.sum(1)).double().cpu().numpy()


def _removals(
    model: Model,
    batch: Batch,
    counted: Bool[Tensor, "prompt pos"],
    ranked: Sequence[Head],
    planes: dict[int, tuple[int, ...]],
    *,
    n_top: int,
    n_random: int,
    seed: int,
) -> list[dict[str, object]]:
    """Loss without the slow planes of the best heads, and of random ones: one row per way of matching these."""
    top = ranked[:n_top]

    def loss(edits: Sequence[Edit]) -> dict[str, float]:
        return {METRIC: float(prompt_losses(model, batch, counted, edits).mean())}

    clean, edited = loss(()), loss(plane_edits(top, planes))
    set_id = set_name("slow planes removed", top)
    rows: list[dict[str, object]] = []
    for control, sets in stats.matched_sets(top, ranked, n_sets=n_random, seed=seed).items():
        controls = [loss(plane_edits(heads, planes)) for heads in sets]
        rows += intervention_rows(set_id, len(top), control, clean, edited, controls)
    return rows
