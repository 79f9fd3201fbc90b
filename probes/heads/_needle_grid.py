"""Where in a long prompt does the model still find a needle? Accuracy over depth and length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp import tasks
from interp.measurement.needle_answers import each_answer, needle_ability
from interp.measurement.registry import Findings, analysis
from interp.measurement.rerun import Rerun
from interp.model import Model
from interp.results import stats
from interp.tasks import needles
from interp.tasks.haystacks import Format

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def _depths(rows: pd.DataFrame) -> go.Figure:
    """Needles answered, by depth and length."""
    from interp.plots import depth_grid

    return depth_grid(rows)


@analysis(
    name="needle_grid",
    family="retrieval",
    title="Needles by depth and length",
    headline="accuracy",
    unit="model",
    order=55,
    figure=_depths,
    quick={"lengths": (64,), "n_depths": 3, "n_prompts": 4},
    exemptions={
        "planted": "what a whole model does; tests/probes/heads/test_retrieval.py asks planted ones",
        "significance": "chance of a right answer is one in the vocabulary and less",
    },
    columns={"length": "Int64", "depth": "float64"},
    means="The model says the value of a needle at this depth of a prompt of this length.",
    misleads="Teacher-forced: every token of the value must rank first given the right ones before it. One haystack "
    "and one wording of the question; a model may fail the wording and not the recall.",
    reference="Kamradt 2023, needle in a haystack; Wu et al. 2024, arXiv 2404.15574, section 2",
)
def needle_grid(
    model: Model,
    *,
    lengths: Sequence[int] = (64, 128, 256),
    n_depths: int = 5,
    n_prompts: int = 8,
    value_words: int = 1,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Needle accuracy: share of prompts whose value is answered right, one needle per prompt, by depth and length.

    Variants `accuracy` (fraction) and `loss` (nats per token of the value), one row per cell; depth 0 is the
    beginning of the haystack. The null of the accuracy is 0: chance among all tokens is 1 / d_vocab and less.

    Args:
        model: any loaded model.
        lengths: tokens per prompt; longer than the context are left out.
        n_depths: depths from 0 to 1.
        n_prompts: prompts per cell, the unit of the interval.
        value_words: words in a value.
        task: how a needle is told and asked for.
        bos: "default", "forced" or "none".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no length leaves room for a haystack.
    """
    limit = model.info.context
    rows, batches, description, answered = [], [], {}, []
    for length in dict.fromkeys(min(n, limit or n) for n in lengths):
        for depth in np.linspace(0, 1, n_depths).tolist():
            haystacks = needles.hide(
                model,
                n=n_prompts,
                length=length,
                n_needles=1,
                value_words=value_words,
                depths=[depth],
                task=task,
                bos=bos,
                seed=seed + len(batches),
            )
            batches.append(haystacks.batch)
            description = haystacks.describe()
            both = each_answer(Rerun(model), haystacks)
            answered.append(both[0])
            for variant, unit, values in zip(("accuracy", "loss"), ("fraction", "nats"), both, strict=True):
                score = stats.bootstrap_mean(values, seed=seed)
                rows.append(
                    {
                        "variant": variant,
                        "unit": unit,
                        "length": description["length"],
                        "depth": depth,
                        "value": float(score.mean),
                        "se": float(score.se),
                        "ci_low": min(float(score.low), float(score.mean)),
                        "ci_high": max(float(score.high), float(score.mean)),
                        "null": 0.0 if variant == "accuracy" else float(np.log(model.info.d_vocab)),
                        "n": score.n,
                    }
                )
    data = {**description, "bos": bos, "lengths": list(lengths), "sha256": tasks.fingerprint(batches)}
    ability = needle_ability(np.concatenate(answered), model)
    return Findings(sorted(rows, key=lambda row: row["variant"]), data, ability=ability)
