"""What each head says of a fact directly, and from which words: subject, relation or both."""

from __future__ import annotations

import numpy as np
import pandas as pd

from interp.measurement import source_attribution as _attributed
from interp.measurement.ability import Ability
from interp.measurement.answers import TASKS, candidates, model_task, subject_role
from interp.measurement.declaration import RECALL, PlantedTask, Stage
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.tasks import PromptTask


@analysis(
    name="direct_attribution",
    family="roles",
    title="Direct attribution by source",
    headline="total",
    order=48,
    stage=Stage("attribute", RECALL),
    planted=PlantedTask(
        "fact_mover",
        options=lambda planted, seed: {"task": planted_prompts(planted, "fact", seed=seed, corruption="minimal")},
    ),
    quick={"n_draws": 6},
    columns={"label": "boolean", "role": "str"},
    means="How many logits the head adds at the end of the prompt to the right attribute, over the other "
    "attributes that are asked for in the task; apart from the words of the subject and from those of the "
    "relation.",
    misleads="A direct effect only. Tokens carry what earlier layers moved to them: what comes from the last word "
    "of a relation may be the subject's, moved there before. Several heads, none of which is enough, add up.",
    reference="Chughtai et al. 2024, arXiv 2402.07321",
)
def direct_attribution(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    subject: str | None = None,
    ratio: float = 10.0,
    n_prompts: int = 48,
    n_draws: int = 16,
    seed: int = 0,
) -> Findings:
    """DLA(h, S) = sum over tokens j in S of p(END, j) v_j W_O . (W_U[right] - mean W_U[candidates]) / norm scale.

    In logits, mean over prompts; candidates are the other prompts' right answers. Variants, a row per head:
      total     S is everything, with null, p, q, label and class: `role` "subject", "relation" or "mixed";
      subject   S is the subject's last token; relation: the others, but the first token of the prompt;
      start     the first token of the prompt (a BOS) where it is neither.
    The variant mlp has a row per layer: what the MLP adds at END, the fourth mechanism.

    Null: the mean of `total` over `n_draws` exchanges of answers between prompts; p (two-sided) tests against their
    spread with Student's prediction interval, for more than 1 % of what heads with a positive total add; q is
    Benjamini-Hochberg over heads. The label needs q < 0.01 and 5 % of
    what all heads with a positive total add; where the right answer is above the candidates in fewer than three of four
    prompts, p is 1 and there is no label. A labelled head is "subject" where |subject| >= `ratio` |relation|,
    "relation" the other way round, "mixed" otherwise.

    Args:
        model: any loaded model.
        task: a task or its name; None: the first of facts and capital_country that suits the model.
        subject: role of the subject in the task; None: its usual names.
        ratio: how pure a class has to be.
        n_prompts: of a task given by name.
        n_draws: exchanges for the null; at least five.
        seed: of prompts, exchanges and bootstrap.

    Raises:
        NotApplicable: no such task for this tokenizer.
        TaskError: the task has no subject, or fewer than two different answers.

    Reference: Chughtai et al. 2024 (arXiv 2402.07321), section 4; their classes also ask which attributes are raised.
    """
    prompts = model_task(model, task, TASKS, n=n_prompts, seed=seed)
    name = subject_role(prompts, subject)
    answers, wrong = prompts.answers, candidates(prompts.answers)
    sources, exchanges = _attributed.sources(model, prompts, answers, wrong, draws=n_draws, seed=seed)
    masks = _attributed.source_masks(prompts, name)
    effects = _attributed.by_source(sources, masks)
    total = stats.bootstrap_mean(_attributed.by_prompt(sources.heads.sum(2)), seed=seed)
    others = [_attributed.by_prompt(x.heads.sum(2)) for x in exchanges]
    whole = float(total.mean.clip(min=0).sum())
    test = _attributed.null_columns(total, others, whole=whole, able=_attributed.able(sources))
    label = (test["q"] < LEVEL) & (np.abs(total.mean) >= _attributed.SHARE * whole)
    role = _attributed.source_roles(effects, ratio)
    columns = interval_columns
    rows = head_rows(
        model,
        "total",
        "logit",
        **columns(total),
        **test,
        label=label,
        role=np.where(label, role, ""),
    )
    rows["role"] = rows["role"].where(rows["role"] != "", None)
    parts = [rows] + [
        head_rows(model, k, "logit", **columns(stats.bootstrap_mean(x, seed=seed))) for k, x in effects.items()
    ]
    mlps = columns(stats.bootstrap_mean(sources.mlps.T.double().numpy(), seed=seed))
    parts.append(
        pd.DataFrame({"variant": "mlp", "unit": "logit", "layer": range(model.info.n_layers), "head": None, **mlps})
    )
    data = {**prompts.provenance(), "subject": name, "logit_over_candidates": float(sources.logit.mean())}
    able = {prompts.name: Ability.of(sources.end, prompts.to("cpu"))}
    return Findings(pd.concat(parts, ignore_index=True), data, ability=able)
