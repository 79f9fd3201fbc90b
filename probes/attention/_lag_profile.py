"""Where a head looks relative to the previous occurrence of its token, and whether memory for lists looks alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp import tasks
from interp.attention import Mean, Offset, Statistic
from interp.measurement.declaration import CAUSAL, Stage
from interp.measurement.prompts import describe_repeats, repeat_groups
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.stats import p_above
from interp.tasks import Repeats
from probes.attention import temporal_context

if TYPE_CHECKING:
    import plotly.graph_objects as go

CLOSE = 0.5  # distance from the temporal-context model below which the source calls a head alike
REACH = 5  # lags fitted on either side, as in the source
SHUFFLES, RESAMPLES = 99, 200


def _lines(rows: pd.DataFrame) -> go.Figure:
    """Mass against lag, for the heads with the highest peaks."""
    from interp.plots.attention import profile_lines

    return profile_lines(rows, axis="lag")


@analysis(
    name="lag_profile",
    presumes=(CAUSAL,),
    family="copy",
    title="Lag-following heads",
    headline="best",
    order=220,
    shares="random blocks, repeated",
    stage=Stage("lag"),
    figures={"profile": _lines},
    exemptions={"planted": "where a head looks, whatever for: heads of many mechanisms do"},
    columns={"label": "boolean", "beta_enc": "float64", "beta_rec": "float64", "gamma": "float64"},
    means="The head finds the previous occurrence of the token and looks `position` tokens after it: 0 at the copy "
    "itself, +1 at what followed (the induction stripe), anything else a stripe that an induction test overlooks.",
    misleads="A small distance from the temporal-context model is no sign of memory: any sharp peak at lag 0 or +1 "
    "fits it without graded flanks, and one noise profile in twelve. A stripe is where it looks, not what it writes.",
    reference="Ji-An et al. 2024, arXiv 2405.14992; Howard & Kahana 2002, J. Math. Psychol. 46 (temporal context)",
)
def lag_profile(
    model: Model,
    *,
    n_prompts: int = 64,
    lengths: tuple[int, int] = (16, 64),
    n_lengths: int = 8,
    furthest: int = 8,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Lag profile: mean over second-copy queries of p(i, i - T + lag), on a block of T random tokens given twice.

    Variants:
      best          one row per head: the profile at the lag (`position`) where it most exceeds its null; p, q, label;
      profile       one row per head and lag (`position`) in -furthest .. furthest, with interval and null;
      asymmetry     profile at +1 less that at -1, both less their null: forward positive, backward negative;
      cmr_distance  share of the variance of the profile (less its null) over lags -5 .. 5 that the temporal-context
                    model leaves unexplained, with the parameters of the closest curve in `beta_enc`, `beta_rec`,
                    `gamma`; the null is the mean over 99 random orders of the same lags, p the share of orders that
                    are fitted as well. Below 0.5 the source calls a head alike. NaN for a flat profile.

    The null of the profile is permuted: the same prompts with the second copy in random order, where every position and
    every token of the block is there but no lag means anything. p of `best` tests over prompts that the excess over
    that null is at most 0.05 (Student's t), times the number of lags it was chosen from; q is Benjamini-Hochberg over
    all heads. A head is labelled at q < 0.01 and value >= 0.3, at any lag. Rows whose key would be outside the first
    copy have no say in that lag. T varies, so that a fixed distance does not pass for a lag.

    Args:
        model: any loaded model.
        n_prompts: prompts in all, the unit of the interval.
        lengths: lowest and highest block length T.
        n_lengths: distinct lengths drawn.
        furthest: largest lag on either side, at least 5 for the fit; shortened to the shortest T less 3.
        bos: "default", "forced" or "none".
        method: attention method, "fused" or "naive".
        seed: of prompts, permutations and bootstrap.

    Raises:
        NotApplicable: the context or vocabulary leaves no room to vary T.

    Reference: Ji-An et al. 2024 (arXiv 2405.14992). They fit curves of finite lists on a grid; ours is the closed form
    for an endless list (see `probes.attention.temporal_context`) polished by L-BFGS-B, and the nulls are ours.
    """
    groups = repeat_groups(model, n_prompts=n_prompts, lengths=lengths, n_lengths=n_lengths, bos=bos, seed=seed)
    furthest = min(furthest, min(g.length for g in groups) - 3)
    real = lag_masses(model, groups, furthest, method=method)  # prompt layer head lag
    chance = lag_masses(model, tasks.permuted_repeats(groups, seed=seed), furthest, method=method)
    excess = real - chance
    best = excess.mean(0).argmax(-1)

    def at_best(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, best[None, ..., None], -1)[..., 0]

    p = np.minimum(1.0, p_above(at_best(excess), margin=MARGIN) * real.shape[-1])
    q = stats.benjamini_hochberg(p)
    value = stats.bootstrap_mean(at_best(real), seed=seed)
    label = (q < LEVEL) & (value.mean >= THRESHOLD)
    forward = stats.bootstrap_mean(excess[..., furthest + 1] - excess[..., furthest - 1], seed=seed)
    unit, columns = "probability", interval_columns
    parts = [
        head_rows(
            model,
            "best",
            unit,
            **columns(value),
            null=at_best(chance).mean(0),
            p=p,
            q=q,
            label=label,
            position=best - furthest,
        ),
        *_profile(model, real, chance, furthest, seed=seed),
        head_rows(model, "asymmetry", unit, **columns(forward), null=0.0),
        _distance_rows(model, excess, furthest, seed=seed),
    ]
    data = describe_repeats(groups, bos) | {"furthest": furthest}
    return Findings(pd.concat(parts, ignore_index=True), data)


def _profile(
    model: Model,
    real: Float[np.ndarray, "prompt layer head lag"],
    chance: Float[np.ndarray, "prompt layer head lag"],
    furthest: int,
    *,
    seed: int,
) -> list[pd.DataFrame]:
    """Rows of `profile`, a block per lag."""
    rows = []
    for i in range(real.shape[-1]):
        columns = interval_columns(stats.bootstrap_mean(real[..., i], seed=seed))
        null = chance[..., i].mean(0)
        rows.append(head_rows(model, "profile", "probability", **columns, null=null, position=i - furthest))
    return rows


def lag_masses(
    model: Model, groups: Sequence[Repeats], furthest: int, *, method: str = "auto"
) -> Float[np.ndarray, "prompt layer head lag"]:
    """Mean mass at each lag -furthest .. furthest of the first copy, over queries of the second copy that have it."""
    masses = []
    for g in groups:
        questions: dict[str, Statistic] = {}
        for lag in range(-furthest, furthest + 1):
            rows = [g.second[m] for m in range(g.length) if 0 <= m + lag < g.length]
            questions[str(lag)] = Mean(Offset(g.length - lag), g.rows(rows))
        answers = model.attention(g.batch, questions, method=method)
        masses.append(np.stack([answers[lag].transpose(0, 1).double().numpy() for lag in questions], axis=-1))
    # a stripe outside a sliding window has no answer: nothing is paid there
    return np.nan_to_num(np.concatenate(masses))


def _distance_rows(
    model: Model, excess: Float[np.ndarray, "prompt layer head lag"], furthest: int, *, seed: int
) -> pd.DataFrame:
    """Rows of `cmr_distance`: interval over resampled prompts, null over shuffled lags."""
    reach = min(REACH, furthest)
    middle = excess[..., furthest - reach : furthest + reach + 1]
    n, shape = len(middle), middle.shape[1:3]
    mean = middle.mean(0).reshape(-1, 2 * reach + 1)
    fit = temporal_context.fit(mean)
    rng = np.random.default_rng(seed)

    def distances(weights: Float[np.ndarray, "draw prompt"]) -> Float[np.ndarray, "draw head"]:
        return np.stack([temporal_context.distance(np.tensordot(w, middle, 1).reshape(mean.shape)) for w in weights])

    interval = stats.bootstrap(distances, n, seed=rng, n_resamples=RESAMPLES, around=fit.distance)
    orders = [rng.permutation(2 * reach + 1) for _ in range(SHUFFLES)]
    null_distances = np.stack([temporal_context.distance(mean[:, order]) for order in orders])
    flat = np.isnan(fit.distance)
    p = (1 + (null_distances <= temporal_context.distance(mean)).sum(0)) / (1 + SHUFFLES)
    return head_rows(
        model,
        "cmr_distance",
        "fraction",
        value=fit.distance.reshape(shape),
        se=interval.se.reshape(shape),
        ci_low=interval.low.reshape(shape),
        ci_high=interval.high.reshape(shape),
        null=null_distances.mean(0).reshape(shape),
        p=np.where(flat, np.nan, p).reshape(shape),
        n=n,
        beta_enc=np.where(flat, np.nan, fit.beta_enc).reshape(shape),
        beta_rec=np.where(flat, np.nan, fit.beta_rec).reshape(shape),
        gamma=np.where(flat, np.nan, fit.gamma).reshape(shape),
    )
