"""Which tokens feed an MLP: attention to them knocked out in its layer, and what attention brings from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import attn_name, mlp_name
from interp.decompose import decompose
from interp.edits import KnockOut
from interp.errors import NotApplicable
from interp.measurement.answers import TASKS, AnswerDirections, exchange_columns, model_task
from interp.measurement.declaration import PlantedTask
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.measurement.sources import source_masks
from interp.model import Model
from interp.numerics import wide
from interp.patching.case import Case
from interp.patching.readout import at_end
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import PromptTask

SHARE, SMALLEST = 0.1, 0.01
"""Of the sum of all sizes: below SHARE no label, up to SMALLEST no claim."""


@analysis(
    name="mlp_sources",
    family="mlp",
    title="Tokens that feed an MLP",
    unit="MLP and a role of tokens",
    headline="knockout",
    order=156,
    two_sided=True,
    figure=dots,
    planted=PlantedTask(
        "dated_source",
        options=lambda planted, seed: {"task": planted_prompts(planted, "dated", seed=seed, corruption="minimal")},
    ),
    quick={"n_prompts": 16, "n_draws": 8},
    columns={"label": "boolean", "role": "str"},
    means="When the end of the prompt cannot see these tokens in this layer, the MLP of the layer writes so much less "
    "of the answer over the wrong one (`knockout`); attention of the layer itself brings `lens` from them.",
    misleads="One layer at a time: what came by the tokens of an earlier layer still enters the MLP. With "
    "`renormalise` the other tokens get the attention, and what they say instead is in the number. Direct writes alone "
    "are read, not what later layers make of them. In a parallel block the MLP does not see its layer's attention: 0 "
    "by construction.",
    reference="Yan et al. 2025, arXiv 2502.20475 (attention knock-out and token lens)",
)
def mlp_sources(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    renormalise: bool = False,
    n_draws: int = 16,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """w . (MLP_l - MLP_l without attention from END to tokens S in layer l), a logit; and w . sum_h A[END, S] v_S W_O.

    w is W_U[right] - W_U[wrong] through the final norm, whose divisor is held. S are the tokens of a role of the task,
    and "others" all that have none (the first token and END's own left out: "start" and "own"). Variants, for each
    layer with attention and an MLP and each S (column `role`; components `M3<role` and `A3<role`):
      knockout    as above, exact: attention and MLP of the layer are run again; with null, p, q and label;
      change      |MLP_l - MLP_l without| / |MLP_l|;
      lens        token lens: logits that all heads of the layer bring from S, read through the final norm;
      lens_rank   mean rank (0 the first) of the right answer among all tokens in what they bring from S.

    The null is the same of `n_draws` exchanges of answers between prompts. p (two-sided) tests against their spread,
    for more than 1 % of the sum of all sizes; q is Benjamini-Hochberg. A label needs q < 0.01, 10 % of the sum, and a
    model that prefers the right answers in three of four prompts. Intervals are bootstraps over prompts.

    Args:
        model: any loaded model.
        task: prompts with answers and roles, or a task's name; facts, or repeated random tokens, without.
        renormalise: give the attention to the tokens that are left; else it is lost.
        n_draws: exchanges; at least five.
        n_prompts: of a task given by name.
        seed: of prompts, exchanges and bootstrap.

    Raises:
        NotApplicable: no such task for this model, or no layer with attention and an MLP.

    Reference: Yan et al. 2025 (arXiv 2502.20475), who look at windows of layers; one layer, null and test are ours.
    """
    prompts = model_task(model, task, (*TASKS, "induction"), n=n_prompts, seed=seed)
    case = Case.of(model, prompts)
    layers = [i for i in model.info.attention_layers if not {"attn_out", "mlp_out"} & set(model.writes(i).missing)]
    if not layers:
        raise NotApplicable(f"{model.info.name}: no layer in which attention and an MLP are told apart")
    masks = source_masks(prompts)
    with torch.no_grad():
        written, without, end = _knock_outs(model, case, layers, masks, renormalise=renormalise)
    directions = AnswerDirections.of(case, end, draws=n_draws, seed=seed)
    able = directions.answered
    places = [(layer, role) for layer in layers for role in masks]
    change = torch.stack([written[layer] - without[layer, role] for layer, role in places])
    size = torch.stack([written[layer].norm(dim=-1) for layer, _ in places])
    ways = (directions.own, *directions.others)
    knockout = [(change * w.to(change)).sum(-1).T.double().numpy() for w in ways]
    mean = knockout[0].mean(0)
    whole = float(np.abs(mean).sum())
    test = exchange_columns(mean, [x.mean(0) for x in knockout[1:]], margin=SMALLEST * whole, able=able)
    label = (test["q"] < LEVEL) & (np.abs(mean) >= SHARE * whole) if whole else np.zeros(len(mean), dtype=bool)
    brought = _brought(model, prompts, masks, layers)
    lens = [(brought * w.to(brought)).sum(-1).T.double().numpy() for w in ways]
    ranks = np.stack([_rank(model, prompts, x) for x in brought], 1)
    base: dict[str, Any] = {"layer": [layer for layer, _ in places], "role": [role for _, role in places]}
    mlps, attn = ([f"{name(layer)}<{role}" for layer, role in places] for name in (mlp_name, attn_name))
    relative = (change.norm(dim=-1) / size).T.double().numpy()
    rows = []
    for variant, unit, values, names, extra in (
        ("knockout", "logit", knockout[0], mlps, {**test, "label": label}),
        ("change", "fraction", relative, mlps, {}),
        ("lens", "logit", lens[0], attn, {"null": np.mean([x.mean(0) for x in lens[1:]], axis=0)}),
        ("lens_rank", "rank", ranks, attn, {"null": (model.info.d_vocab - 1) / 2}),
    ):
        columns = interval_columns(stats.bootstrap_mean(values, seed=seed))
        rows.append(pd.DataFrame({"variant": variant, "unit": unit, "component": names, **base, **columns, **extra}))
    data = {**prompts.provenance(), "renormalise": renormalise, "able": able}
    return Findings(pd.concat(rows, ignore_index=True), data, ability=case)


def _knock_outs(
    model: Model, case: Case, layers: list[int], masks: dict[str, Tensor], *, renormalise: bool
) -> tuple[dict[int, Tensor], dict[tuple[int, str], Tensor], Tensor]:
    """MLP writes at END by layer, the same without attention to each role, and the stream at the very end."""
    task, last = case.task, model.info.n_layers - 1
    sites = [Site(kind, layer) for layer in layers for kind in ("resid_pre", "mlp_out")]
    acts = model.run(task.clean, capture=[*sites, Site("resid_post", last)], stop=last).acts
    written, without = {}, {}
    end = torch.arange(task.clean.ids.shape[1]) == task.end.cpu()[:, None]
    for layer in layers:
        out = Site("mlp_out", layer)
        written[layer] = wide(at_end(case, acts[out])).cpu()
        for role, mask in masks.items():
            edit = KnockOut(Site("pattern", layer), pairs=end[:, :, None] & mask[:, None], renormalise=renormalise)
            start = (layer, acts[Site("resid_pre", layer)])
            run = model.run(task.clean, capture=[out], edits=[edit], start=start, stop=layer)
            without[layer, role] = wide(at_end(case, run.acts[out])).cpu()
    return written, without, at_end(case, acts[Site("resid_post", last)])


def _brought(
    model: Model, task: PromptTask, masks: dict[str, Tensor], layers: list[int]
) -> Float[Tensor, "place batch d_model"]:
    """sum_h A[END, S] v_S W_O: what attention of each layer brings from each role, role by role within a layer."""
    parts = decompose(model, task.clean, sources=True)
    found = []
    for layer in layers:
        index = [i for i, t in enumerate(parts.terms) if t.kind == "source" and t.layer == layer]
        keys = torch.tensor([parts.terms[i].source for i in index])
        vectors = parts.vectors[index]
        found += [torch.einsum("sbd,bs->bd", vectors, mask[:, keys].float()) for mask in masks.values()]
    return torch.stack(found)


def _rank(model: Model, task: PromptTask, vectors: Float[Tensor, "batch d_model"]) -> Float[np.ndarray, " batch"]:
    logits = model.weights().unembed(vectors, fold_norm=True)
    answers = task.answers.cpu()
    best = logits.gather(1, answers.clamp(min=0)).masked_fill(answers < 0, -torch.inf).amax(1, keepdim=True)
    return (logits > best).sum(1).double().numpy()
