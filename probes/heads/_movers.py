"""Movers: heads that look at the answer from the end of the prompt, and write it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from interp.attention import KeyMass, Mean
from interp.errors import NotApplicable
from interp.measurement import source_attribution as _attributed
from interp.measurement.ability import Ability
from interp.measurement.answers import model_task
from interp.measurement.declaration import PREPARE, PlantedTask, Stage
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.tasks import PromptTask


@analysis(
    name="movers",
    family="roles",
    title="Movers",
    headline="mover",
    order=46,
    stage=Stage("mover", PREPARE),
    planted=PlantedTask(
        "name_mover", options=lambda planted, seed: {"task": planted_prompts(planted, "two_hop", seed=seed)}
    ),
    quick={"n_draws": 6},
    columns={"label": "boolean", "role": "str"},
    means="At the end of a prompt that holds its own answer (indirect objects), the head attends to the answer "
    "and what it brings from there raises the answer over the wrong one. Negative values: it lowers it.",
    misleads="It is the direct effect alone: what the head does through later layers is missing, and heads that "
    "tell the mover where to look write nothing here. Movers stand in for each other, so that removing a large "
    "one may change little. A head that copies every name it sees scores on names it should not say as well: "
    "read `other` beside it. Where an MLP makes much of little (`mlp_share` in the provenance), attributions of "
    "heads are small and still right.",
    reference="Wang et al. 2022, arXiv 2211.00593",
)
def movers(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    n_prompts: int = 48,
    n_draws: int = 16,
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Mover score: mean over prompts of p(END, a) v_a W_O . (W_U[right] - W_U[wrong]) / norm scale, in logits.

    a are the places in the prompt where the right answer stands, and their terms are summed. Variants, a row per head:
      mover      the score, with null, p, q, label and role ("mover", "negative mover");
      other      the same from the places where a wrong answer stands (a head that copies all names is negative here);
      attention  probability from END to the right answer's places;
      total      direct attribution from all places.

    The null is the mean of the score over `n_draws` exchanges of right and wrong between prompts: same attention, same
    writes, other prompts' answers. p (two-sided) tests the score against their spread with Student's prediction
    interval, for more than 1 % of the sum of all sizes; q is Benjamini-Hochberg over heads. A role needs q < 0.01 and 5
    % of the sum of all sizes; the label is the positive one. Where the model prefers the right answer in fewer than
    three of four prompts, p is 1 and no head is labelled: nothing is moved there. The interval is a bootstrap over
    prompts.

    Args:
        model: any loaded model.
        task: prompts that hold their answers: a task or its name; None: "ioi" in the model's own words.
        n_prompts: of a task given by name.
        n_draws: exchanges for the null; at least five.
        method: attention method of `attention`.
        seed: of prompts, exchanges and bootstrap.

    Raises:
        NotApplicable: the task cannot be asked with this tokenizer, or no prompt holds its answer.

    Reference: Wang et al. 2022 (arXiv 2211.00593), name movers: they plot attention against the write and copy scores;
    we multiply them, prompt by prompt. The null and its test are ours.
    """
    prompts = model_task(model, task, ("ioi",), n=n_prompts, seed=seed)
    at, other = (_attributed.where(prompts, ids) for ids in (prompts.answers, prompts.wrong))
    has_answer = at.any(1)
    if not has_answer.any():
        raise NotApplicable(f"{prompts.name}: no prompt holds its own answer, so that nothing can be moved")
    sources, exchanges = _attributed.sources(model, prompts, prompts.answers, prompts.wrong, draws=n_draws, seed=seed)
    score = stats.bootstrap_mean(_sums(sources.heads, at), seed=seed)
    others = [_sums(x.heads, at) for x in exchanges]
    whole = float(np.abs(score.mean).sum())
    test = _attributed.null_columns(score, others, whole=whole, able=_attributed.able(sources))
    strong = (test["q"] < LEVEL) & (np.abs(score.mean) >= _attributed.SHARE * whole)
    role = np.where(strong, np.where(score.mean > 0, "mover", "negative mover"), "")
    columns = interval_columns
    rows = head_rows(
        model,
        "mover",
        "logit",
        **columns(score),
        **test,
        label=strong & (score.mean > 0),
        role=role,
    )
    rows["role"] = rows["role"].where(rows["role"] != "", None)
    rest = {"other": _sums(sources.heads, other), "total": _attributed.by_prompt(sources.heads.sum(2))}
    parts = [rows] + [
        head_rows(model, name, "logit", **columns(stats.bootstrap_mean(x, seed=seed))) for name, x in rest.items()
    ]
    parts.append(head_rows(model, "attention", "probability", **columns(_attention(model, prompts, at, method, seed))))
    logit = float(sources.logit.mean())
    data = {
        **prompts.provenance(),
        "logit_diff": logit,
        "mlp_share": float(sources.mlps.sum(0).mean()) / logit,
        "holds_answer": int(has_answer.sum()),
    }
    able = {prompts.name: Ability.of(sources.end, prompts.to("cpu"))}
    return Findings(pd.concat(parts, ignore_index=True), data, ability=able)


def _sums(heads: torch.Tensor, at: torch.Tensor) -> np.ndarray:
    """[batch layer head]: attributions from the marked columns."""
    return _attributed.by_prompt((heads * at.T.to(heads)).sum(2))


def _attention(model: Model, task: PromptTask, at: torch.Tensor, method: str, seed: int) -> stats.Interval:
    rows = torch.zeros_like(task.clean.mask)
    rows[torch.arange(len(task)), task.end.to(rows.device)] = True
    mass = model.attention(task.clean, {"mass": Mean(KeyMass(at), rows)}, method=method)["mass"]
    return stats.bootstrap_mean(mass.transpose(0, 1).double().numpy(), seed=seed)
