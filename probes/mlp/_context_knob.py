"""Context knob: one direction that switches a model between what its prompt says and what it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp import tasks
from interp.errors import NotApplicable, TaskError
from interp.measurement.ability import Ability
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.patching.case import Case
from interp.results import stats
from interp.results.figures import dots
from interp.tasks import PromptTask
from probes.mlp.knob import IntentRuns, Knob, fit_knob

LEAST = 16
"""Pairs that the model has to answer as asked, for half of them to be held out."""
SHARE, WHOLE = 0.75, 0.5
"""Flips from which a layer has a knob, and flips of the whole stream below which none is trained."""


@analysis(
    name="context_knob",
    family="conflict",
    title="Layers with a context knob",
    unit="layer",
    headline="swap",
    order=164,
    figure=dots,
    quick={"n_prompts": 32, "steps": 5, "n_random": 5},
    subject="zoo:default",
    exemptions={
        "planted": "a direction is no head or neuron of the truth; its tests plant one and recover it",
        "scale": "a share of runs that flip, from 0 to 1",
    },
    columns={"label": "boolean", "trained": "boolean"},
    means="The two prompts of a pair ask for the context's answer and for the known one. When they exchange this one "
    "direction of the stream at their last token, this share of the runs gives the other one's answer.",
    misleads="Behind late layers the whole stream flips the answer because it holds the answer; a knob is one "
    "direction that does so for all answers. It is sought among the directions in which the two prompts differ: "
    "elsewhere a search finds some that flip the answer and that the prompts do not use. The wording of two frames may "
    "be all that it tells apart: try it on others (`Knob.edit`).",
    reference="Minder et al. 2025, arXiv 2411.07404 (controllable context sensitivity)",
)
def context_knob(
    model: Model,
    *,
    task: PromptTask | None = None,
    steps: int = 30,
    n_random: int = 20,
    n_prompts: int = 64,
    seed: int = 0,
) -> Findings:
    """Share of runs that give the other intent's answer after x -> x + ((x' - x) . u) u at END behind a layer.

    x is the stream of one prompt of a pair, x' that of its twin, u a unit vector of the layer; both runs of each
    held-out pair count. u is trained on the other half of the pairs (see `probes.mlp.fit_knob`) in layers whose whole
    stream flips half of the runs; it is the mean difference elsewhere, and where that flips more of the pairs trained
    on (`trained` says which). Variants, a row for each layer:
      swap        as above, with null, p, q and label;
      set         every x . u set to the mean of the other intent on the training pairs: the same for all prompts;
      whole       the whole stream exchanged;
      mean        u the mean difference of the training pairs;
      separation  area under the curve of x . u between both intents;
      agreement   |cosine| of u with the mean difference.

    The null is the mean of `n_random` random directions orthogonal to u, exchanged alike; p is one-sided against their
    spread, q is Benjamini-Hochberg over layers. A label needs q < 0.01 and a share of .75. Pairs of which the model
    does not do as both prompts ask are left out. Intervals are bootstraps over pairs.

    Args:
        model: any loaded model with gradients.
        task: pairs of prompts that differ in what they ask for: the clean one for its right answer, which it tells, the
            corrupt one for its wrong answer, which the model knows; `tasks.intents` without.
        steps: of training, at each layer.
        n_random: random directions; at least five.
        n_prompts: pairs, where they are not given.
        seed: of pairs, halves, training, directions and bootstrap.

    Raises:
        NotApplicable: no such pairs in this tokenizer, or the model does as asked in fewer than 16.
        TaskError: prompts without a wrong answer, or too few random directions.

    Reference: Minder et al. 2025 (arXiv 2411.07404); they fine-tune the model to obey first. The span, orthogonal
    directions and null are ours.
    """
    pairs = tasks.intents(model, n=n_prompts, seed=seed) if task is None else task
    runs = obeyed_runs(model, pairs)
    if n_random < stats.LEAST_NULLS:
        raise TaskError(f"{n_random} random directions are too few for a test; take {stats.LEAST_NULLS} at least")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(runs.task)))
    train, test = (runs.select(rows) for rows in order.chunk(2))
    layers = [_layer(train, test, layer, steps, n_random, seed) for layer in range(model.info.n_layers)]
    null = np.stack([own.null for own in layers], 1)
    swap = stats.bootstrap_mean(np.stack([own.values["swap"] for own in layers], 1), seed=seed)
    p = stats.p_against_nulls(swap.mean, null)
    q = stats.benjamini_hochberg(p)
    base: dict[str, Any] = {"layer": range(len(layers)), "trained": [own.knob.trained for own in layers]}
    base["component"] = [str(own.knob.site) for own in layers]
    label = (q < LEVEL) & (swap.mean >= SHARE)
    rows = [_rows("swap", swap, base | {"null": null.mean(0), "p": p, "q": q, "label": label})]
    for name in ("set", "whole", "mean"):
        rows.append(_rows(name, stats.bootstrap_mean(np.stack([x.values[name] for x in layers], 1), seed=seed), base))
    for name, chance in (("separation", 0.5), ("agreement", None)):
        values = {"value": [own.numbers[name] for own in layers], "null": chance, "n": len(test.task)}
        rows.append(pd.DataFrame({"variant": name, "unit": "fraction", **base, **values}))
    data = {**runs.task.provenance(), "obeyed": len(runs.task) / len(pairs), "held_out": len(test.task)}
    ability = {pairs.name: Ability.of_counts(len(runs.task), len(pairs), 1 / 4, contrasted=True)}  # either way as asked
    return Findings(pd.concat(rows, ignore_index=True), data, ability=ability)


def obeyed_runs(model: Model, pairs: PromptTask) -> IntentRuns:
    """Runs of those pairs of which the model does as both prompts ask.

    Raises:
        NotApplicable: too few of them. TaskError: prompts without a wrong answer.
    """
    case = Case.of(model, pairs)
    if not case.task.contrasted:
        raise TaskError(f"{pairs.name}: each pair needs the known answer as its wrong one")
    runs = IntentRuns.of(model, case.task)
    n = int(runs.obeyed.sum())
    if n < LEAST:
        raise NotApplicable(
            f"the model does as asked in {n} of {len(pairs)} pairs, and {LEAST} are needed: it has no knob "
            "that these wordings turn; pass pairs of your own as `task`"
        )
    return runs.select(runs.obeyed.nonzero()[:, 0])


@dataclass(frozen=True, eq=False)
class _Layer:
    """What is found at one layer: flips of each held-out pair by variant, those of random directions, and numbers."""

    knob: Knob
    values: dict[str, Float[ndarray, " pair"]]
    null: Float[ndarray, " draw"]
    numbers: dict[str, float]


def _layer(train: IntentRuns, test: IntentRuns, layer: int, steps: int, n_random: int, seed: int) -> _Layer:
    width = train.clean.shape[-1]
    whole = test.swapped(layer, torch.eye(width))
    able = bool(train.swapped(layer, torch.eye(width)).mean() >= WHOLE)
    options = {"steps": steps, "n_random": n_random, "seed": seed}
    mean, knob = (fit_knob(train, layer, train=own, **options) for own in (False, able))
    u = knob.direction
    values = {"swap": test.swapped(layer, u[:, None]), "set": test.turned(knob), "whole": whole}
    values["mean"] = test.swapped(layer, mean.direction[:, None])
    null = [float(test.swapped(layer, v[:, None]).mean()) for v in _orthogonal(u, n_random, seed)]
    sides = [(x[layer] @ u).double().numpy() for x in (test.clean, test.corrupt)]
    numbers = {"separation": above(*sides), "agreement": abs(float(u @ mean.direction))}
    return _Layer(knob, values, np.array(null), numbers)


def _orthogonal(u: Float[Tensor, " d_model"], n: int, seed: int) -> Float[Tensor, "draw d_model"]:
    """Random unit vectors orthogonal to u."""
    random = torch.randn(n, len(u), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(random - (random @ u)[:, None] * u, dim=1)


def above(high: Float[ndarray, " some"], low: Float[ndarray, " other"]) -> float:
    """Area under the curve: share of pairs of one value of either kind whose first is above, ties by half."""
    difference = high[:, None] - low[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _rows(variant: str, interval: stats.Interval, columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({"variant": variant, "unit": "fraction", **columns, **interval_columns(interval)})
