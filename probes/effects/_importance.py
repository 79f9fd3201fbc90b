"""Importance of heads: what removing one costs, exactly and by gradient, and what is left without many."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats as distributions
from torch import Tensor

from interp import tasks
from interp.batch import Batch, Prompts
from interp.edits import Scale, ablate_heads
from interp.errors import TaskError, nearest
from interp.measurement.declaration import PREPARE, PlantedTask, Stage
from interp.measurement.head_effects import Objective, ablation_effects, first_order_effects, head_activations
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tokens.losses import token_losses

HOW = ("mean", "zero", "resample")
SHARE, SMALLEST = 0.05, 0.02  # of what removing all heads costs: below SHARE no label, up to SMALLEST no claim
STEPS = 10  # of a pruning curve
RESAMPLES = 200


@analysis(
    name="importance",
    family="importance",
    title="Importance of heads",
    headline="mean",
    unit="head by exact ablation",
    order=140,
    stage=Stage("important", PREPARE),
    planted=PlantedTask("repeats", options=lambda planted, seed: {"n_prompts": 8}),
    columns={"label": "boolean", "pruned": "Int64"},
    means="Without what the head says on this input the model does worse on these prompts, all else left as it was.",
    misleads="Of one head at a time: heads that stand in for each other all seem unimportant, and removing them "
    "together breaks the task. Zeroing also takes away a constant that later layers count on. A gradient sees "
    "no step at all: where the metric is saturated it is blind. Importance says nothing about what a head does.",
    reference="Michel et al. 2019, arXiv 1905.10650",
)
def importance(
    model: Model,
    *,
    task: str | PromptTask | None = None,
    prompts: Prompts | None = None,
    how: tuple[str, ...] = ("mean",),
    n_prompts: int = 32,
    length: int = 24,
    pruning: bool = False,
    n_random: int = 20,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Importance I = m(clean) - m(one head ablated), mean over prompts; and E |z . dm/dz|, its gradient.

    m is the task's metric, or minus the mean loss of a prompt in nats (second copy, by default). Variants:
      mean, zero, resample     exact: z is replaced by its mean, by zero, by the corrupt twin's or another prompt's;
                               `mean` has p, q and label;
      mask_gradient            E over prompts of |sum z . dm/dz|, the published score;
      mask_gradient_by_layer   the same over the L2 norm of its layer, as published for ranking across layers;
      mask_gradient_signed     E sum z . dm/dz: what zeroing would cost were m linear;
      agreement_A_B            one row each: Spearman correlation of two of them over heads, with p;
      pruned_by_A, area_by_A   with `pruning`: m on half of the prompts when the `pruned` heads of least |A| on the
                               others are zeroed, and its mean over steps as a share of m(clean) - m(none
                               left); the null is the mean over `n_random` random orders. `pruning_curve` draws it.

    p tests over prompts that removing the head costs at most 2 % of what removing all does (Student's t; null 0); q is
    Benjamini-Hochberg over heads. A label needs q < 0.01 and 5 %.

    Args:
        model: any loaded model.
        task: name of a task, or pairs of your own; repeated random tokens without either.
        prompts: instead of a task, any prompts: their loss.
        how: exact ablations to make, of "mean", "zero" and "resample"; "mean" is always among them.
        n_prompts: prompts, where they are made here.
        length: of the repeated block of the default prompts.
        pruning: whether to prune: (orders + `n_random`) x 11 forwards of half the prompts more, zeroed heads in each.
        n_random: random orders.
        bos: "default", "forced" or "none", for prompts made here.
        seed: of prompts, bootstrap, halves and random orders.

    Raises:
        TaskError: a task and prompts at once, fewer than four prompts, an unknown way of ablating.

    Reference: Michel et al. 2019 (arXiv 1905.10650), equation 2. They prune on the data they score; halves, intervals
    and tests are ours. Not part of `interp detect`: one pass (from the head's layer on) per head and ablation.
    """
    pair = tasks.task(task, model, n=n_prompts, seed=seed, bos=bos) if isinstance(task, str) else task
    objective, donors, data = _objective(model, pair, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    _check_options(objective, how)
    mean = model.mean(objective.batch)[list(model.info.attention_layers)]
    values: dict[str, Any] = {"mean": mean, "zero": None, "resample": None}
    if "resample" in how:
        values["resample"] = head_activations(model, donors)
    costs = {way: ablation_effects(model, objective, way, values[way]) for way in dict.fromkeys(("mean", *how))}
    signed_gradient = first_order_effects(model, objective)
    costs["mask_gradient"] = np.abs(signed_gradient)
    full_ablation = ablate_heads([(x, h) for x in model.info.attention_layers for h in range(model.info.n_heads)])
    clean, bare = (float(objective.measure(model, edits).mean()) for edits in ((), full_ablation))
    whole = clean - bare
    score = stats.bootstrap_mean(costs["mean"], seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (score.mean - SMALLEST * abs(whole)) / score.se
    p = distributions.t.sf(np.nan_to_num(t, nan=0.0), df=score.n - 1)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (score.mean >= SHARE * abs(whole))
    parts = []
    for way, x in (*costs.items(), ("mask_gradient_signed", signed_gradient)):
        extra: dict[str, Any] = {"null": 0.0, "p": p, "q": q, "label": label} if way == "mean" else {}
        columns = interval_columns(stats.bootstrap_mean(x, seed=seed))
        parts.append(head_rows(model, way, objective.unit, **columns, **extra))
    gradient = costs["mask_gradient"].mean(0)
    norm = np.linalg.norm(gradient, axis=1, keepdims=True)
    by_layer = np.divide(gradient, norm, out=np.zeros_like(gradient), where=norm > 0)
    parts.append(head_rows(model, "mask_gradient_by_layer", "fraction", value=by_layer))
    parts.append(_agreement(costs, seed))
    if pruning:
        parts.append(_pruning_rows(model, objective, costs, n_random=n_random, seed=seed))
    data |= {"metric": objective.metric, "clean": clean, "all_heads": whole}
    return Findings(pd.concat(parts, ignore_index=True), data, ability={} if pair is None else pair)


def _check_options(objective: Objective, how: tuple[str, ...]) -> None:
    """Refuse too few prompts and unknown ways of ablating."""
    for way in how:
        if way not in HOW:
            raise TaskError(f"unknown ablation {way!r}; {nearest(way, HOW)}")
    if len(objective.batch.ids) < 4:
        raise TaskError(f"{len(objective.batch.ids)} prompts: four at least, half of them choose what is pruned")


def _objective(
    model: Model,
    task: PromptTask | None,
    prompts: Prompts | None,
    *,
    n_prompts: int,
    length: int,
    bos: str,
    seed: int,
) -> tuple[Objective, Batch, dict[str, Any]]:
    """What is measured, the prompts whose activations replace the clean ones, and what to say of both."""
    if task is not None and prompts is not None:
        raise TaskError("a task and prompts: which of them? Give one")
    if task is not None:
        return Objective.of_task(task), task.corrupt, dict(task.provenance())
    if prompts is not None:
        batch, first, task_name = model.batch(prompts).to("cpu"), 0, "prompts given"
    else:
        start = int(tasks.bos_id(model, bos) is not None)
        lowest = min(length, ((model.info.context or 2 * length + start) - start) // 2)
        repeats = tasks.repeated_random(model, lengths=[lowest], n_each=n_prompts, bos=bos, seed=seed)[0]
        batch, first, task_name = repeats.batch, repeats.second[0], "repeated random tokens"
    order = batch.mask.sum(1).argsort(stable=True)
    other = batch.select(order.roll(1))
    twin = Batch(torch.empty_like(batch.ids), torch.empty_like(batch.mask))
    twin.ids[order], twin.mask[order] = other.ids, other.mask

    def value(logits: Float[Tensor, "row pos d_vocab"], rows: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        return -token_losses(logits, batch.ids[rows], batch.mask[rows])[:, first:].nanmean(1)

    data = {"task": task_name, "n": len(batch.ids), "bos": bos, "sha256": tasks.fingerprint([batch])}
    return Objective(batch, value, "loss_nats", "nats"), twin, data


def _agreement(costs: dict[str, Float[np.ndarray, "prompt layer head"]], seed: int) -> pd.DataFrame:
    """Spearman correlation over heads of every two measures, interval over prompts."""
    n = len(next(iter(costs.values())))
    rows = []
    for a, b in combinations(costs, 2):
        x, y = (costs[way].reshape(n, -1) for way in (a, b))
        correlation = stats.spearman(x.mean(0), y.mean(0))
        interval = stats.bootstrap(
            lambda w: stats.spearman_rows(w @ x, w @ y),  # noqa: B023  (used at once)
            n,
            seed=seed,
            n_resamples=RESAMPLES,
            around=correlation.rho,
            omit_nan=True,
        )
        rows.append(
            {
                "variant": f"agreement_{a}_{b}",
                "unit": "rank correlation",
                "value": correlation.rho,
                "ci_low": float(interval.low),
                "ci_high": float(interval.high),
                "null": 0.0,
                "p": correlation.p,
                "n": x.shape[1],
            }
        )
    return pd.DataFrame(rows)


def _pruning_rows(
    model: Model,
    objective: Objective,
    costs: dict[str, Float[np.ndarray, "prompt layer head"]],
    *,
    n_random: int,
    seed: int,
) -> pd.DataFrame:
    """Curves on the second half of the prompts, orders by the first; random orders beside them."""
    rng = np.random.default_rng(seed)
    permutation = rng.permutation(len(objective.batch.ids))
    choose_rows, judge_rows = np.array_split(permutation, 2)
    judge_objective = objective.first(torch.from_numpy(judge_rows))
    n_heads = costs["mean"][0].size
    steps = sorted({round(n_heads * i / STEPS) for i in range(STEPS + 1)})
    by = {way: np.argsort(np.abs(x[choose_rows].mean(0)).ravel(), kind="stable") for way, x in costs.items()}
    orders = [*by.values(), *(rng.permutation(n_heads) for _ in range(n_random))]
    curves = np.stack([_curve(model, judge_objective, order, steps) for order in orders])  # order step prompt
    random = curves[len(by) :].mean(2)
    clean, bare = curves[0, 0].mean(), curves[0, -1].mean()
    areas = (curves.mean(2) - bare).mean(1) / (clean - bare)
    chance = areas[len(by) :]
    rows: list[dict[str, object]] = []
    for i, way in enumerate(by):
        interval = stats.bootstrap_mean(curves[i].T, seed=seed)
        rows += [
            {"variant": f"pruned_by_{way}", "unit": objective.unit, "pruned": k, "null": random[:, s].mean()}
            | {name: x[s] if isinstance(x, np.ndarray) else x for name, x in interval_columns(interval).items()}
            for s, k in enumerate(steps)
        ]
        p = (1 + (chance >= areas[i]).sum()) / (1 + n_random)
        rows.append({"variant": f"area_by_{way}", "unit": "fraction", "value": areas[i], "null": chance.mean(), "p": p})
    return pd.DataFrame(rows)


def _curve(
    model: Model, objective: Objective, order: Int[np.ndarray, " head"], steps: list[int]
) -> Float[np.ndarray, "step prompt"]:
    """The value when the first k heads of the order are zeroed, for each k: all steps in one batch, by masks."""
    n, width = len(objective.batch.ids), model.info.n_heads
    head_mask = torch.ones(len(steps), len(model.info.attention_layers) * width)
    for s, k in enumerate(steps):
        head_mask[s, torch.from_numpy(order[:k])] = 0.0
    masks = head_mask.view(len(steps), -1, width).repeat_interleave(n, dim=0)  # row layer head
    edits = [Scale(Site("z", x), masks[:, i, None, :, None]) for i, x in enumerate(model.info.attention_layers)]
    batch = objective.batch.repeat(len(steps))
    logits = model.run(batch, edits=edits).logits
    assert logits is not None  # the run has no `stop`
    values = objective.value(logits, torch.arange(n).repeat(len(steps)))
    return values.detach().view(len(steps), n).double().cpu().numpy()
