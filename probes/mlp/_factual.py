"""How a model knows a fact: where the attribute is looked up, what moves it, what says it, and what all that breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from interp import tasks
from interp.components import mlp_name
from interp.errors import InterpError, NotApplicable
from interp.measurement import source_attribution as attributed
from interp.measurement.answers import TASKS, candidates, exchange_columns, model_task, subject_role
from interp.measurement.conflict_scores import conflict_scores, known_conflicts
from interp.measurement.declaration import PlantedTask
from interp.measurement.planted import planted_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import head_rows, interval_columns
from interp.model import Model
from interp.patching.case import Case
from interp.results import stats
from interp.results.figures import dots_by_size
from interp.tasks import Conflict, PromptTask
from probes.mlp._neurons import neurons
from probes.mlp._skill_table import Skill
from probes.mlp.enrichment import SubjectWrites, attribute_areas, exchanged_tasks, other_token
from probes.mlp.mechanisms import Mechanisms, named_heads
from probes.mlp.recall_removal import recall_removal


@analysis(
    name="factual",
    family="mlp",
    title="Components that recall a fact",
    unit="component",
    headline="mechanism",
    order=148,
    two_sided=True,
    figure=dots_by_size,
    section="knowledge",
    planted=PlantedTask(
        "fact_mover",
        options=lambda planted, seed: {"task": planted_prompts(planted, "fact", seed=seed, corruption="minimal")},
    ),
    quick={"n_draws": 6, "n_best": 4, "n_random": 1},
    columns={"label": "boolean", "role": "str", "neuron": "Int64"},
    means="At the end of the prompt this head or MLP adds so many logits to the right attribute over the others; all "
    "heads and MLPs with embedding and biases sum to what the model says. The other variants say where the attribute "
    "was looked up, which tokens heads brought it from, and which neurons it needs.",
    misleads="Direct writes: an MLP at the end may only turn into words what a head brought it. A token holds what "
    "earlier layers moved to it: what comes from the relation's words may be the subject's. Attributes of other "
    "relations are among those compared with and are easy to tell apart. The unembedding reads an attribute at the "
    "subject only where the model keeps it in the words' own directions: read `enrichment` beside `attribute`.",
    reference="Geva et al. 2023, arXiv 2304.14767; Chughtai et al. 2024, arXiv 2402.07321; Lv et al. 2024, 2403.19521",
)
def factual(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    subject: str | None = None,
    conflicts: Conflict | None = None,
    skills: Mapping[str, Skill] | Sequence[str] | None = None,
    ratio: float = 10.0,
    n_best: int = 16,
    n_draws: int = 16,
    n_random: int = 5,
    n_prompts: int = 48,
    seed: int = 0,
) -> Findings:
    """Logits that a component adds at END to the right attribute less the mean of the others, mean over prompts.

    The others are the other prompts' right answers; the final norm's divisor is held. Variants:
      mechanism   each head and MLP, with null, p, q, label and `role`: "subject", "relation" or "mixed" by the tokens a
                  labelled head brings it from (see `direct_attribution`), "MLP";
      source      sums that add up to `logit`: all heads from the subject's last token, the other tokens and the first
                  one, all MLPs, and the rest (embedding, biases); last `logit`, the model's own difference;
      subject, relation, start   each head from these tokens;
      enrichment  logits lost with an MLP's write at the subject's last token set to its mean over prompts, all else run
                  again, and with those of all MLPs together, with null, p and q; elsewhere: at another random token;
      attribute   logits of the attribute that the unembedding reads in this write, with null, p and q;
      attribute_rank  attributes that it puts above the right one in the stream behind the layer, there;
      neuron      neurons that the answer needs: `removal` of `neurons`, with null, p, q and label;
      answer_direction  share of other attributes below the right one (area under the curve) in what the labelled
                  components write together, with null and p; answer_direction_rest: in what all others write;
      context     where context and memory differ, each head's logits for the context's answer over the known one, with
                  null, p, q, label and `role` "context" or "memory" (see `conflict`).

    Nulls are means over `n_draws` exchanges of answers between prompts (of neurons: other neurons); p (two-sided) tests
    against their spread, of mechanisms for more than 1 % of what all of the kind (heads, MLPs) with a positive value
    add; q is Benjamini-Hochberg within a variant. A mechanism's label needs q < 0.01, 5 % of what its kind adds and 1 %
    of what both add, and a model that prefers the right attribute in three of four prompts.

    The intervention table sets what is found to its mean over the clean prompts (labelled heads, labelled MLPs, the
    labelled neurons or else the best ones) beside `n_random` random sets of as many others, and gives accuracy (right
    attribute above all others) and logits on the facts, and the accuracy of `skills`.

    Args:
        model: any loaded model.
        task: prompts about facts, or a task's name; the first of facts and capital_country that suits without.
        subject: role of the subject in the task; its usual names without.
        conflicts: prompts that contradict facts; drawn where no task is given and the model can be asked.
        skills: other tasks, or names, or functions of the model, that removal should leave alone.
        ratio: how pure a head's class has to be.
        n_best: neurons removed one at a time.
        n_draws: exchanges; at least five.
        n_random: random sets.
        n_prompts: of a task given by name.
        seed: of prompts, exchanges, sets and bootstrap.

    Raises:
        NotApplicable: no such task for this model.
        TaskError: the task has no subject, or fewer than two different answers.

    Reference: Geva et al. 2023 (arXiv 2304.14767) for enrichment, Chughtai et al. 2024 (arXiv 2402.07321) for additive
    mechanisms by source, Lv et al. 2024 (arXiv 2403.19521) for recall by MLPs; nulls, tests and controls are ours.
    """
    prompts = model_task(model, task, TASKS, n=n_prompts, seed=seed)
    role = subject_role(prompts, subject)
    prompts = prompts.select(prompts.role(role) >= 0)
    case = Case.of(model, replace(prompts, wrong=candidates(prompts.answers), metric="logit_diff"))
    mechanisms = Mechanisms.of(case, role, ratio=ratio, n_draws=n_draws, seed=seed)
    parts = [mechanisms.rows(seed), mechanisms.source_rows(seed), *mechanisms.token_rows(seed)]
    parts += _enrichment(case, role, n_draws=n_draws, seed=seed)
    left_out: dict[str, str] = {}
    tried = _neuron_rows(model, prompts, n_best, seed, left_out)
    parts += [tried, *_direction_rows(mechanisms, n_draws=n_draws, seed=seed)]
    context = _context_rows(model, conflicts, draw=task is None, seed=seed, left_out=left_out)
    found = mechanisms.found
    effects = recall_removal(case, found, tried, skills or {}, n_random=n_random, n_prompts=n_prompts, seed=seed)
    data = {**prompts.provenance(), "subject": role, "logit_over_candidates": float(mechanisms.sources.logit.mean())}
    data |= {"sum_error": mechanisms.sum_error, "able": mechanisms.able, "left_out": left_out}
    return Findings(pd.concat([*parts, context], ignore_index=True), data, effects, case)


def _enrichment(case: Case, role: str, *, n_draws: int, seed: int) -> list[pd.DataFrame]:
    """The variants enrichment, elsewhere, attribute and attribute_rank; none without an MLP that is told apart."""
    task = case.task
    at = task.role(role)
    writes = SubjectWrites.of(case, at)
    if not writes.layers:
        return []
    read, *read_others = writes.readable(draws=n_draws, seed=seed)
    exchanges = exchanged_tasks(task, draws=n_draws, seed=seed)
    lost, *lost_others = writes.needed([task, *exchanges])
    rows = [_layer_rows("enrichment", "logit", writes, lost, seed, lost_others)]
    other = other_token(task, at, seed=seed)
    if other is not None:
        (elsewhere,) = writes.needed([task], at=other)
        rows.append(_layer_rows("elsewhere", "logit", writes, elsewhere, seed))
    rows.append(_layer_rows("attribute", "logit", writes, read, seed, read_others))
    chance = float((task.wrong >= 0).sum(1).double().mean()) / 2
    rows.append(_layer_rows("attribute_rank", "rank", writes, writes.ranks(), seed).assign(null=chance))
    return rows


def _layer_rows(
    variant: str,
    unit: str,
    writes: SubjectWrites,
    values: Float[ndarray, "batch row"],
    seed: int,
    exchanges: Sequence[Float[ndarray, "batch row"]] = (),
) -> pd.DataFrame:
    """A row for each MLP, and for all where there is one more column; with null, p and q where there are exchanges."""
    interval = stats.bootstrap_mean(values, seed=seed)
    test: dict[str, Any] = {}
    if exchanges:
        margin = attributed.SMALLEST * float(np.abs(interval.mean).sum())
        test = exchange_columns(interval.mean, [x.mean(0) for x in exchanges], margin=margin, able=True)
    layers: list[int | None] = [*writes.layers]
    names = [mlp_name(i) for i in writes.layers]
    if values.shape[1] > len(layers):
        layers, names = [*layers, None], [*names, "MLPs"]
    base = {"layer": layers, "component": names}
    return pd.DataFrame({"variant": variant, "unit": unit, **base, **interval_columns(interval), **test})


def _neuron_rows(model: Model, prompts: PromptTask, n_best: int, seed: int, left_out: dict[str, str]) -> pd.DataFrame:
    """`removal` of the best neurons, as `neurons` measures it; empty where none can be told apart."""
    try:
        table = neurons(model, task=prompts, n_best=n_best, n_random=max(n_best, 8), n_sets=1, seed=seed).table
    except InterpError as error:
        left_out["neuron"] = str(error)
        return pd.DataFrame()
    rows = table[table["variant"] == "removal"].drop(columns=["analysis", "k"])
    return rows.assign(variant="neuron")


def _direction_rows(mechanisms: Mechanisms, *, n_draws: int, seed: int) -> list[pd.DataFrame]:
    """Area under the curve of the right attribute in what is labelled writes, and in what all else writes."""
    if not mechanisms.found.names:
        return []
    task = mechanisms.case.task
    exchanges, rows = exchanged_tasks(task, draws=n_draws, seed=seed), []
    for variant, logits in mechanisms.logits().items():
        interval = stats.bootstrap_mean(attribute_areas(logits, task)[:, None], seed=seed)
        null = np.array([[attribute_areas(logits, own).mean()] for own in exchanges])
        columns = {"null": null.mean(0), "p": stats.p_two_sided(interval.mean, null)}
        base = {"variant": variant, "unit": "fraction", "component": "labelled" if not rows else "all others"}
        rows.append(pd.DataFrame({**base, **interval_columns(interval), **columns}))
    return rows


def _context_rows(
    model: Model, conflicts: Conflict | None, *, draw: bool, seed: int, left_out: dict[str, str]
) -> pd.DataFrame:
    """Heads that write the context's answer and the known one, where the two can be set against each other."""
    if conflicts is None and not draw:
        left_out["context"] = "a task of the caller's: pass `conflicts`"
        return pd.DataFrame()
    try:
        own, _ = known_conflicts(model, conflicts or tasks.conflict(model, seed=seed))
    except NotApplicable as error:
        if conflicts is not None:
            raise
        left_out["context"] = str(error)
        return pd.DataFrame()
    found = conflict_scores(model, own, n_null=8, seed=seed)
    columns = {"null": found.null, "p": found.p, "q": found.q, "label": found.label}
    interval = interval_columns(stats.bootstrap_mean(found.direct, seed=seed))
    rows = head_rows(model, "context", "logit", **interval, **columns, role=np.where(found.label, found.role, ""))
    return named_heads(rows).assign(role=rows["role"].where(rows["role"] != "", None))
