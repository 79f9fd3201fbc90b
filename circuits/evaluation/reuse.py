"""What circuits of different tasks have in common, whether one does the other's work, and a repair by shared heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch

from circuits.evaluation._faithfulness import faithfulness
from circuits.graph.controls import random_circuits
from circuits.graph.graph import Graph
from circuits.wiring.case import Case
from interp.components import parse_head
from interp.edits import Edit, ForcePattern
from interp.errors import SchemaError, TaskError
from interp.model import Model
from interp.results import stats
from interp.results.provenance import recorded
from interp.sites import Site
from interp.tasks import PromptTask, metrics
from interp.tasks.metrics import AnyMetric


def overlap(
    circuits: Mapping[str, Graph], *, of: str = "edges", n_random: int = 20, how: str = "connected", seed: int = 0
) -> pd.DataFrame:
    """|A & B| / |A | B| and |A & B| / |A| for every pair, beside random circuits of the same two sizes.

    One row per ordered pair: `jaccard`, `reused` (the part of A that B uses), and the mean and largest of both over
    pairs of random circuits; `p` is the share of random pairs with at least that Jaccard index.
    """
    rows = []
    draws = {name: random_circuits(graph, n=n_random, seed=seed, how=how) for name, graph in circuits.items()}
    for a, b in product(circuits, circuits):
        if a == b:
            continue
        pairs = list(zip(draws[a], reversed(draws[b]), strict=True))
        jaccard = np.array([x.jaccard(y, of=of) for x, y in pairs])
        reuse_shares = np.array([x.reuse(y, of=of) for x, y in pairs])
        own_jaccard = circuits[a].jaccard(circuits[b], of=of)
        rows.append(
            {
                "circuit": a,
                "other": b,
                "of": of,
                "jaccard": own_jaccard,
                "reused": circuits[a].reuse(circuits[b], of=of),
                "random_jaccard": jaccard.mean(),
                "random_jaccard_max": jaccard.max(),
                "random_reused": reuse_shares.mean(),
                "p": (1 + (jaccard >= own_jaccard).sum()) / (1 + len(jaccard)),
            }
        )
    return pd.DataFrame(rows)


@recorded
def cross_faithfulness(
    model: Model,
    tasks: Mapping[str, PromptTask],
    circuits: Mapping[str, Graph],
    *,
    ablation: str = "resample",
    batch_size: int = 16,
    edits: Sequence[Edit] = (),
) -> pd.DataFrame:
    """Faithfulness of every task's circuit on every task: rows are circuits, columns tasks; own ones on the diagonal.

    Raises:
        SchemaError: a circuit of no task.
    """
    if set(circuits) - set(tasks):
        raise SchemaError(f"circuits of {sorted(set(circuits) - set(tasks))}, for which there is no task")
    columns = {
        name: faithfulness(model, task, list(circuits.values()), ablation=ablation, batch_size=batch_size).faithfulness
        for name, task in tasks.items()
    }
    return pd.DataFrame(columns, index=list(circuits))


@recorded
@torch.no_grad()
def repair(
    model: Model,
    task: PromptTask,
    heads: Sequence[str],
    role: str,
    *,
    n_random: int = 10,
    metric: AnyMetric = "accuracy",
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> pd.DataFrame:
    """The metric when heads are made to look from END at the token of a role and nowhere else, beside random heads.

    The intervention of Merullo et al. 2023 (arXiv 2310.08744): where a circuit that two tasks share is used wrongly in
    one of them, doing the shared heads' looking for them should mend the answers. One row for the heads given, one for
    each set of as many random heads of the same layers, and one for no heads.

    Raises:
        TaskError: no prompt has the role, or a prompt lacks it.
        SiteError: not a head of the model.
    """
    where, value_of = task.role(role), metrics.function_of(metric)
    if bool((where < 0).any()):
        raise TaskError(
            f"{task.name}: {int((where < 0).sum())} of {len(task)} prompts have no token with role {role!r}"
        )
    case = Case.of(model, task)
    pairs = [parse_head(name) for name in heads]
    pool = [(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)]
    sets = {"none": (), "heads": tuple(pairs)}
    for how, draws in stats.matched_sets(pairs, pool, n_sets=n_random, seed=seed).items():
        sets |= {f"random {i} ({how})": draw for i, draw in enumerate(draws)}
    values: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    for part in case.batches(batch_size):
        rows = torch.arange(len(part))
        row = torch.zeros(len(part), 1, part.task.clean.ids.shape[1])
        row[rows, 0, part.task.role(role).cpu()] = 1.0
        for name, members in sets.items():
            edits = [
                ForcePattern(Site("pattern", layer, head=head), row[:, 0], positions=part.task.end)
                for layer, head in members
            ]
            logits = model.run(part.task.clean, edits=edits).logits
            assert logits is not None  # the run goes to the end
            values[name].append(value_of(logits, part.task).cpu().double().numpy())
    by_set = {name: np.concatenate(set_values) for name, set_values in values.items()}
    return pd.DataFrame(
        [
            {
                "heads": name,
                "metric": metrics.name_of(metric),
                "value": set_values.mean(),
                "change": (set_values - by_set["none"]).mean(),
                "n": len(set_values),
            }
            for name, set_values in by_set.items()
        ]
    )
