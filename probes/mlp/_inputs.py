"""Which of its inputs makes an MLP say the answer: each taken out, and the MLP alone run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import ARROW, mlp_name
from interp.decompose import Decomposition, decompose
from interp.errors import BackendError, NotApplicable, SchemaError, nearest
from interp.measurement.answers import TASKS, AnswerDirections, exchange_columns, model_task
from interp.measurement.declaration import PlantedTask
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.patching.case import Case
from interp.results import stats
from interp.results.figures import dots
from interp.tasks import PromptTask
from probes.mlp._regression import enters, leaves
from probes.mlp.inputs import LoneMLP, Removals, removals, slope

BASES = ("mean", "zero")
SHARE, SMALLEST = 0.05, 0.01
"""Of the sum of all sizes at an MLP: below SHARE no label, up to SMALLEST no claim."""
SUM_RULE = 1e-4
IDLE = 0.01
"""Share of the largest MLP's sum of sizes: an MLP below it writes noise, and no input of its is labelled."""


@analysis(
    name="mlp_inputs",
    family="mlp",
    title="Inputs that an MLP answers by",
    unit="component that enters an MLP",
    headline="shapley",
    order=154,
    two_sided=True,
    figure=dots,
    planted=PlantedTask(
        "dated_input",
        options=lambda planted, seed: {"task": planted_prompts(planted, "dated", seed=seed, corruption="minimal")},
    ),
    quick={"n_prompts": 16, "n_orders": 4},
    columns={"label": "boolean", "mlp": "str"},
    means="With the component in what the MLP reads, the MLP writes so much more of the answer over the wrong one; "
    "shared out fairly where components do it together.",
    misleads="It is what this MLP writes, read by the unembedding directly: what later layers make of it is left out, "
    "and so is what the component does by other ways. `marginal` is 0 for two components that stand in for each other; "
    "`gradient` is right for small changes only, and a component is no small change. Components at their mean over "
    "prompts, one by one, make streams that no prompt has.",
    reference="Shapley 1953; Lv et al. 2024, arXiv 2403.19521 (MLP decomposition)",
)
def mlp_inputs(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    layers: Sequence[int] | None = None,
    base: str = "mean",
    n_orders: int = 16,
    n_draws: int = 16,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """Shapley value phi_c of w . MLP(norm(sum_c x_c)): what component c adds to the answer that the MLP writes at END.

    w is W_U[right] - W_U[wrong] through the final norm, whose divisor is held. The MLP alone is run again, its own norm
    being that of what it is given; components that are out stand at their base: their mean over the prompts, or zero.
    Variants, for each MLP (column `mlp`) and each component that enters it (`L2H6 -> M3`):
      shapley    mean over `n_orders` random orders (each with its reverse) of what c adds to those before it; they sum
                 to w . (MLP(all) - MLP(base)), checked to 1e-4; with null, p, q and label;
      marginal   w . (MLP(all) - MLP(all but c));
      gradient   w . J (x_c - base_c), J the Jacobian at the whole stream;
      output     <m - m(all but c), m> / <m, m>: share of the MLP's whole write, m = MLP(all);
    and for the MLP
      total      w . (MLP(all) - MLP(base)).

    The null is the same of `n_draws` exchanges of answers between prompts. p (two-sided) tests against their spread,
    for more than 1 % of the sum of all sizes at that MLP; q is Benjamini-Hochberg over components and MLPs. A label
    needs q < 0.01, 5 % of the sum, an MLP whose sum is 1 % of the largest one's, and a model that prefers the right
    answers in three of four prompts. Intervals are bootstraps over prompts.

    Args:
        model: any loaded model.
        task: prompts with answers, or a task's name; facts, or repeated random tokens, without.
        layers: MLPs; all that can be run by themselves without.
        base: "mean" or "zero".
        n_orders: orders of joining; each costs one run of the MLP a component.
        n_draws: exchanges; at least five.
        n_prompts: of a task given by name.
        seed: of prompts, orders, exchanges and bootstrap.

    Raises:
        NotApplicable: no such task for this model, or no MLP that can be run by itself.
        BackendError: an MLP run by itself does not write what it wrote, or values do not sum.
        SchemaError: an unknown base.

    Reference: the decomposition by re-running is ours; Shapley values as in Shapley 1953.
    """
    if base not in BASES:
        raise SchemaError(f"unknown base {base!r}; {nearest(base, BASES)}")
    prompts = model_task(model, task, (*TASKS, "induction"), n=n_prompts, seed=seed)
    parts = decompose(model, prompts.clean)
    directions = AnswerDirections.of(Case.of(model, prompts), parts.residual, draws=n_draws, seed=seed)
    able = directions.answered
    own = [t.layer for t in parts.terms if t.kind == "mlp" and t.layer is not None and model.reads(t.layer).whole]
    own = [layer for layer in own if layers is None or layer in layers]
    if not own:
        raise NotApplicable(f"{model.info.name}: no MLP of the layers asked for can be run by itself")
    rows, errors = [], {}
    for layer in own:
        table, errors[mlp_name(layer)] = _of_layer(
            model, layer, parts, directions, zero=base == "zero", orders=n_orders, able=able, seed=seed
        )
        rows.append(table)
    table = pd.concat(rows, ignore_index=True)
    at = (table["variant"] == "shapley").to_numpy()
    idle = table["mlp"].isin(idle_mlps(table[at]))
    table.loc[at, "q"] = stats.benjamini_hochberg(table.loc[at, "p"].to_numpy(dtype=float))
    table["label"] = np.where(at, (table["q"] < LEVEL) & table.pop("strong").astype(bool) & ~idle, None)
    table = table.sort_values("variant", key=lambda v: v != "shapley", kind="stable", ignore_index=True)
    data = {**prompts.provenance(), "base": base, "able": able, "sum_rule_error": errors}
    return Findings(table, data, ability=prompts)


def idle_mlps(rows: pd.DataFrame) -> list[str]:
    """MLPs whose sum of sizes is below `IDLE` of the largest one's: columns `mlp` and `value`."""
    sums = rows["value"].abs().groupby(rows["mlp"]).sum()
    return list(sums.index[sums < IDLE * sums.max()])


def _of_layer(
    model: Model,
    layer: int,
    parts: Decomposition,
    directions: AnswerDirections,
    *,
    zero: bool,
    orders: int,
    able: bool,
    seed: int,
) -> tuple[pd.DataFrame, float]:
    """Rows of one MLP, and the error of the sum rule."""
    mlp, parallel = LoneMLP.of(model, layer), model.reads(layer).parallel
    index = [i for i, t in enumerate(parts.terms) if enters(t, layer, parallel=parallel)]
    x = parts.vectors[index]
    m = parts.vectors[[i for i, t in enumerate(parts.terms) if leaves(t, layer)]].sum(0)
    mlp.check(model, x.sum(0), m)
    out = torch.zeros_like(x) if zero else x.mean(1, keepdim=True).expand_as(x)
    found = removals(mlp, x, out, orders=orders, seed=seed)
    error = _sum_error(found, m)
    effects = {"shapley": found.shapley, "marginal": found.marginal}
    ways = (directions.own, *directions.others)
    values = {k: [_along(v, w) for w in ways] for k, v in effects.items()}
    values["gradient"] = [_along(x - out, slope(mlp, x.sum(0), directions.own))]
    values["output"] = [((found.marginal * m).sum(-1) / m.square().sum(-1)).T.double().numpy()]
    mean = values["shapley"][0].mean(0)
    whole = float(np.abs(mean).sum())
    test = exchange_columns(mean, [v.mean(0) for v in values["shapley"][1:]], margin=SMALLEST * whole, able=able)
    terms = [parts.terms[i] for i in index]
    base: dict[str, Any] = {
        "mlp": mlp_name(layer),
        "component": [f"{t.name}{ARROW}{mlp_name(layer)}" for t in terms],
        "layer": [t.layer for t in terms],
        "head": [t.head for t in terms],
    }
    rows = []
    for variant, per_prompt in values.items():
        columns = interval_columns(stats.bootstrap_mean(per_prompt[0], seed=seed))
        extra = {**test, "strong": np.abs(mean) >= SHARE * whole} if variant == "shapley" else {"strong": False}
        unit = "fraction" if variant == "output" else "logit"
        rows.append(pd.DataFrame({"variant": variant, "unit": unit, **base, **columns, **extra}))
    total = stats.bootstrap_mean(_along(found.whole[None], directions.own), seed=seed)
    row: dict[str, Any] = {k: np.asarray(v).flat[0] for k, v in interval_columns(total).items()}
    name = {"mlp": mlp_name(layer), "component": mlp_name(layer), "layer": layer, "strong": False}
    rows.append(pd.DataFrame([{"variant": "total", "unit": "logit", **name, **row}]))
    return pd.concat(rows, ignore_index=True), error


def _along(vectors: Float[Tensor, "component batch d_model"], w: Float[Tensor, "batch d_model"]) -> np.ndarray:
    """[prompt component]: products with each prompt's direction."""
    return (vectors * w.to(vectors)).sum(-1).T.double().numpy()


def _sum_error(found: Removals, written: Float[Tensor, "batch d_model"]) -> float:
    """|sum of Shapley values - whole| over the larger of |whole| and what the MLP writes, the largest over prompts.

    Where all prompts give an MLP the same (their last token, in the first layer) the whole is rounding alone.

    Raises:
        BackendError: it is above `SUM_RULE`.
    """
    size = torch.maximum(found.whole.norm(dim=-1), written.to(found.whole).norm(dim=-1))
    size = size.clamp(min=torch.finfo(torch.float32).tiny)
    error = float(((found.shapley.sum(0) - found.whole).norm(dim=-1) / size).max())
    if not error <= SUM_RULE:
        raise BackendError(f"Shapley values miss what they share out by {error:.1e} of it; load the model in float32")
    return error
