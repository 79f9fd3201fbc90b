"""Temporal heads: heads that carry the time a prompt speaks of, and nothing that holds at any time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats as distributions
from torch import Tensor

from interp import tasks
from interp.edits import Edit
from interp.errors import NotApplicable
from interp.measurement.ability import Ability, end_logits
from interp.measurement.declaration import RECALL, PlantedTask, Stage
from interp.measurement.head_effects import Objective, first_order_effects, head_activations
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import removal_rows
from interp.measurement.scoring import LEVEL, head_rows, interval_columns, ranked_heads
from interp.model import Model
from interp.results import stats
from interp.tasks import PromptTask

if TYPE_CHECKING:
    from interp.zoo.planted.factory import Planted

TIMELESS = ("facts", "capital_country")
WEAK, MARGIN = 0.1, 0.05  # shares of the whole effect: of a label, and worth a claim
LEAST = 0.1  # change of the metric between clean and corrupt prompts below which there is nothing to explain


def _planted(planted: Planted, seed: int) -> dict[str, PromptTask]:
    return {
        "temporal_task": planted_prompts(planted, "dated", seed=seed, corruption="minimal"),
        "timeless_task": planted_prompts(planted, "fact", seed=seed, corruption="minimal"),
    }


@analysis(
    name="temporal",
    family="factual",
    title="Temporal heads",
    headline="specific",
    order=130,
    needs="text",
    stage=Stage("temporal", RECALL),
    planted=PlantedTask("dated_time", options=_planted, beside=("fact",)),
    columns={"label": "boolean"},
    means="Exchanging what the head carries for what it carries when the prompt names another time changes the answer; "
    "exchanging it between prompts about timeless facts does not.",
    misleads="The default prompts are spans of years, so a head that compares numbers is temporal here: no fact about "
    "a year is recalled. Effects are to first order and of one head at a time; stand-ins for each other share "
    "what they do. Give pairs (subject, time) of your own before speaking of knowledge.",
    reference="Park et al. 2025, arXiv 2502.14258",
)
def temporal(
    model: Model,
    *,
    temporal_task: PromptTask | None = None,
    timeless_task: PromptTask | None = None,
    n_prompts: int = 48,
    causal: bool = True,
    n_random: int = 5,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Temporal effect of a head: share of the change from another time that its z carries, less that of timeless facts.

    share = (z_clean - z_corrupt) . (g_clean + g_corrupt) / 2 over m(clean) - m(corrupt), both means over prompts, g the
    gradient of the metric m: integrated gradients with the two end points. A temporal pair differs in its time alone, a
    timeless one in its subject. Variants, a row per head each:
      temporal  share on temporal pairs;  timeless  share on timeless pairs;
      specific  temporal - |timeless|, with p, q and label; null 0.

    p is Welch's: that the temporal share exceeds the timeless one's size by at most 0.05; q is Benjamini-Hochberg over
    heads. A label needs q < 0.01 and an interval of `specific` from 0.1 up. With `causal` the labelled heads are
    mean-ablated and both tasks' metrics compared with those under random heads: see `interventions`.

    Args:
        model: any loaded model with a tokenizer.
        temporal_task: pairs of prompts that differ in a time; spans of years (`greater_than`) if not given.
        timeless_task: pairs without any; the checkpoint's own `facts`, else `capital_country`.
        n_prompts: pairs of each.
        causal: whether to remove the labelled heads.
        n_random: random sets they are compared with.
        bos: "default", "forced" or "none".
        seed: of prompts, bootstrap and random sets.

    Raises:
        NotApplicable: no such prompts with this tokenizer, or the model does not tell them apart.

    Reference: Park et al. 2025 (arXiv 2502.14258): there heads are those in circuits (EAP-IG) for facts with a year and
    not in circuits for facts without; here the nodes' own attribution, two points of the path, and a test.
    """
    pairs = {
        "temporal": temporal_task or tasks.task("greater_than", model, n=n_prompts, seed=seed, bos=bos),
        "timeless": timeless_task or _timeless(model, n_prompts, seed, bos),
    }
    ends = {name: end_logits(model, pair) for name, pair in pairs.items()}
    shares = {name: _shares(model, pair, ends[name], name) for name, pair in pairs.items()}
    scores = {name: stats.bootstrap_mean(x, seed=seed) for name, x in shares.items()}
    control = np.sign(scores["timeless"].mean) * shares["timeless"]
    p = _exceeds(shares["temporal"] - MARGIN, control)
    q = stats.benjamini_hochberg(p)
    specific = _difference(shares["temporal"], control, seed)
    label = (q < LEVEL) & (specific["ci_low"] >= WEAK)
    parts = [head_rows(model, "specific", "fraction", **specific, null=0.0, p=p, q=q, label=label)]
    parts += [head_rows(model, n, "fraction", **interval_columns(x)) for n, x in scores.items()]
    data = {name: pair.provenance() for name, pair in pairs.items()}
    effects = []
    if causal and label.any():
        effects = removal_rows(
            lambda edits: {f"{name}_{pair.metric_name}": _mean(model, pair, edits) for name, pair in pairs.items()},
            ranked_heads(model, label, specific["value"]),
            ranked_heads(model, ~label, specific["value"]),
            mean=model.mean(pairs["temporal"].clean),
            n_random=n_random,
            seed=seed,
            how=("mean",),
        )
    able = {name: Ability.of(ends[name], pair.to("cpu")) for name, pair in pairs.items()}
    return Findings(pd.concat(parts, ignore_index=True), data, effects, able)


def _timeless(model: Model, n: int, seed: int, bos: str) -> PromptTask:
    name = next(t for t in TIMELESS if t in tasks.task_names(model))
    return tasks.task(name, model, n=n, seed=seed, bos=bos)


def _shares(
    model: Model, pair: PromptTask, end: Float[Tensor, "prompt d_vocab"], name: str
) -> Float[np.ndarray, "prompt layer head"]:
    """Of the difference between clean prompts, whose logits at END are known, and corrupt ones: what heads carry."""
    clean, corrupt = Objective.of_task(pair), Objective.of_task(pair, corrupt=True)
    known = Objective.of_task(pair.to("cpu")).value(end, torch.arange(len(end))).double().numpy()
    whole = float((known - corrupt.measure(model)).mean())
    if not whole > LEAST:
        raise NotApplicable(f"the model does not tell {name} pairs apart: {pair.metric_name} changes by {whole:.2g}")
    there = first_order_effects(model, clean, head_activations(model, pair.corrupt))
    here = first_order_effects(model, corrupt, head_activations(model, pair.clean))
    return (there - here) / 2 / whole


def _exceeds(
    a: Float[np.ndarray, "prompt layer head"], b: Float[np.ndarray, "other layer head"]
) -> Float[np.ndarray, "layer head"]:
    """Welch's one-sided p that the mean of a is above that of b; 1 where neither varies and both are the same."""
    moments = [z for x in (a, b) for z in (x.mean(0), x.std(0, ddof=1), len(x))]
    with np.errstate(divide="ignore", invalid="ignore"):
        _, p = distributions.ttest_ind_from_stats(*moments, equal_var=False, alternative="greater")
    same = (moments[1] == 0) & (moments[4] == 0) & (moments[0] == moments[3])
    return np.where(same, 1.0, np.maximum(np.asarray(p, dtype=float), stats.LEAST_P))


def _difference(
    a: Float[np.ndarray, "prompt layer head"], b: Float[np.ndarray, "other layer head"], seed: int
) -> dict[str, np.ndarray]:
    """Columns value, se, ci_low, ci_high, n of mean a - mean b, prompts of both resampled."""
    value, sizes = a.mean(0) - b.mean(0), (len(a), len(b))
    draws = stats.bootstrap(lambda v, w: np.tensordot(v, a, 1) - np.tensordot(w, b, 1), *sizes, seed=seed, around=value)
    n = np.full(value.shape, sum(sizes))
    return {"value": value, "se": draws.se, "ci_low": draws.low, "ci_high": draws.high, "n": n}


def _mean(model: Model, pair: PromptTask, edits: Sequence[Edit]) -> float:
    logits = model.run(pair.clean, edits=edits).logits
    assert logits is not None  # the run has no `stop`
    return float(pair.value(logits).mean())
