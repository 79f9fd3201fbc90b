"""Heads that write a conclusion and heads that move what it follows from, told apart by exact direct effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.decompose import Decomposition, decompose
from interp.edits import Edit
from interp.measurement import source_attribution as _attributed
from interp.measurement.answers import model_task, right_share
from interp.measurement.declaration import IDENTIFY, PREPARE, PlantedTask, Stage
from interp.measurement.head_effects import Objective, ablation_effects, head_activations
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import removal_rows
from interp.measurement.scoring import LEVEL, head_rows, interval_columns, ranked_heads
from interp.measurement.sources import source_masks, statement_masks
from interp.model import Model
from interp.numerics import wide
from interp.patching.case import Case
from interp.patching.readout import Exit
from interp.results import stats
from interp.tasks import PromptTask
from probes.reasoning.contrasts import TASKS, contrasted

SHARE, SMALLEST = 0.05, 0.01
"""Of what all heads write, or of what the twin changes: below SHARE no label, up to SMALLEST no claim."""
WRITING, MOVING = "answer writing", "information moving"


@analysis(
    name="reasoning",
    family="reasoning",
    title="Heads that write or carry a conclusion",
    headline="answer",
    unit="head on prompts with statements",
    order=170,
    stage=Stage(WRITING, PREPARE, {MOVING: Stage(MOVING, IDENTIFY)}),
    planted=PlantedTask(
        "name_mover",
        options=lambda planted, seed: {"task": planted_prompts(planted, "two_hop", seed=seed, corruption="minimal")},
    ),
    quick={"n_prompts": 16, "n_draws": 8, "causal": False},
    columns={"label": "boolean", "role": "str", "source": "str"},
    means="What the head writes at the end of the prompt is read as the right conclusion over the wrong ones "
    "(`answer`), from these tokens (`source`). Where `moved` is large, what it brings is used by later components: it "
    "carries a premise or a link, and does not say the conclusion itself.",
    misleads="A head that writes the answer may have been handed it: which statement it looks at is no proof that it "
    "took the step there. `moved` is of one head at a time against one twin: heads that stand in for each other seem "
    "idle, and what the twin leaves as it was moves nothing. A head can do both; the label is of each by itself.",
    reference="Dutta et al. 2024, arXiv 2402.18312 (how to think step-by-step)",
)
def reasoning(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    causal: bool = True,
    n_random: int = 5,
    n_draws: int = 16,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """Answer that a head writes: sum over j of p(END, j) v_j W_O . (W_U[right] - W_U[wrong]) / norm scale; logits.

    Mean over prompts. Variants, a row per head:
      answer    from all tokens, with null, p, q and label; `role` is "answer writing" where labelled;
      source    from the tokens of one statement (of one role in tasks that mark no statements), column `source`; and
                "start" (the first token), "own" (END) and "others";
    and with `causal`, m being the right answers' mean logit less the wrong ones':
      total     m - m(z of the head as in the twin, at all tokens), exact: all behind it is run again;
      direct    m - m(stream at END with the head's twin's write in place of its own), through the final norm;
      moved     total - direct: by way of later components; with p, q, label and `role` "information moving".

    The null of `answer` is the same of `n_draws` exchanges of answers between prompts; p (two-sided) is against their
    spread, for more than 1 % of what heads with a positive answer write. p of `moved` is Student's over prompts,
    one-sided, for more than 1 % of m(clean) - m(twin); null 0. q is Benjamini-Hochberg over heads. A label needs q <
    0.01, 5 % of the same whole, and a model that prefers the right answers in three of four prompts. With `causal`
    the answer-writing heads are removed together, beside `n_random` sets of others: share of right answers, and m.

    Args:
        model: any loaded model.
        task: prompts with answers and twins, or a task's name; fictional ontologies, or what else the model can be
            asked, without.
        causal: whether heads are exchanged with the twin's, and removed.
        n_random: random sets of heads.
        n_draws: exchanges; at least five.
        n_prompts: of a task given by name.
        seed: of prompts, exchanges, sets and bootstrap.

    Raises:
        NotApplicable: no such task for this model.
        TaskError: five prompts or fewer, or one without a wrong answer.

    Reference: Dutta et al. 2024 (arXiv 2402.18312), who find the heads by activation patching of sub-tasks and read
    what they write with the unembedding; exact direct effects, null and test are ours.
    """
    prompts = contrasted(model_task(model, task, TASKS, n=n_prompts, seed=seed))
    own, exchanges = _attributed.sources(model, prompts, prompts.answers, prompts.wrong, draws=n_draws, seed=seed)
    answer = stats.bootstrap_mean(_attributed.by_prompt(own.heads.sum(2)), seed=seed)
    others = [_attributed.by_prompt(x.heads.sum(2)) for x in exchanges]
    whole, able = float(answer.mean.clip(min=0).sum()), _attributed.able(own)
    test = _attributed.null_columns(answer, others, whole=whole, able=able)
    label = (test["q"] < LEVEL) & (answer.mean >= SHARE * whole) & (answer.mean > 0)
    role = _roles(label, WRITING)
    rows = [head_rows(model, "answer", "logit", **interval_columns(answer), **test, label=label, role=role)]
    for name, mask in groups(prompts).items():
        brought = _attributed.by_prompt((own.heads * mask.T.to(own.heads)).sum(2))
        columns = interval_columns(stats.bootstrap_mean(brought, seed=seed))
        rows.append(head_rows(model, "source", "logit", **columns, source=name))
    data = {**prompts.provenance(), "able": able}
    effects, case = [], Case.of(model, prompts)
    if causal:
        moved, data["twin_changes"] = _moved(case, seed=seed, able=able)
        rows += moved
        if label.any():
            effects = _removal(model, prompts, label, answer.mean, n_random=n_random, seed=seed)
    return Findings(pd.concat(rows, ignore_index=True), data, effects, case)


def groups(task: PromptTask) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Tokens of statements or roles, and the rest: "start", "own" and "others"."""
    found = statement_masks(task)
    rest = source_masks(replace(task, roles={"END": task.end}))
    taken = torch.stack(list(found.values())).any(0)
    return found | {name: mask & ~taken for name, mask in rest.items() if bool((mask & ~taken).any())}


def _moved(case: Case, *, seed: int, able: bool) -> tuple[list[pd.DataFrame], float]:
    """Rows of `moved`, `total` and `direct`, and m(clean) - m(twin)."""
    model, task = case.model, case.task
    total = ablation_effects(model, Objective.of_task(task), "resample", head_activations(model, task.corrupt))
    direct = direct_effects(case)
    gap = float((case.clean - case.corrupt).mean())
    means = [stats.bootstrap_mean(x, seed=seed) for x in (total - direct, total, direct)]
    p = stats.p_above(total - direct, margin=SMALLEST * gap) if able and gap > 0 else np.ones(means[0].mean.shape)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (means[0].mean >= SHARE * gap)
    test = {"null": 0.0, "p": p, "q": q, "label": label, "role": _roles(label, MOVING)}
    names = ("moved", test), ("total", {}), ("direct", {})
    rows = [
        head_rows(model, name, "logit", **interval_columns(mean), **columns)
        for (name, columns), mean in zip(names, means, strict=True)
    ]
    return rows, gap


def _roles(label: Bool[np.ndarray, "layer head"], name: str) -> np.ndarray:
    """A name where labelled, else None."""
    found = np.full(label.shape, None, dtype=object)
    found[label] = name
    return found


@torch.no_grad()
def direct_effects(case: Case) -> Float[np.ndarray, "prompt layer head"]:
    """m - m(the head's write at END as in the twin), through the final norm, whose divisor follows; in logits.

    A write behind a norm of its own is what that norm made of it in each of the two runs.
    """
    here, there = (decompose(case.model, batch) for batch in (case.task.clean, case.task.corrupt))
    change = _written(case.model, here) - _written(case.model, there)
    end = wide(here.residual)
    sets = torch.cat([end[None], end - change.flatten(0, 1)])
    clean, *others = Exit.of(case, end).values(case, sets.to(case.task.clean.ids.device))
    effects = torch.stack([clean - other for other in others]).unflatten(0, change.shape[:2])
    return effects.permute(2, 0, 1).double().cpu().numpy()


def _written(model: Model, parts: Decomposition) -> Float[Tensor, "layer head batch d_model"]:
    """What each head writes."""
    layers = model.info.attention_layers
    written = torch.zeros(len(layers), model.info.n_heads, *parts.vectors.shape[1:])
    for term, vectors in zip(parts.terms, parts.vectors, strict=True):
        if term.kind == "head":
            written[layers.index(term.layer or 0), term.head or 0] = vectors
    return written


def _removal(
    model: Model,
    task: PromptTask,
    label: Bool[np.ndarray, "layer head"],
    score: Float[np.ndarray, "layer head"],
    *,
    n_random: int,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of the intervention table."""

    def measure(edits: Sequence[Edit]) -> dict[str, float]:
        logits = model.run(task.clean, edits=edits).logits
        assert logits is not None  # the run has no `stop`
        own = task.to(logits.device)
        return {"accuracy": right_share(logits, own), own.metric_name: float(own.value(logits).mean())}

    heads, pool = ranked_heads(model, label, score), ranked_heads(model, ~label, score)
    return removal_rows(measure, heads, pool, mean=model.mean(task.clean), n_random=n_random, seed=seed, how=("mean",))
