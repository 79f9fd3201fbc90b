"""How much of a set of heads has to go before answers break: from all of its output to its mean alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.components import head_names, parse_head
from interp.edits import Add, Edit, Scale
from interp.errors import SiteError, TaskError
from interp.measurement.rerun import Rerun
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head
from interp.sites import Site

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0)


def dose_response(
    model: Model,
    heads: Sequence[str],
    prompts: Prompts,
    answers: Int[Tensor, " prompt"],
    *,
    doses: Sequence[float] = DOSES,
    at_end: bool = False,
    n_random: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy and loss (nats) at the last token with z_h -> (1 - d) z_h + d mean(z_h) for all heads of a set.

    d = 0 is the model as it is, d = 1 mean ablation. The mean is over all tokens of the prompts. A row per dose and
    metric: set_id, dose, metric, edited, matching, random_mean, random_sd, n_random; random sets have as many heads in
    each layer, or in any where there are too few of these (`matching`). A set that does graded work loses by degrees;
    one that only has to be ahead of rivals loses nothing for long and then all: half a dose without effect does not say
    that the heads do not matter.

    Args:
        model: any loaded model.
        heads: the set, as "L3H5".
        prompts: text or ids, answered at their last token.
        answers: right token of each.
        doses: shares of the way to the mean, from 0 to 1.
        at_end: only at the last token; else everywhere.
        n_random: random sets.
        seed: of the random sets.

    Raises:
        TaskError: no heads, a dose outside 0 to 1, or not one answer per prompt.
        SiteError: no such head.
    """
    batch = model.batch(prompts).to("cpu")
    if not heads or len(answers) != len(batch.ids):
        raise TaskError(f"{len(heads)} heads, {len(batch.ids)} prompts and {len(answers)} answers: one answer for each")
    if not all(0 <= d <= 1 for d in doses):
        raise TaskError(f"doses {list(doses)} are no shares; they go from 0 to 1")
    head_set = [parse_head(name) for name in heads]
    every = [(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)]
    absent_heads = head_names(h for h in head_set if h not in every)
    if absent_heads:
        sizes = f"{len(model.info.attention_layers)} layers with attention, of {model.info.n_heads} heads each"
        raise SiteError(f"{absent_heads[0]} is out of range; the model has {sizes}")
    sets = stats.matched_sets(head_set, every, n_sets=n_random, seed=seed)
    match_rule, random_sets = max(sets.items(), key=lambda item: len(item[1]), default=("none", []))
    mean, run = model.mean(batch), Rerun.of_heads(model, head_set)
    _answer_scores(run, batch, answers, ())  # once as it is: what lies below the heads is kept
    rows = []
    for dose in doses:
        own, *random = (
            _answer_scores(run, batch, answers, _edits(model, s, mean, dose, at_end=at_end))
            for s in (head_set, *random_sets)
        )
        for metric, value in own.items():
            null = np.array([r[metric] for r in random])
            row = {"set_id": " ".join(head_names(head_set)), "dose": dose, "metric": metric, "edited": value}
            row |= {"matching": match_rule, "random_mean": null.mean() if len(null) else np.nan}
            row |= {"random_sd": null.std(ddof=1) if len(null) > 1 else np.nan, "n_random": len(null)}
            rows.append(row)
    return pd.DataFrame(rows)


def _edits(model: Model, heads: Sequence[Head], mean: Tensor, dose: float, *, at_end: bool) -> list[Edit]:
    """(1 - d) z, and then + d mean."""
    if dose == 0:
        return []
    where = -1 if at_end else None
    edits: list[Edit] = []
    for layer, head in heads:
        site = Site("z", layer, head=head)
        row = mean[layer, head]
        edits += [Scale(site, 1 - dose, positions=where), Add(site, dose * row, positions=where)]
    return edits


def _answer_scores(run: Rerun, batch: Batch, answers: Tensor, edits: Sequence[Edit]) -> dict[str, float]:
    logits = run(batch, edits).cpu()
    last = logits[torch.arange(len(answers)), batch.first + batch.mask.sum(1) - 1].float()
    loss = torch.nn.functional.cross_entropy(last, answers.cpu())
    return {"accuracy": float((last.argmax(-1) == answers.cpu()).float().mean()), "loss_nats": float(loss)}
