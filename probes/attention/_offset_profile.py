"""At which distance a head looks, whatever stands there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.attention import Mean, Offset
from interp.batch import Prompts
from interp.measurement.declaration import CAUSAL, Stage
from interp.measurement.prompts import PromptSet, prompt_set, visible_keys
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats

if TYPE_CHECKING:
    import plotly.graph_objects as go


def _lines(rows: pd.DataFrame) -> go.Figure:
    """Mass against offset, for the heads with the highest peaks."""
    from interp.plots.attention import profile_lines

    return profile_lines(rows, axis="offset")


@analysis(
    name="offset_profile",
    presumes=(CAUSAL,),
    family="attention",
    title="Fixed-offset heads",
    headline="peak",
    order=210,
    shares="random tokens",
    stage=Stage("fixed offset"),
    figures={"profile": _lines},
    exemptions={"planted": "where a head looks, whatever for: heads of many mechanisms do"},
    columns={"label": "boolean"},
    means="The head looks a fixed number of tokens back (`position`; 0 is the token itself), whatever stands there.",
    misleads="On prompts that repeat with one period a head that follows content has a sharp offset too: its peak is "
    "that period. Random tokens without repeats, the default, leave content nothing to follow; on text, take care.",
    reference="Clark et al. 2019, arXiv 1906.04341, section 3.1 (relative position)",
)
def offset_profile(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 64,
    length: int = 64,
    furthest: int = 16,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Offset profile: mean over query rows i of p(i, i-d) for d = 0 .. `furthest`, over rows that have all these keys.

    Variants:
      peak     one row per head: the largest of the profile, `position` its d, with null, p, q and label;
      profile  one row per head and offset (`position`), with null and interval;
      beyond   one row per head: what lies further back, a BOS included (and in a sink slot, where there is one).

    The null is uniform causal attention, mean of 1/n_i over the same rows. p tests that the peak gets at most 0.05 more
    than the other offsets of the same head (Student's prediction interval), times the number of offsets it was chosen
    from; q is Benjamini-Hochberg over all heads. A head is labelled at q < 0.01 and peak >= 0.3. Offsets beyond a
    sliding window are NaN in the profile and zero in the test.

    Args:
        model: any loaded model.
        prompts: text or ids to measure on; distinct random tokens without.
        n_prompts: random prompts, the unit of the interval.
        length: tokens per random prompt; shortened to context and vocabulary.
        furthest: largest offset; shortened so that half of each prompt has all keys.
        bos: "default", "forced" or "none", for random prompts.
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for 16 tokens.
        TaskError: prompts of fewer than 16 tokens.

    Reference: Clark et al. 2019 (arXiv 1906.04341), section 3.1, offsets -1, 0, +1 in BERT. The test is ours.
    """
    data = prompt_set(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    furthest = min(furthest, int(data.batch.mask.sum(1).min()) // 2 - data.start - 1)
    profile = profiles(model, data, furthest, method=method)  # prompt layer head offset
    mean = profile.mean(0)  # NaN at offsets longer than a sliding window
    peak = np.nanargmax(mean, axis=-1)
    others = np.stack([np.delete(mean, d, axis=-1) for d in range(furthest + 1)])  # offset layer head other
    rest = np.take_along_axis(others, peak[None, ..., None], 0)[0]
    value = np.nanmax(mean, axis=-1)
    p = stats.p_against_nulls(value, np.moveaxis(rest, -1, 0), margin=MARGIN)
    p = np.minimum(1.0, p * (furthest + 1))
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (value >= THRESHOLD)
    null = _uniform(model, data, furthest)
    at_peak = np.take_along_axis(profile, peak[None, ..., None], -1)[..., 0]

    def interval(values: np.ndarray) -> dict[str, object]:
        return interval_columns(stats.bootstrap_mean(values, seed=seed))

    unit = "probability"
    parts = [
        head_rows(model, "peak", unit, **interval(at_peak), null=null, p=p, q=q, label=label, position=peak),
        *(
            head_rows(model, "profile", unit, **interval(profile[..., d]), null=null, position=d)
            for d in range(furthest + 1)
        ),
        head_rows(
            model,
            "beyond",
            unit,
            **interval(1 - np.nan_to_num(profile).sum(-1)),
            null=np.maximum(0.0, 1 - (furthest + 1) * null),
        ),
    ]
    return Findings(pd.concat(parts, ignore_index=True), data.data | {"furthest": furthest})


def profiles(
    model: Model, data: PromptSet, furthest: int, *, method: str = "auto"
) -> Float[np.ndarray, "prompt layer head offset"]:
    """Mean of p(i, i-d) over the rows of each prompt that see every offset asked for outside a BOS."""
    rows = data.rows(lowest=furthest + data.start)
    questions = {str(d): Mean(Offset(d), rows) for d in range(furthest + 1)}
    answers = model.attention(data.batch, questions, method=method)
    return np.stack([answers[d].transpose(0, 1).double().numpy() for d in questions], axis=-1)


def _uniform(model: Model, data: PromptSet, furthest: int) -> Float[np.ndarray, "layer head"]:
    rows = data.rows(lowest=furthest + data.start).numpy()
    chance = np.array([(1 / n_visible)[rows].mean() for n_visible in visible_keys(model, data.batch)])
    return np.repeat(chance[:, None], model.info.n_heads, axis=1)
