"""Conflict heads: which heads write what the context says, and which what the model knows, where the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp import tasks
from interp.edits import Edit, Scale, ablate_heads
from interp.measurement.ability import Ability
from interp.measurement.conflict_scores import ROLES, conflict_scores, known_conflicts
from interp.measurement.declaration import IDENTIFY, RECALL, PlantedTask, Stage
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows, set_name
from interp.measurement.rerun import Rerun
from interp.measurement.scoring import head_rows, interval_columns, ranked_heads
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head
from interp.sites import Site
from interp.tasks import Conflict, metrics
from interp.tasks.planted_pairs import planted_conflict

if TYPE_CHECKING:
    from interp.zoo.planted.factory import Planted


def _planted(planted: Planted, seed: int) -> dict[str, Conflict]:
    return {"prompts": planted_conflict(planted_prompts(planted, "fact", seed=seed), planted.vocab, seed=seed)}


@analysis(
    name="conflict",
    family="conflict",
    title="Context and memory heads",
    headline="direct",
    order=120,
    needs="text",
    stage=Stage("context", IDENTIFY, {"memory": Stage("memory", RECALL)}),
    two_sided=True,
    planted=PlantedTask("conflict", options=_planted),
    columns={"label": "boolean", "role": "str"},
    means="Where the prompt contradicts a fact that the model knows, the head writes the prompt's answer into the "
    "logits (above zero: a context head) or the known one (below zero: a memory head).",
    misleads="A direct effect only: most of the decision may be made by MLPs that read these heads, and a head that "
    "recalls may carry more than the fact. Removing a memory head need not make the model follow the context: on "
    "zoo:default it knows neither answer then. Read which answer takes over beside the effect.",
    reference="Yu et al. 2023, arXiv 2310.15910; Jin et al. 2024, arXiv 2402.18154",
)
def conflict(
    model: Model,
    *,
    prompts: Conflict | None = None,
    n_prompts: int = 96,
    base: str | None = None,
    n_null: int = 8,
    factor: float = 3.0,
    causal: bool = True,
    n_random: int = 5,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Direct effect of a head on l[what the context says] - l[what the model knows] at the last token, in logits.

    Prompts tell of a subject what another one has ("The capital of Peru is Rome . The capital of Peru is"), in the
    wordings of `datasets/conflict`; those whose fact the model does not say without the context are left out. Variants:
      direct            mean over prompts, with null, p, q, label, and `role`: "context" above zero, "memory" below;
      direct_<wording>  the same in one wording: a head whose sign changes follows the wording.

    The null is what the head writes about the two answers of another prompt of the same relation, mean over `n_null`
    such exchanges; p is two-sided, against their spread and a smallest effect of 1 % of all heads' absolute effects; q
    is Benjamini-Hochberg over heads. A label needs q < 0.01 and 5 % of all heads' absolute effects. With `causal` the
    labelled heads of each role are mean-ablated, and multiplied by `factor`, and the shares of prompts answered
    with the context's and with the known answer are compared with those under random heads: see `interventions`.

    Args:
        model: any loaded model with a tokenizer.
        prompts: prompts of your own, and the facts they contradict; drawn if not given.
        n_prompts: prompts drawn.
        base: lookup task of the facts; the checkpoint's own `facts`, else `capital_country`.
        n_null: exchanges of answers.
        factor: what heads are multiplied by to make them louder.
        causal: whether to intervene on the labelled heads.
        n_random: random sets they are compared with.
        bos: "default", "forced" or "none".
        seed: of prompts, bootstrap, exchanges and random sets.

    Raises:
        NotApplicable: the facts cannot be written with this tokenizer, or the model knows fewer than 24 of them.

    Reference: Yu et al. 2023 (arXiv 2310.15910): head attribution and scaling; Jin et al. 2024 (arXiv 2402.18154):
    pruning. There one head, or the top per cent, is chosen by the intervention's own effect; here by a test, and the
    intervention is judged against random heads. The null is ours.
    """
    candidates = prompts or tasks.conflict(model, base=base, n=n_prompts, seed=seed, bos=bos)
    conflicts, known = known_conflicts(model, candidates)
    found = conflict_scores(model, conflicts, n_null=n_null, seed=seed)
    direct, label, role = found.direct, found.label, found.role
    score = stats.bootstrap_mean(direct, seed=seed)
    columns = {"null": found.null, "p": found.p, "q": found.q, "label": label, "role": role}
    parts = [head_rows(model, "direct", "logit", **interval_columns(score), **columns)]
    for i, wording in enumerate(conflicts.frames):
        mine = direct[(conflicts.frame == i).numpy()]
        if len(mine):
            interval = interval_columns(stats.bootstrap_mean(mine, seed=seed))
            parts.append(head_rows(model, f"direct_{wording.name}", "logit", **interval))
    answers = _answers(Rerun(model), conflicts, by_wording=True)
    data = {**conflicts.task.provenance(), "known": known, **answers}
    asked = len(candidates.task)
    ability = {"facts asked alone": Ability.of_counts(round(known * asked), asked, 1 / model.info.d_vocab)}
    effects: list[dict[str, object]] = []
    if causal and label.any():
        pool = ranked_heads(model, ~label, np.abs(score.mean))
        for name in ROLES:
            heads = ranked_heads(model, label & (role == name), np.abs(score.mean))
            effects += _switch(model, conflicts, name, heads, pool, factor=factor, n_random=n_random, seed=seed)
    return Findings(pd.concat(parts, ignore_index=True), data, effects, ability)


def _answers(
    run: Rerun, prompts: Conflict, edits: Sequence[Edit] = (), *, by_wording: bool = False
) -> dict[str, float]:
    """Shares of prompts answered with what the context says, and with what is known; arg-max over the vocabulary."""
    logits = run(prompts.task.clean, edits)
    predictions = metrics.answer_logits(logits, prompts.task).argmax(-1).cpu()[:, None]
    follows = {
        "context_answers": (predictions == prompts.task.answers).any(1).double(),
        "memory_answers": (predictions == prompts.task.wrong).any(1).double(),
    }
    shares = {name: float(x.mean()) for name, x in follows.items()}
    if by_wording:
        for i, wording in enumerate(prompts.frames):
            mine = prompts.frame == i
            if bool(mine.any()):
                shares |= {f"{name}_{wording.name}": float(x[mine].mean()) for name, x in follows.items()}
    return shares


def _switch(
    model: Model,
    prompts: Conflict,
    role: str,
    heads: Sequence[Head],
    pool: Sequence[Head],
    *,
    factor: float,
    n_random: int,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of the intervention table: heads of one role off, and louder, beside random sets of heads without a role."""
    if not heads:
        return []
    mean = model.mean(prompts.task.clean)
    sets = stats.matched_sets(heads, pool, n_sets=n_random, seed=seed) or {"none": []}
    changes: dict[str, Any] = {
        "mean": lambda group: ablate_heads(group, how="mean", mean=mean),
        f"scaled by {factor:g}": lambda group: [Scale(Site("z", layer, head=head), factor) for layer, head in group],
    }
    run = Rerun.of_heads(model, heads)
    clean = _of_role(_answers(run, prompts), role)
    rows: list[dict[str, object]] = []
    for how, change in changes.items():
        edited = _of_role(_answers(run, prompts, change(heads)), role)
        for control, random_sets in sets.items():
            random = [_of_role(_answers(run, prompts, change(s)), role) for s in random_sets]
            rows += intervention_rows(set_name(how, heads), len(heads), control, clean, edited, random)
    return rows


def _of_role(values: dict[str, float], role: str) -> dict[str, float]:
    return {f"{metric} ({role} heads)": value for metric, value in values.items()}
