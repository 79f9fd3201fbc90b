"""Heads of a task by the discrete codes of their outputs, beside what is simpler: O'Neill and Bui 2024, 2405.12522."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features.code_autoencoder import Training, active_features, codes, train_codes
from circuits.features.code_scores import CodeTable, edge_shares, node_scores, swapped_labels
from circuits.features.head_baselines import mean_difference, norm_difference, probe_auc, standardised
from circuits.features.head_outputs import MEAN, head_outputs
from circuits.methods import circuit_method
from interp.components import head_name, head_names
from interp.edits import Edit
from interp.errors import SchemaError, nearest
from interp.measurement.scoring import head_rows
from interp.model import Model
from interp.results import stats
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.several import several
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

NAME = "sae_codes"
KINDS = ("argmax", "active")
SCALINGS = ("none", "head")
UNITS = {
    "node": "share",
    "node_count": "codes",
    "edge": "share of pairs",
    "code_mi": "nats",
    "mean_difference": "activation",
    "norm_difference": "activation",
    "probe_auc": "AUC",
    "random": "uniform",
}
"""Scores of a head in the order of the table, the published one first, and what they are in."""
EXTRA = {"pooling": "str", "scaling": "str", "label": "boolean"}


@dataclass(frozen=True)
class Scoring:
    """How codes become scores; what stands here is as published, but for several seeds and permutations.

    Attributes:
        training: of the autoencoder.
        code: "argmax", the largest feature, or "active", all features above 0.
        normalise: unique codes over all codes that a head uses.
        softmax: over "all" heads, those of a "layer", or "none".
        top_pairs: pairs of heads that the edge score counts; None for heads^2 / 4, as published.
        n_seeds: autoencoders that scores are means over.
        n_permutations: exchanges of labels within pairs.
    """

    training: Training = field(default_factory=Training)
    code: str = "argmax"
    normalise: bool = False
    softmax: str = "all"
    top_pairs: int | None = None
    n_seeds: int = 5
    n_permutations: int = 200

    def __post_init__(self) -> None:
        """Refuse a kind of code that there is not, and counts below 1."""
        if self.code not in KINDS:
            raise SchemaError(f"unknown code {self.code!r}; {nearest(self.code, KINDS)}")
        if self.n_seeds < 1 or self.n_permutations < 1:
            raise SchemaError("expected n_seeds and n_permutations of 1 or more")


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of heads, [layer head] each.

    Attributes:
        values: by the names of `UNITS`.
        null, p: of the scores that permutations were drawn for, by name.
        pairs: mean over seeds of the unique pairs of codes.
        n: prompts.
    """

    values: Mapping[str, Float[np.ndarray, "layer head"]]
    null: Mapping[str, Float[np.ndarray, "layer head"]]
    p: Mapping[str, Float[np.ndarray, "layer head"]]
    pairs: Float[np.ndarray, "head head2"]
    n: int


def head_scores(
    x: Float[Tensor, "prompt head d"],
    labels: Bool[np.ndarray, " prompt"],
    pair: Int[np.ndarray, " prompt"],
    *,
    shape: tuple[int, int],
    scoring: Scoring | None = None,
    standardise: str = "none",
    seed: int = 0,
) -> HeadScores:
    """All scores of `sae_codes` from head outputs at hand.

    Args:
        x: outputs of all heads, layer by layer.
        labels: whether a prompt is a positive.
        pair: number of the pair a prompt is of: a positive and its own negative.
        shape: (layers, heads).
        scoring: how; see there.
        standardise: "none", or "head": each head's outputs less their mean, over one scale a head.
        seed: of autoencoders (seed, seed + 1, ...), permutations and folds.

    Raises:
        SchemaError: an unknown way to standardise, or softmax.
    """
    how = scoring or Scoring()
    if standardise not in SCALINGS:
        raise SchemaError(f"unknown standardise {standardise!r}; {nearest(standardise, SCALINGS)}")
    scaled = standardised(x) if standardise == "head" else x
    draws = np.concatenate([labels[None], swapped_labels(labels, pair, n=how.n_permutations, seed=seed)])
    counts, information, pairs = [], [], []
    for dictionary in train_codes(scaled, how.training, seeds=range(seed, seed + how.n_seeds)):
        largest = CodeTable.of(codes(scaled, dictionary))
        table = largest if how.code == "argmax" else CodeTable.of_sets(active_features(scaled, dictionary))
        counts.append(table.unique(draws, normalise=how.normalise))
        information.append(largest.information(draws))
        pairs.append(table.unique_pairs(labels, normalise=how.normalise))
    pair_counts = np.mean(pairs, 0)
    own = np.stack([c[0].reshape(shape) for c in counts])
    values = {
        "node": node_scores(own, softmax=how.softmax).mean(0).ravel(),
        "edge": edge_shares(pair_counts, top=how.top_pairs),
        "mean_difference": mean_difference(scaled, labels),
        "norm_difference": norm_difference(x, labels),
        "probe_auc": probe_auc(scaled, labels, pair, seed=seed),
        "random": np.random.default_rng([seed, x.shape[1]]).random(x.shape[1]),
    }
    null, p = {"probe_auc": np.full(x.shape[1], 0.5), "random": np.full(x.shape[1], 0.5)}, {}
    for name, every in (("node_count", np.mean(counts, 0)), ("code_mi", np.mean(information, 0))):
        values[name], null[name] = every[0], every[1:].mean(0)
        p[name] = (1 + (every[1:] >= every[0] - 1e-9).sum(0)) / len(every)
    tables = [{name: of[name].reshape(shape) for name in UNITS if name in of} for of in (values, null, p)]
    return HeadScores(*tables, pairs=pair_counts, n=len(x))


@circuit_method(
    name="sae-codes",
    title="Discrete codes of head outputs",
    gives="table",
    costs="2 forward, five small autoencoders",
    means="On clean prompts the head's output has codes that it never has on the corrupted ones.",
    misleads="No effect is measured: any difference between the prompts counts, used or not. The difference of mean "
    "outputs, beside it in the table, often does better.",
    reference="O'Neill and Bui 2024, arXiv 2405.12522",
    order=170,
    signed=False,
    judged="nodes",
    judged_variant="node",
    routine=False,
    quick={"n_seeds": 1, "epochs": 5, "n_features": 16, "n_permutations": 5},
)
@recorded
def sae_codes(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    positions: str | Sequence[str] = MEAN,
    standardise: str | Sequence[str] = "none",
    outputs: str = "head_out",
    code: str = "argmax",
    normalise: bool = False,
    softmax: str = "all",
    threshold: float | None = None,
    top_pairs: int | None = None,
    pair_rows: int = 20,
    n_features: int = 200,
    n_examples: int = 10,
    epochs: int = 500,
    penalty: float = 0.02,
    learning_rate: float = 1e-3,
    n_seeds: int = 5,
    n_permutations: int = 200,
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Result:
    """Heads whose outputs have codes on positives (clean prompts) that they never have on negatives (their twins).

    An autoencoder trained on outputs of all heads gives each a code. Variants, per head:
      node             softmax over heads of node_count; label: above the threshold; null: all heads alike;
      node_count       codes used on positives and never on negatives; null, p and q of labels exchanged within pairs;
      edge             share of the head's pairs that are top pairs, by codes used together on positives alone;
      code_mi          information between code and label; null, p and q as above;
      mean_difference  length of the difference of mean outputs: what a score by codes has to beat;
      norm_difference  difference of the mean lengths of outputs, never standardised;
      probe_auc        held-out AUC of a linear probe for the label;
      random           uniform numbers;
      pair             the `pair_rows` pairs of heads with the most such pairs of codes.
    Means over `n_seeds` autoencoders. No effect is measured: a head that the answer does not depend on scores as well.

    Args:
        model: any backend.
        task: pairs of prompts.
        metric: of no consequence: none is measured.
        positions: "mean" over a prompt's tokens as published, "END", another role, or several (column `pooling`).
        standardise: "none" as published, "head" (`head_baselines.standardised`), or both (column `scaling`).
        outputs: "head_out", z W_O, as published, or "z".
        code: "argmax" as published, or "active", all features above 0.
        normalise: counts over all codes, or pairs of codes, that are used.
        softmax: over "all" heads, the heads of a "layer", or "none".
        threshold: of `node` for a label; None for the mean over heads.
        top_pairs: pairs that `edge` counts; None for heads^2 / 4 as published.
        pair_rows: rows of the variant `pair`.
        n_features: of the autoencoder; see `code_autoencoder.Training`.
        n_examples: prompts that it is trained on.
        epochs: of its training.
        penalty: on the sum of an output's features.
        learning_rate: of Adam.
        n_seeds: autoencoders.
        n_permutations: of labels.
        batch_size: prompts of a forward.
        seed: of the first autoencoder, the permutations and the folds.
        edits: changes under which the model runs.

    Raises:
        SchemaError: an option that there is not, or out of range.
        TaskError: an unknown role, or fewer than two pairs that have it.

    Reference: O'Neill and Bui 2024 (arXiv 2405.12522). All but `node` and `edge` is ours, and so are permutations,
    seeds, scaling and positions.
    """
    training = Training(n_features, n_examples, epochs, penalty, learning_rate)
    scoring = Scoring(training, code, normalise, softmax, top_pairs, n_seeds, n_permutations)
    parts, shape = [], (len(model.info.attention_layers), model.info.n_heads)
    for position in several(positions, "positions"):
        x, labels, pair = head_outputs(model, task, position=position, outputs=outputs, batch_size=batch_size)
        for scaling in several(standardise, "ways to standardise"):
            scores = head_scores(x, labels, pair, shape=shape, scoring=scoring, standardise=scaling, seed=seed)
            rows = _rows(model, scores, threshold=threshold, pair_rows=pair_rows)
            parts.append(rows.assign(pooling=position, scaling=scaling))
    return Result(frame(_by_variant(pd.concat(parts, ignore_index=True)), extra=EXTRA), {"metric": None})


def _by_variant(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the method, those of a variant together."""
    order = table["variant"].map({name: i for i, name in enumerate((*UNITS, "pair"))}).sort_values(kind="stable").index
    return table.assign(analysis=NAME).loc[order].reset_index(drop=True)


def _rows(model: Model, scores: HeadScores, *, threshold: float | None, pair_rows: int) -> pd.DataFrame:
    """Rows of every variant at one position and scaling."""
    heads = [(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)]
    names, parts = head_names(heads), []
    for name, unit in UNITS.items():
        columns: dict[str, object] = {"value": scores.values[name], "n": scores.n}
        if name in scores.null:
            columns["null"] = scores.null[name]
        if name in scores.p:
            columns |= {"p": scores.p[name], "q": stats.benjamini_hochberg(scores.p[name])}
        if name == "node":
            mean = float(scores.values[name].mean())
            columns |= {"null": mean, "label": scores.values[name] > (mean if threshold is None else threshold)}
        parts.append(head_rows(model, name, unit, **columns).assign(component=names))
    first, second = np.triu_indices(len(heads), 1)
    values = scores.pairs[first, second]
    strongest = np.argsort(-values, kind="stable")[:pair_rows]
    pair_names = [f"{head_name(*heads[first[i]])} {head_name(*heads[second[i]])}" for i in strongest]
    pairs = {"variant": "pair", "unit": "pairs of codes", "component": pair_names, "value": values[strongest]}
    return pd.concat([*parts, pd.DataFrame({**pairs, "n": scores.n})], ignore_index=True)
