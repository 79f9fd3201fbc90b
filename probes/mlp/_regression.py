"""An MLP's output regressed on the vectors that entered it: what it amplifies, what it erases, what it always adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import ARROW, mlp_name, stream_name
from interp.decompose import Term, decompose
from interp.errors import NotApplicable, SchemaError, nearest
from interp.measurement.answers import TASKS, model_task
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN
from interp.model import Model
from interp.results import stats
from interp.results.figures import INFLATED, readable_dots
from interp.tasks import PromptTask
from probes.mlp.regression import Regression, regress

REGRESSORS = ("components", "layer")
LEAST = 0.1
"""Size of a coefficient from which on a component is said to be amplified or erased."""
LEAST_SHARE = 0.01
"""What it has to explain of the MLP's spread, at a variance inflation of at most `INFLATED`."""


@analysis(
    name="mlp_regression",
    family="mlp",
    title="Components that an MLP amplifies or erases",
    unit="component that enters an MLP",
    headline="beta",
    order=152,
    two_sided=True,
    figure=readable_dots,
    quick={"n_prompts": 24},
    exemptions={
        "planted": "no planted mechanism is an MLP that scales what heads write; its tests write one by hand",
        "scale": "coefficients of components that hardly vary are mostly error, which falls with prompts",
    },
    columns={"label": "boolean", "role": "str", "mlp": "str", "vif": "float64"},
    means="Where the component writes more, at prompts of one task, the MLP writes beta times as much in the same "
    "direction: above 0 it amplifies it, below 0 it takes it away.",
    misleads="It is a fit, no intervention: components that go together over prompts share what one of them does; "
    "`vif` and `condition` say how far, and the intervals widen. A component that is the same at all prompts is in the "
    "intercept. What an MLP makes of a component in another direction is not seen: read `held_out_r2`. The paper's "
    "regressors could not be read (its code was not at hand): whether it takes heads of all layers or of the MLP's own "
    "and the rest as one vector, and whether behind the norm. regressors='components' and 'layer' are both readings.",
    reference="Lv et al. 2024, arXiv 2403.19521",
)
def mlp_regression(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    layers: Sequence[int] | None = None,
    regressors: str = "components",
    scaled: bool = False,
    n_draws: int = 20,
    n_prompts: int = 96,
    seed: int = 0,
) -> Findings:
    """Coefficient beta_c of m_n = sum_c beta_c x_nc + b over prompts n: an MLP's write on what entered it, at END.

    One number a component and one free vector b, by least squares. Variants, for each MLP (column `mlp`):
      beta          of each component that the MLP reads (`L2H6 -> M3`): embedding, heads, earlier MLPs; with null, p,
                    q, label and role ("amplified", "erased"), and `vif`, its variance inflation over the others;
      share         beta_c^2 sum |x_c - mean|^2 over sum |m - mean|^2: how much of m's spread it would be alone;
      r2, held_out_r2   share of the spread of m over prompts that is explained, of these prompts and of templates (or
                    fifths of the prompts) that the fit has not seen;
      condition     condition number of the components, scaled to one length;
      intercept     cosine of b with the mean direction of the answers, W_U[answer] - mean W_U through the final norm's
                    gain; null: directions of as many random tokens.

    Nulls of beta and R2 are fits in which MLP writes are given to other prompts (`n_draws` permutations). p (two-sided)
    is Student's prediction interval against them, beyond 0.05; q is Benjamini-Hochberg over all components and MLPs. A
    label needs q < 0.01, |beta| of 0.1 or more, a bootstrap interval over prompts that does not hold 0, a share of 1 %
    and an inflation of at most 10: beyond, the fit cannot tell whose the coefficient is. Coefficients
    are NaN for what does not vary over prompts (its part of m is in b) and for what the others give exactly.

    Args:
        model: any loaded model.
        task: prompts with answers, or a task's name; facts, or repeated random tokens, without. Prompts of one kind:
            what changes between tasks goes into b.
        layers: MLPs to regress; all without.
        regressors: "components", or "layer": the heads of the MLP's own layer, and all else as one vector (`L3`).
        scaled: divide each prompt's components by the divisor of the norm that the MLP reads through, relative to its
            mean: a norm makes what the MLP sees of a component depend on the others.
        n_draws: permutations; at least five.
        n_prompts: of a task given by name. The error of a coefficient falls with the root of prompts times d_model.
        seed: of prompts, permutations, parts and bootstrap.

    Raises:
        NotApplicable: no such task for this model, or no layer with an MLP of its own.
        SchemaError: an unknown kind of regressors.

    Reference: Lv et al. 2024 (arXiv 2403.19521); intervals, inflation, permutations and held-out shares are ours.
    """
    if regressors not in REGRESSORS:
        raise SchemaError(f"unknown regressors {regressors!r}; {nearest(regressors, REGRESSORS)}")
    prompts = model_task(model, task, (*TASKS, "induction"), n=n_prompts, seed=seed)
    parts = decompose(model, prompts.clean)
    own = [t.layer for t in parts.terms if t.kind == "mlp" and t.layer is not None]
    own = [layer for layer in own if layers is None or layer in layers]
    if not own:
        raise NotApplicable(f"{model.info.name}: no MLP that is told apart in the layers asked for")
    rows, groups = [], prompts.template.tolist()
    for layer in own:
        entry = Entry.of(model, layer, parts.terms, parts.vectors, one=regressors == "layer", scaled=scaled)
        fit = regress(entry.x, entry.y, groups=groups, draws=n_draws, seed=seed)
        rows += [_coefficients(entry, fit), _summary(model, prompts, entry, fit, seed)]
    table = pd.concat(rows, ignore_index=True)
    at = (table["variant"] == "beta").to_numpy()
    table.loc[at, "q"] = stats.benjamini_hochberg(table.loc[at, "p"].to_numpy(dtype=float))
    clear = (table["ci_low"] > 0) | (table["ci_high"] < 0)
    label = (table["q"] < LEVEL) & (table["value"].abs() >= LEAST) & clear & (table["vif"] <= INFLATED)
    shares = table[table["variant"] == "share"].set_index(["mlp", "component"])["value"]
    own_share = pd.Series([shares.get(key, np.nan) for key in zip(table["mlp"], table["component"], strict=True)])
    label &= own_share >= LEAST_SHARE
    table["label"] = np.where(at, label, None)
    role = np.where(table["value"] > 0, "amplified", "erased")
    table["role"] = np.where(at & label, role, None)
    table = table.sort_values("variant", key=lambda v: v != "beta", kind="stable", ignore_index=True)
    data = {**prompts.provenance(), "regressors": regressors, "scaled": scaled, "mlps": [mlp_name(i) for i in own]}
    return Findings(table, data, ability=prompts)


@dataclass(frozen=True, eq=False)
class Entry:
    """What entered an MLP at each prompt's END, by component, and what it wrote."""

    layer: int
    names: tuple[str, ...]
    terms: tuple[Term | None, ...]
    x: Float[np.ndarray, "prompt c d_model"]
    y: Float[np.ndarray, "prompt d_model"]

    @classmethod
    def of(
        cls,
        model: Model,
        layer: int,
        terms: tuple[Term, ...],
        vectors: Float[Tensor, "component batch d_model"],
        *,
        one: bool,
        scaled: bool,
    ) -> Entry:
        """Terms written before the MLP, its own bias with its write; `one`: those below the layer summed."""
        reads = model.reads(layer)
        before = [i for i, t in enumerate(terms) if enters(t, layer, parallel=reads.parallel)]
        written = [i for i, t in enumerate(terms) if leaves(t, layer)]
        names: list[str] = [terms[i].name for i in before]
        own: list[Term | None] = [terms[i] for i in before]
        x = vectors[before].double()
        if scaled and reads.mlp is not None:
            divisor = reads.mlp.to("cpu").divisor(x.sum(0).float()).double()
            x = x / divisor * divisor.mean()
        if one:
            inside = [j for j, i in enumerate(before) if terms[i].layer == layer and terms[i].kind != "bias"]
            rest = x.sum(0) - x[inside].sum(0)
            names, own = [stream_name(layer), *(names[j] for j in inside)], [None, *(own[j] for j in inside)]
            x = torch.cat([rest[None], x[inside]])
        y = vectors[written].double().sum(0)
        return cls(layer, tuple(names), tuple(own), x.transpose(0, 1).numpy(), y.numpy())


def enters(term: Term, layer: int, *, parallel: bool) -> bool:
    """Whether a term is in the stream that the MLP of a layer reads."""
    if term.kind in ("embed", "pos") or (term.layer is not None and term.layer < layer):
        return True
    attention = term.kind in ("head", "source", "attn") or term.name.startswith("b_attn")
    return term.layer == layer and attention and not parallel


def leaves(term: Term, layer: int) -> bool:
    """Whether a term is of what the MLP of a layer writes: its output, or its bias."""
    return term.layer == layer and (term.kind == "mlp" or term.name == f"b_mlp{layer}")


def _coefficients(entry: Entry, fit: Regression) -> pd.DataFrame:
    """Rows of `beta` and `share`."""
    base = {
        "mlp": mlp_name(entry.layer),
        "component": [f"{name}{ARROW}{mlp_name(entry.layer)}" for name in entry.names],
        "layer": [None if t is None else t.layer for t in entry.terms],
        "head": [None if t is None else t.head for t in entry.terms],
        "n": len(entry.y),
    }
    spread, whole = (((z - z.mean(0)) ** 2).sum((0, -1)) for z in (entry.x, entry.y))
    share = pd.DataFrame({"variant": "share", "unit": "fraction", **base, "value": fit.beta**2 * spread / whole})
    beta = pd.DataFrame(
        {
            "variant": "beta",
            "unit": "ratio",
            **base,
            "value": fit.beta,
            "se": fit.se,
            "ci_low": fit.low,
            "ci_high": fit.high,
            "null": stats.nan_mean(fit.null, axis=0),
            "p": stats.p_two_sided(fit.beta, fit.null, margin=MARGIN),
            "vif": fit.vif,
        }
    )
    return pd.concat([beta, share], ignore_index=True)


def _summary(model: Model, prompts: PromptTask, entry: Entry, fit: Regression, seed: int) -> pd.DataFrame:
    """Rows of the MLP as a whole."""
    base: dict[str, Any] = {"mlp": mlp_name(entry.layer), "component": mlp_name(entry.layer), "layer": entry.layer}
    base["n"] = len(entry.y)
    cosine, null = _direction(model, prompts, fit.intercept, draws=max(20, len(fit.null_r2)), seed=seed)
    rows = [
        _judged("r2", "fraction", fit.r2, fit.null_r2),
        _judged("held_out_r2", "fraction", fit.held_out, fit.null_held_out),
        {"variant": "condition", "unit": "ratio", "value": fit.condition},
        _judged("intercept", "cosine", cosine, null),
    ]
    return pd.DataFrame([base | row for row in rows])


def _judged(variant: str, unit: str, value: float, null: np.ndarray) -> dict[str, Any]:
    p = float(stats.p_against_nulls(np.array(value), null))
    return {"variant": variant, "unit": unit, "value": value, "null": float(null.mean()), "p": p}


def _direction(
    model: Model, prompts: PromptTask, intercept: np.ndarray, *, draws: int, seed: int
) -> tuple[float, np.ndarray]:
    """Cosine with the mean direction of the answers, and with those of as many random tokens."""
    weights, generator = model.weights(), torch.Generator().manual_seed(seed)
    ids, counts = prompts.answers[prompts.answers >= 0].cpu().unique(return_counts=True)
    mean = weights.w_u.mean(1)
    b = torch.from_numpy(intercept).float()

    def cosine(tokens: Tensor) -> float:
        column = (weights.source.columns(tokens) * (counts / counts.sum())[:, None].to(mean)).sum(0) - mean
        d = column if weights.final_norm is None else weights.final_norm.transpose(column)
        return float(torch.nn.functional.cosine_similarity(b, d.float(), dim=0))

    n = weights.w_u.shape[1]
    return cosine(ids), np.array([cosine(torch.randperm(n, generator=generator)[: len(ids)]) for _ in range(draws)])
