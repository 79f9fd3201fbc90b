"""What breaks when a set of heads is removed, next to random sets of the same size in the same layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch
from interp.components import head_names
from interp.edits import Ablate, ablate_heads
from interp.measurement.rerun import Rerun
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head
from interp.tasks import Repeats

PROMPTS = 4  # per repeat length: each set of heads costs one forward pass per length


def repeat_removal(
    model: Model, groups: Sequence[Repeats], heads: Sequence[Head], pool: Sequence[Head], *, n_random: int, seed: int
) -> list[dict[str, object]]:
    """Rows of the intervention table: loss (nats) and accuracy on the second copy with `heads` removed.

    Zero and mean ablation (the mean of z over first copies, where nothing repeats yet) of the whole set, each beside
    up to `n_random` random sets (see `stats.matched_sets`), and mean ablation of the best 1, 2, 4, ... of them: the
    dose curve. Ablating one head at a time would show little, because heads of a role stand in for each other.
    """
    small = [_first(g, PROMPTS) for g in groups]
    reference = Batch.of([ids for g in small for ids in g.batch.ids[:, : g.start + g.length].tolist()])
    mean = model.mean(reference)
    run = Rerun.of_heads(model, heads)
    return removal_rows(
        lambda edits: second_copy(run, small, edits), heads, pool, mean=mean, n_random=n_random, seed=seed
    )


def removal_rows(
    measure: Callable[[Sequence[Ablate]], dict[str, float]],
    heads: Sequence[Head],
    pool: Sequence[Head],
    *,
    mean: Float[Tensor, "layer head d_head"],
    n_random: int,
    seed: int,
    how: Sequence[str] = ("mean", "zero"),
    n_random_dose: int = 0,
) -> list[dict[str, object]]:
    """Rows of the intervention table: `measure` under ablation of `heads`, of random sets, and of the best few alone.

    `measure` takes edits and gives metrics by name. Every way of ablating in `how` is compared with up to `n_random`
    matched sets of `pool`; the first of them gives the dose curve, each dose beside up to `n_random_dose` sets from the
    same layers: with many heads in a role there may be too few others in their layers to match all of them.
    """
    clean = measure(())
    sets = stats.matched_sets(heads, pool, n_sets=n_random, seed=seed)
    rows: list[dict[str, object]] = []
    for way in how:
        edited = measure(ablate_heads(heads, how=way, mean=_mean_value(way, mean)))
        for control, control_sets in (sets or {"none": []}).items():
            controls = [measure(ablate_heads(s, how=way, mean=_mean_value(way, mean))) for s in control_sets]
            rows += intervention_rows(set_name(way, heads), len(heads), control, clean, edited, controls)
    for k in _doses(len(heads)):
        edited = measure(ablate_heads(heads[:k], how=how[0], mean=_mean_value(how[0], mean)))
        control_sets = stats.matched_sets(heads[:k], pool, n_sets=n_random_dose, seed=seed).get("same layers", [])
        controls = [measure(ablate_heads(s, how=how[0], mean=_mean_value(how[0], mean))) for s in control_sets]
        rows += intervention_rows(
            set_name(how[0], heads[:k]), k, "same layers" if control_sets else "none", clean, edited, controls
        )
    return rows


def set_name(how: str, heads: Sequence[Head]) -> str:
    """What was done to which heads, for the column `set_id`: `mean: L3H6 L3H4`."""
    return f"{how}: {' '.join(head_names(heads))}"


def intervention_rows(
    set_id: str,
    k: int,
    control: str,
    clean: Mapping[str, float],
    edited: Mapping[str, float],
    controls: Sequence[Mapping[str, float]],
) -> list[dict[str, object]]:
    """Rows of the intervention table, one per metric: without any edit, with the set's, and mean and sd of controls.

    Args:
        set_id: what was done to which heads, `mean: L3H6 L3H4`.
        k: heads in the set.
        control: how the controls were matched, a key of `stats.matched_sets`, or "none".
        clean: metrics by name.
        edited: the same with the set's edit.
        controls: metrics under each random set; none leave mean and sd empty.
    """
    rows = []
    for metric, value in clean.items():
        random = np.array([c[metric] for c in controls])
        rows.append(
            {
                "set_id": set_id,
                "k": k,
                "control": control,
                "metric": metric,
                "clean": value,
                "edited": edited[metric],
                "random_mean": random.mean() if len(random) else None,
                "random_sd": random.std(ddof=1) if len(random) > 1 else None,
                "n_random": len(random),
            }
        )
    return rows


def second_copy(run: Rerun, groups: Sequence[Repeats], edits: Sequence[Ablate] = ()) -> dict[str, float]:
    """Mean loss in nats and accuracy of predicting the second copy's tokens from its own first one on."""
    losses, hits = [], []
    for g in groups:
        loss, hit = _next_token(run(g.batch, edits), g)
        losses.append(loss)
        hits.append(hit)
    return {
        "second_copy_loss_nats": float(torch.cat(losses).mean()),
        "second_copy_accuracy": float(torch.cat(hits).mean()),
    }


def _next_token(logits: Float[Tensor, "batch pos d_vocab"], group: Repeats) -> tuple[Tensor, Tensor]:
    queries = list(group.second)[:-1]
    target = group.batch.ids[:, group.second[1] : group.second[-1] + 1].to(logits.device)
    query_logits = logits[:, queries].float()
    loss = torch.nn.functional.cross_entropy(query_logits.flatten(0, 1), target.flatten(), reduction="none")
    return loss.cpu(), (query_logits.argmax(-1) == target).float().flatten().cpu()


def _mean_value(how: str, mean: Tensor) -> Tensor | None:
    return mean if how == "mean" else None


def _first(group: Repeats, n: int) -> Repeats:
    return Repeats(group.batch.select(slice(None, n)), group.length, group.start)


def _doses(k: int) -> list[int]:
    return [dose for dose in (2**i for i in range(k.bit_length())) if dose < k]
