"""Tests of the claim that a set of edges is the circuit of a task, each with its p and what rejecting it means.

After Shi et al. 2024, arXiv 2410.13032. Three ideal properties (equivalence, independence, minimality) and two that
compare with random circuits (sufficiency, partial necessity). The first are strict: published circuits fail some.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from circuits.evaluation._faithfulness import evaluate
from circuits.evaluation._minimality import without
from circuits.graph.controls import random_circuits
from circuits.graph.graph import Graph
from circuits.wiring.case import Case
from interp.components import EMBED, LOGITS
from interp.edits import Edit
from interp.errors import SchemaError
from interp.model import Model
from interp.results.provenance import recorded
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

SLACK = 0.1
"""How far from one half the chance of being better than the model may be."""
SHARE = 0.9
"""Share of random circuits that a circuit is said to beat."""


@recorded
def hypotheses(
    model: Model,
    task: PromptTask,
    graph: Graph,
    *,
    n_random: int = 20,
    how: str = "connected",
    n_permutations: int = 1000,
    metric: AnyMetric | None = None,
    ablation: str = "resample",
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> pd.DataFrame:
    """One row per test: statistic, p, and whether the property is upheld at 0.05.

    equivalence: P(m(C) > m(M)) over prompts lies within 1/2 +- 0.1; two one-sided binomial tests, ties split evenly. A
        small p supports the claim.
    independence: m of the circuit's complement tells nothing about m(M); HSIC with Gaussian kernels of median width,
        against permutations. A small p speaks against the circuit: what is left still follows the task.
    minimality: leaving out the circuit's least needed component changes more than leaving out one of a component that
        does not belong to it but was added; p is the largest, corrected (Bonferroni) over components. A small p
        supports the claim.
    sufficiency: C is closer to m(M) than `n_random` random circuits of its size are; binomial against 9 in 10.
    partial_necessity: taking C out moves the metric further than taking out a random circuit of its size; the same.

    Raises:
        SchemaError: an empty circuit, one of all edges, or one of another model.
    """
    if graph.n_edges in (0, graph.layout.n_edges):
        raise SchemaError(f"{graph!r}: a circuit of no edges or of all of them leaves nothing to test")
    case = Case.of(model, task, metric=metric)
    random = random_circuits(graph, n=n_random, seed=seed, how=how)
    names = [name for name in graph.nodes if name not in (EMBED, LOGITS)]
    inflated_pairs = _inflated_pairs(graph, random)
    groups: list[Sequence[Graph]] = [
        [graph, graph.complement()],
        random,
        [other.complement() for other in random],
        [without(graph, name) for name in names],
        [whole for whole, _ in inflated_pairs],
        [without_it for _, without_it in inflated_pairs],
    ]
    values = evaluate(case, [g for group in groups for g in group], ablation=ablation, batch_size=batch_size)[:-1]
    own, fair, fair_rest, own_without, whole, whole_without = np.split(values, np.cumsum([len(g) for g in groups])[:-1])
    full = case.clean.cpu().double().numpy()
    rows = [
        {"test": "equivalence", **_equivalence(own[0], full)},
        {"test": "independence", **_independence(own[1], full, n=n_permutations, seed=seed)},
        {"test": "minimality", **_minimality(own[0] - own_without, whole - whole_without, names)},
        {"test": "sufficiency", **_share_beaten(np.abs(own[0] - full).mean() < np.abs(fair - full).mean(1))},
        {"test": "partial_necessity", **_share_beaten(np.abs(own[1] - full).mean() > np.abs(fair_rest - full).mean(1))},
    ]
    return pd.DataFrame(rows)


def _equivalence(circuit: Float[ndarray, " prompt"], full: Float[ndarray, " prompt"]) -> dict[str, object]:
    n = len(full)
    better = float((circuit > full).sum() + (circuit == full).sum() / 2)
    low = stats.binom.sf(np.ceil(better) - 1, n, 0.5 - SLACK)
    high = stats.binom.cdf(np.floor(better), n, 0.5 + SLACK)
    p = float(max(low, high))
    return {"statistic": better / n, "p": p, "upheld": p < 0.05, "n": n, "note": "share of prompts where C beats M"}


def _independence(
    rest: Float[ndarray, " prompt"], full: Float[ndarray, " prompt"], *, n: int, seed: int
) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    a, b = _kernel(rest), _kernel(full)
    size = len(full)
    hsic = float((a * b).mean())
    orders = (rng.permutation(size) for _ in range(n))
    null_hsic = np.array([(a * b[np.ix_(order, order)]).mean() for order in orders])
    p = float((1 + (null_hsic >= hsic - 1e-12).sum()) / (n + 1))
    return {"statistic": hsic, "p": p, "upheld": p >= 0.05, "n": size, "note": "HSIC of complement and model"}


def _kernel(x: Float[ndarray, " prompt"]) -> Float[ndarray, "prompt prompt"]:
    """Centred Gaussian kernel; its width is the median distance."""
    distance = np.abs(x[:, None] - x[None, :])
    width = np.median(distance[np.triu_indices(len(x), 1)]) or 1.0
    k = np.exp(-(distance**2) / (2 * width**2))
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


def _minimality(
    changes: Float[ndarray, "part prompt"], null: Float[ndarray, "draw prompt"], names: Sequence[str]
) -> dict[str, object]:
    size, null_size = np.abs(changes.mean(1)), np.abs(null.mean(1))
    p = (1 + (null_size[None, :] >= size[:, None]).sum(1)) / (1 + len(null_size))
    corrected_p = np.minimum(1.0, p * len(names))
    least = int(size.argmin())
    largest_p = float(corrected_p.max())
    note = f"least needed: {names[least]}; p cannot fall below {min(1.0, len(names) / (1 + len(null_size))):.2g}"
    return {"statistic": float(size[least]), "p": largest_p, "upheld": largest_p < 0.05, "n": len(names), "note": note}


def _share_beaten(comparisons: ndarray) -> dict[str, object]:
    n, wins = len(comparisons), int(comparisons.sum())
    p = float(stats.binom.cdf(wins, n, SHARE))
    note = f"random circuits of the size beaten; rejected if fewer than {SHARE:.0%} are plausible"
    return {"statistic": wins / n, "p": p, "upheld": p >= 0.05, "n": n, "note": note}


def _inflated_pairs(graph: Graph, random: Sequence[Graph]) -> list[tuple[Graph, Graph]]:
    """The circuit with one random circuit's component and its edges added, and the same without it."""
    pairs = []
    for other in random:
        for name in other.nodes:
            if name in (EMBED, LOGITS) or name in graph.nodes:
                continue
            layout = graph.layout
            row = layout.sender_index[name]
            mask = np.zeros_like(graph.mask)
            mask[row] = other.mask[row]
            into = layout.owners[:, row]
            mask[:, into] = other.mask[:, into]
            larger = Graph(layout, graph.scores, graph.mask | mask)
            pairs.append((larger, without(larger, name)))
            break
    if not pairs:
        raise SchemaError("every component is in the circuit already: nothing can be added to compare with")
    return pairs
