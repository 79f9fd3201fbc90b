"""Late components that push the model's first choice down, and what becomes of recall and of text without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.decompose import Term, decompose
from interp.edits import Edit, Scale
from interp.errors import InterpError, NotApplicable
from interp.measurement.answers import TASKS, AnswerDirections, exchange_columns, model_task, right_share
from interp.measurement.prompts import prompt_set, text_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.patching.case import Case
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import PromptTask, metrics
from interp.tokens.losses import token_losses

SHARE, SMALLEST = 0.02, 0.005
"""Of the sum of all sizes of late components: below SHARE no label, up to SMALLEST no claim."""
FACTORS = (0.0, 0.5)
TEXTS, LENGTH = 8, 128
"""Held-out stretches of text on which the loss is taken, and their tokens."""


@analysis(
    name="overconfidence",
    family="mlp",
    title="Components that push the first choice down",
    unit="late component",
    headline="push",
    order=160,
    two_sided=True,
    figure=dots,
    quick={"n_prompts": 16, "n_random": 2},
    exemptions={
        "planted": "no planted model doubts itself: its tests plant a head that takes down what another says",
        "scale": "where nothing is pushed values are noise, which falls with prompts",
    },
    columns={"label": "boolean"},
    means="Above 0 it pushes the first choice up. Below 0, what is looked for: what this late component writes "
    "takes the model's own first choice down against the rest of the vocabulary. The intervention table says what "
    "recall and the loss on text become without all that do.",
    misleads="A direct write: a head may take the first choice down because it moves other words up. That removal "
    "helps at these prompts does not make it a fault: on other text the same component may keep the model calibrated, "
    "which is why the loss on held-out text stands beside recall. Components at a few prompts of one task.",
    reference="Lv et al. 2024, arXiv 2403.19521 (anti-overconfidence)",
)
def overconfidence(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    depth: float = 0.34,
    factors: Sequence[float] | None = None,
    n_random: int = 5,
    n_draws: int = 16,
    n_tokens: int = 64,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """Push of a late component: x_c . (W_U[top] - mean of `n_tokens` random tokens' W_U) / norm scale at END, a logit.

    top is the model's own first choice, x_c what a head or MLP of the last `depth` of the layers (one at least) wrote.
    Variants, a row for each:
      push      mean over prompts, with null, p, q and label;
      answer    the same for the right answer less the wrong one;
    null: the push on other prompts' first choices (`n_draws` exchanges). p (two-sided) tests against their spread, for
    more than 0.5 % of the sum of sizes; q is Benjamini-Hochberg. A label needs q < 0.01, a push below 0 of 2 % of the
    sum, and an interval (bootstrap over prompts) below 0.

    The intervention table scales all labelled components by each of `factors` (0: removed), beside `n_random` sets of
    as many other components of the same layers and kinds where there are, else of any late layer:
      accuracy          share of prompts whose right answer beats every wrong one (all others unless each has one);
      answer_log_prob   mean log probability of the right answer, nats;
      top_logit         the first choice of before, less the mean of the random tokens;
      text_loss_nats    mean loss on held-out text (random tokens where the tokenizer cannot read it).

    Args:
        model: any loaded model.
        task: prompts with answers, or a task's name; facts, or repeated random tokens, without.
        depth: share of the layers, from the last, that counts as late.
        factors: what labelled components are multiplied by; 0 and 0.5 without.
        n_random: random sets.
        n_draws: exchanges; at least five.
        n_tokens: random tokens that the first choice is compared with.
        n_prompts: of a task given by name.
        seed: of prompts, tokens, exchanges, sets, text and bootstrap.

    Raises:
        NotApplicable: no such task for this model, or no late component.

    Reference: Lv et al. 2024 (arXiv 2403.19521), section on anti-overconfidence; null, controls and text are ours.
    """
    prompts = model_task(model, task, (*TASKS, "induction"), n=n_prompts, seed=seed)
    parts = decompose(model, prompts.clean)
    first = model.info.n_layers - max(1, round(depth * model.info.n_layers))
    late = [i for i, t in enumerate(parts.terms) if t.kind in ("head", "mlp") and (t.layer or 0) >= first]
    if not late:
        raise NotApplicable(f"{model.info.name}: no head and no MLP from layer {first} on is told apart")
    case = Case.of(model, prompts)
    top, random = _choices(case, n_tokens, seed)
    chosen = Case.of(model, _contrast(case.task, top, random))
    directions = AnswerDirections.of(chosen, parts.residual, draws=n_draws, seed=seed)
    answer = AnswerDirections.of(case, parts.residual, draws=0, seed=seed)
    x = parts.vectors[late]
    push, *others = [(x * w).sum(-1).T.double().numpy() for w in (directions.own, *directions.others)]
    interval = stats.bootstrap_mean(push, seed=seed)
    whole = float(np.abs(interval.mean).sum())
    test = exchange_columns(interval.mean, [o.mean(0) for o in others], margin=SMALLEST * whole, able=True)
    label = (test["q"] < LEVEL) & (interval.mean <= -SHARE * whole) & (interval.high < 0)
    terms = [parts.terms[i] for i in late]
    base: dict[str, Any] = {"component": [t.name for t in terms], "unit": "logit"}
    base |= {"layer": [t.layer for t in terms], "head": [t.head for t in terms]}
    right = stats.bootstrap_mean((x * answer.own).sum(-1).T.double().numpy(), seed=seed)
    rows = [
        pd.DataFrame({"variant": "push", **base, **interval_columns(interval), **test, "label": label}),
        pd.DataFrame({"variant": "answer", **base, **interval_columns(right)}),
    ]
    text, source = _text(model, seed)
    outcome = Outcome(model, case.task, top, random, text)
    found = [t for t, yes in zip(terms, label, strict=True) if yes]
    own_factors = FACTORS if factors is None else factors
    effects = outcome.rows(found, terms, own_factors, n_random=n_random, seed=seed) if found else []
    data = {**prompts.provenance(), "late_from_layer": first, "text": source}
    data["top_is_right"] = float((top == prompts.answers.cpu()).any(1).double().mean())
    return Findings(pd.concat(rows, ignore_index=True), data, effects, case)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is measured under edits: prompts with their answers and first choices, and text."""

    model: Model
    task: PromptTask
    top: Int[Tensor, "batch 1"]
    random: Int[Tensor, "batch k"]
    text: Batch

    @torch.no_grad()
    def measure(self, edits: Sequence[Edit] = ()) -> dict[str, float]:
        """Metrics by name."""
        logits = metrics.answer_logits(_logits(self.model, self.task.clean, edits), self.task).float().cpu()
        answers = self.task.answers.cpu()
        log_probs = logits.log_softmax(-1).gather(1, answers.clamp(min=0)).masked_fill(answers < 0, -torch.inf)
        push = logits.gather(1, self.top)[:, 0] - logits.gather(1, self.random).mean(1)
        loss = token_losses(_logits(self.model, self.text, edits), self.text.ids, self.text.mask)
        return {
            "accuracy": right_share(logits, self.task.to("cpu")),
            "answer_log_prob": float(log_probs.logsumexp(1).mean()),
            "top_logit": float(push.mean()),
            "text_loss_nats": float(loss.nanmean()),
        }

    def rows(
        self, found: Sequence[Term], late: Sequence[Term], factors: Sequence[float], *, n_random: int, seed: int
    ) -> list[dict[str, object]]:
        """Intervention rows of the components scaled together, beside random ones."""
        clean = self.measure()
        sets = matched_components(found, late, n_sets=n_random, seed=seed)
        rows: list[dict[str, object]] = []
        for factor in factors:
            edited = self.measure(scaling(found, factor))
            controls = [self.measure(scaling(own, factor)) for own in sets]
            name = f"times {factor:g}: {' '.join(t.name for t in found)}"
            rows += intervention_rows(name, len(found), "same kinds" if sets else "none", clean, edited, controls)
        return rows


def scaling(terms: Sequence[Term], factor: float) -> list[Edit]:
    """Edits that multiply what heads and MLPs write."""
    return [
        Scale(Site("mlp_out", t.layer) if t.kind == "mlp" else Site("z", t.layer, head=t.head), factor) for t in terms
    ]


def matched_components(found: Sequence[Term], pool: Sequence[Term], *, n_sets: int, seed: int) -> list[list[Term]]:
    """Random sets of other components: for each one of its kind and layer while there are, else of its kind."""
    rng, names = np.random.default_rng(seed), {t.name for t in found}
    sets: dict[tuple[str, ...], list[Term]] = {}
    for _ in range(20 * n_sets):
        own: list[Term] = []
        for t in found:
            free = [o for o in pool if o.kind == t.kind and o.name not in names and o not in own]
            near = [o for o in free if o.layer == t.layer] or free
            if near:
                own.append(near[int(rng.integers(len(near)))])
        if own:
            sets[tuple(sorted(t.name for t in own))] = own
        if len(sets) == n_sets:
            break
    return list(sets.values())


def _choices(case: Case, n: int, seed: int) -> tuple[Int[Tensor, "batch 1"], Int[Tensor, "batch k"]]:
    """The model's first choice at each prompt, and n random tokens, the same for all."""
    with torch.no_grad():
        logits = metrics.answer_logits(_logits(case.model, case.task.clean), case.task)
    order = torch.randperm(logits.shape[-1], generator=torch.Generator().manual_seed(seed))
    return logits.argmax(-1, keepdim=True).cpu(), order[:n].expand(len(case), -1)


def _contrast(task: PromptTask, right: Int[Tensor, "batch 1"], wrong: Int[Tensor, "batch k"]) -> PromptTask:
    """The same prompts with other answers."""
    device = task.answers.device
    return replace(task, answers=right.to(device), wrong=wrong.to(device), metric="logit_diff")


def _logits(model: Model, batch: Batch, edits: Sequence[Edit] = ()) -> Float[Tensor, "batch pos d_vocab"]:
    logits = model.run(batch, edits=edits).logits
    assert logits is not None  # the run has no `stop`
    return logits


def _text(model: Model, seed: int) -> tuple[Batch, str]:
    """Held-out text where the tokenizer can read some, else random tokens."""
    try:
        data = text_prompts(model, None, n=TEXTS, length=LENGTH, bos="default", seed=seed)
    except InterpError:
        data = prompt_set(model, None, n_prompts=TEXTS, length=LENGTH, bos="default", seed=seed)
    return data.batch, str(data.data["task"])
