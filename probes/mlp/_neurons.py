"""Neurons that a task needs: removed one at a time and together, beside neurons of the same layer and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.measurement.answers import TASKS, answered, model_task
from interp.measurement.declaration import PlantedTask
from interp.measurement.neuron_effects import (
    Neuron,
    NeuronEffects,
    keep_only_edits,
    matched_neurons,
    neuron_edits,
    neuron_names,
)
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.patching.case import Case
from interp.patching.readout import at_end
from interp.results import stats
from interp.results.figures import dots
from interp.tasks import PromptTask

SHARE, SMALLEST = 0.05, 0.02
"""Of what removing all neurons costs: below SHARE no label, up to SMALLEST no claim."""


@analysis(
    name="neurons",
    family="mlp",
    title="Neurons of a task",
    unit="neuron",
    headline="removal",
    order=150,
    two_sided=True,
    figure=dots,
    planted=PlantedTask(
        "fact_table", options=lambda planted, seed: {"task": planted_prompts(planted, "fact", seed=seed)}
    ),
    quick={"n_best": 8, "n_random": 8, "n_sets": 1},
    columns={"label": "boolean", "neuron": "Int64", "k": "Int64"},
    means="With the neuron set to its mean the model does worse at these prompts by so many units of the metric, all "
    "else run again as it follows.",
    misleads="Neurons stand in for one another: read `carried`, which keeps sets of them and removes the rest. A "
    "neuron serves other tasks as well (`probes.mlp.skill_table`). Candidates are chosen by a gradient, which is blind "
    "where the metric is saturated: raise `n_best` until it covers all where there are few. `direct` leaves out what "
    "later layers make of a neuron. A mean over tokens may be far from any value that the neuron takes.",
    reference="Geva et al. 2021, arXiv 2012.14913 (neurons as memories)",
)
def neurons(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    how: str = "mean",
    n_best: int = 32,
    n_random: int = 32,
    n_sets: int = 5,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """Effect of a neuron: I = m(clean) - m(a_i set to zero, its mean or its twin's value), mean over prompts.

    An MLP writes sum_i a_i W_out[i] + b (in a mixture of experts a_i includes the expert's weight). m is the task's
    metric. The `n_best` neurons of largest |first order| are removed exactly; variants, a row for each of them:
      removal       I, with null, p, q and label;
      first_order   E sum_t (a_i - v)[t] . dm / da_i[t]: what a gradient makes of I, for all neurons in one pass;
      direct        a_i W_out[i] . (W_U[right] - W_U[wrong]) / norm scale at END: logits that it writes itself;
      activation    a_i at END.
    and over neurons
      agreement_first_order, agreement_direct   Spearman correlation with I over the best and the random neurons;
      carried       of the first `k` by first order on half of the prompts: the share of m(clean) - m(no neuron) that
                    they keep when all others are removed, on the other prompts; null: sets of as many neurons;
      lost          the share that goes when they alone are removed; null alike.

    Nulls are neurons of the same layers that are next in size (root mean square of |a_i W_out[i]|) and not among the
    best: `n_random` of them for I, `n_sets` sets for shares. p (two-sided) is Student's prediction interval against
    their effects, for more than 2 % of what removing all neurons costs; q is Benjamini-Hochberg over all neurons of the
    model, those not tried counting as p = 1. A label needs q < 0.01 and 5 % of the whole, and a model that prefers the
    right answers in three of four prompts. Intervals are bootstraps over prompts.

    Args:
        model: any loaded model.
        task: prompts with answers, or a task's name; facts, or repeated random tokens, without.
        how: "mean" (over the clean prompts' tokens), "zero" or "resample" (the corrupt twin's).
        n_best: neurons removed one at a time.
        n_random: others removed beside them; at least five.
        n_sets: random sets of each size.
        n_prompts: of a task given by name.
        seed: of prompts, controls and bootstrap.

    Raises:
        NotApplicable: no MLP whose neurons can be told apart, or no such task for this model.
        SiteError: an unknown way of removing.

    Reference: Geva et al. 2021 (arXiv 2012.14913); nulls, tests and shares are ours.
    """
    prompts = model_task(model, task, (*TASKS, "induction"), n=n_prompts, seed=seed)
    effects = NeuronEffects.of(Case.of(model, prompts))
    names, norms = effects.names, effects.norms()
    first, direct = effects.first_order(how), effects.direct()
    best = np.argsort(-np.abs(first.mean(0)), kind="stable")[:n_best].tolist()
    chosen = [names[i] for i in best]
    controls = _controls(chosen, names, norms, n=n_random, seed=seed)
    index = {name: i for i, name in enumerate(names)}
    removal = effects.removal([*chosen, *controls], how)
    own, other = removal[:, : len(chosen)], removal[:, len(chosen) :]
    shares = _Shares.of(effects, how, seed=seed)
    able = answered(effects.case, effects.end)
    test = _test(own.mean(0), other.mean(0), whole=abs(shares.whole), count=len(names), able=able)
    unit = prompts.metric_name
    columns: dict[str, Any] = {
        "layer": [layer for layer, _ in chosen],
        "neuron": [i for _, i in chosen],
        "component": neuron_names(chosen),
    }
    activation = np.concatenate([_at_end(effects, part.activations) for part in effects.layers], 1)
    parts = [_rows("removal", unit, own, columns | test, seed)]
    beside = (("first_order", first, unit), ("direct", direct, "logit"), ("activation", activation, "activation"))
    parts += [_rows(variant, what, x[:, best], columns, seed) for variant, x, what in beside]
    tried = [index[name] for name in (*chosen, *controls)]
    for variant, x in (("first_order", first), ("direct", direct)):
        rho = stats.spearman(x.mean(0)[tried], removal.mean(0))
        parts.append(pd.DataFrame([_agreement(variant, rho, len(tried))]))
    parts.append(shares.table(first, n_best, norms, n_sets=n_sets, seed=seed))
    labelled = [name for name, yes in zip(chosen, test["label"], strict=True) if yes is True]
    together = shares.together(labelled, norms, n_sets=n_sets, seed=seed) if labelled else []
    data = {**prompts.provenance(), "how": how, "neurons": len(names), "all_neurons": shares.whole, "able": able}
    data |= {"layers_without": {str(layer): why for layer, why in effects.missing.items()}}
    return Findings(pd.concat(parts, ignore_index=True), data, together, effects.case)


@dataclass(frozen=True, eq=False)
class _Shares:
    """What sets of neurons carry, chosen on half of the prompts and judged on the others.

    Attributes:
        effects: of all neurons. values: what each is set to when it is removed with others.
        choose, judge: rows of the prompts. half: the case on those judged.
        clean, bare: the metric on each prompt as it is, and with every neuron removed.
    """

    effects: NeuronEffects
    values: dict[int, torch.Tensor]
    choose: np.ndarray
    judge: np.ndarray
    half: Case
    clean: Float[np.ndarray, " prompt"]
    bare: Float[np.ndarray, " prompt"]

    @classmethod
    def of(cls, effects: NeuronEffects, how: str, *, seed: int) -> _Shares:
        """Sets are removed to one value a neuron: zero, or the mean of clean or of corrupt prompts' tokens."""
        case = effects.case
        mask = case.task.clean.mask
        values = {layer: x[mask.to(x.device)].mean(0) for layer, x in effects.values(how).items()}
        choose, judge = np.array_split(np.random.default_rng(seed).permutation(len(case)), 2)
        bare = _measured(case, keep_only_edits(case.model, [], values))
        half = case.select(torch.from_numpy(judge))
        return cls(effects, values, choose, judge, half, case.clean.detach().double().cpu().numpy(), bare)

    @property
    def whole(self) -> float:
        """m(clean) - m(all neurons removed)."""
        return float((self.clean - self.bare).mean())

    def table(self, first: np.ndarray, n_best: int, norms: np.ndarray, *, n_sets: int, seed: int) -> pd.DataFrame:
        """Rows of `carried` and `lost`, k = 1, 2, 4, ..."""
        order = np.argsort(-first[self.choose].mean(0), kind="stable")
        names = self.effects.names
        rows = []
        for k in [2**i for i in range(n_best.bit_length()) if 2**i <= min(n_best, len(names))]:
            chosen = [names[i] for i in order[:k]]
            sets = matched_neurons(chosen, names, norms, n_sets=n_sets, seed=seed)
            for variant, share in (("carried", self.carried), ("lost", self.lost)):
                interval = self._ratio(share(chosen), seed)
                null = np.mean([self._ratio(share(s), seed)[0] for s in sets]) if sets else np.nan
                rows.append(
                    {"variant": variant, "unit": "fraction", "component": "neurons", "k": k, "value": interval[0]}
                    | {"ci_low": interval[1], "ci_high": interval[2], "n": len(self.judge), "null": null}
                )
        return pd.DataFrame(rows)

    def carried(self, kept: Sequence[Neuron]) -> np.ndarray:
        """m(all others removed) - m(all removed), each prompt judged."""
        return _measured(self.half, keep_only_edits(self.half.model, kept, self.values)) - self.bare[self.judge]

    def lost(self, removed: Sequence[Neuron]) -> np.ndarray:
        """m(clean) - m(these removed), each prompt judged."""
        return self.clean[self.judge] - _measured(self.half, neuron_edits(self.half.model, removed, self.values))

    def together(
        self, chosen: Sequence[Neuron], norms: np.ndarray, *, n_sets: int, seed: int
    ) -> list[dict[str, object]]:
        """Intervention rows of the labelled neurons removed together, beside matched sets, on the prompts judged."""
        metric = self.half.metric
        sets = matched_neurons(chosen, self.effects.names, norms, n_sets=n_sets, seed=seed)
        clean = {metric: float(self.clean[self.judge].mean())}
        edited, *controls = [{metric: clean[metric] - float(self.lost(s).mean())} for s in (chosen, *sets)]
        name = f"removed: {' '.join(neuron_names(chosen))}"
        return intervention_rows(name, len(chosen), "same layers and norm", clean, edited, controls)

    def _ratio(self, part: np.ndarray, seed: int) -> tuple[float, float, float]:
        """Mean over the mean of the whole on the prompts judged, with its interval over these."""
        whole = (self.clean - self.bare)[self.judge]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = part.mean() / whole.mean()
            drawn = stats.bootstrap(lambda w: (w @ part) / (w @ whole), len(part), seed=seed, around=value)
        return float(value), float(drawn.low), float(drawn.high)


@torch.no_grad()
def _measured(case: Case, edits: Sequence[Any]) -> np.ndarray:
    return case.value(case.model.run(case.task.clean, edits=edits).logits).double().cpu().numpy()


def _controls(
    chosen: Sequence[Neuron], names: Sequence[Neuron], norms: np.ndarray, *, n: int, seed: int
) -> list[Neuron]:
    """Up to n neurons like the chosen ones, from as many matched sets as it takes."""
    pool: dict[Neuron, None] = {}
    for own in matched_neurons(chosen, names, norms, n_sets=8, seed=seed):
        pool.update(dict.fromkeys(own))
        if len(pool) >= n:
            break
    return list(pool)[:n]


def _test(
    mean: Float[np.ndarray, " neuron"], null: Float[np.ndarray, " control"], *, whole: float, count: int, able: bool
) -> dict[str, Any]:
    """Columns null, p, q and label; q over `count` neurons, of which these are the ones tried."""
    if len(null) < stats.LEAST_NULLS:  # so few neurons that hardly any is left to compare with
        p = np.full(len(mean), np.nan)
        return {"null": float(null.mean()) if len(null) else np.nan, "p": p, "q": p, "label": [None] * len(mean)}
    draws = np.broadcast_to(null[:, None], (len(null), len(mean)))
    p = stats.p_two_sided(mean, draws, margin=SMALLEST * whole) if able else np.ones(len(mean))
    q = stats.benjamini_hochberg(np.concatenate([p, np.ones(count - len(p))]))[: len(p)]
    return {"null": float(null.mean()), "p": p, "q": q, "label": ((q < LEVEL) & (mean >= SHARE * whole)).tolist()}


def _rows(variant: str, unit: str, values: np.ndarray, columns: dict[str, Any], seed: int) -> pd.DataFrame:
    interval = stats.bootstrap_mean(values, seed=seed)
    return pd.DataFrame({"variant": variant, "unit": unit, **columns, **interval_columns(interval)})


def _agreement(variant: str, rho: stats.RankCorrelation, n: int) -> dict[str, Any]:
    row = {"variant": f"agreement_{variant}", "unit": "rank correlation", "component": "neurons"}
    return row | {"value": rho.rho, "null": 0.0, "p": rho.p, "n": n}


def _at_end(effects: NeuronEffects, x: torch.Tensor) -> np.ndarray:
    return at_end(effects.case, x).double().cpu().numpy()
