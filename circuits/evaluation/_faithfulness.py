"""How much of a model's behaviour a circuit keeps when every other edge is removed.

With m(C) the metric under the circuit's edges alone, m(M) that of the model and m(0) that with every edge removed:
faithfulness = (mean m(C) - mean m(0)) / (mean m(M) - mean m(0)), 1 for the model and 0 for nothing. It is a ratio of
means over prompts; the mean of the prompts' own ratios, which prompts with a small denominator inflate, stands beside
it for comparison (Miller et al. 2024, arXiv 2407.08734, on how such choices change verdicts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from circuits.graph.graph import Graph
from circuits.wiring.case import Case
from circuits.wiring.edges import Other, run_edges, sent
from interp.edits import Edit
from interp.errors import SchemaError, TaskError, UnknownTask, nearest
from interp.measurement.ability import Ability, advantage
from interp.model import Model
from interp.results.provenance import recorded
from interp.results.stats import Interval, bootstrap
from interp.shapes import brief
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

ABLATIONS = ("resample", "mean", "zero")
LEAST = 1e-6
"""A change of the metric from the whole model to nothing below this cannot be divided by."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """The metric under one or several circuits, with what it is compared with.

    Attributes:
        graphs: the circuits.
        values: m(C) of each circuit and prompt. full: m(M). empty: m(0), every edge removed.
        metric, ablation: what was measured, and what removed edges carried.
        provenance: of the call: plain values.
        ability: how well the whole model does the task on these prompts, of the pass that gave m(M).
    """

    graphs: tuple[Graph, ...]
    values: Float[ndarray, "circuit prompt"]
    full: Float[ndarray, " prompt"]
    empty: Float[ndarray, " prompt"]
    metric: str
    ablation: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    ability: Ability | None = None

    __repr__ = brief

    @property
    def faithfulness(self) -> Float[ndarray, " circuit"]:
        """Ratio of means, one per circuit."""
        return _ratio(self.values.mean(1), self.full.mean(), self.empty.mean())

    @property
    def per_prompt(self) -> Float[ndarray, "circuit prompt"]:
        """Each prompt's own ratio; NaN where the whole model does not differ from nothing."""
        span = self.full - self.empty
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(np.abs(span) > LEAST, (self.values - self.empty) / span, np.nan)

    def advantage(self, *, seed: int = 0) -> Interval:
        """By how much the whole model does better than nothing, m(M) - m(0), with its 95 % interval over prompts."""
        return advantage(self.full, self.empty, self.metric, seed=seed)

    @property
    def stands(self) -> bool:
        """Whether faithfulness may be read: the interval of `advantage` begins above 0.

        Where it does not, the ratio is one of noise to noise, however small a p it comes with.
        """
        return bool(self.advantage().low > 0)

    def interval(self, *, seed: int = 0, level: float = 0.95, n: int = 1000) -> Float[ndarray, "circuit 2"]:
        """Percentile-bootstrap interval of the ratio of means: prompts are resampled, all three means together."""
        low, high, _ = bootstrap(
            lambda w: _ratio(self.values @ w.T, w @ self.full, w @ self.empty).T,
            len(self.full),
            seed=seed,
            n_resamples=n,
            level=level,
        )
        return np.stack([low, high], 1)

    def table(self, *, seed: int = 0) -> pd.DataFrame:
        """One row per circuit: edges, metric, faithfulness with its interval, quantiles over prompts.

        `stands` is False where the whole model is not better than nothing: see the property.
        """
        low, high = self.interval(seed=seed).T
        own = self.per_prompt
        finite_rows = [bool(np.isfinite(row).any()) for row in own]
        quantiles = [
            [float(np.nanquantile(row, at)) if finite else np.nan for at in (0.25, 0.5, 0.75)]
            for row, finite in zip(own, finite_rows, strict=True)
        ]
        return pd.DataFrame(
            {
                "edges": [g.n_edges for g in self.graphs],
                "fraction": [g.fraction for g in self.graphs],
                "metric": self.metric,
                "ablation": self.ablation,
                "value": self.values.mean(1),
                "full": self.full.mean(),
                "empty": self.empty.mean(),
                "faithfulness": self.faithfulness,
                "ci_low": low,
                "ci_high": high,
                "stands": self.stands,
                "mean_of_ratios": [
                    float(np.nanmean(r)) if finite else np.nan for r, finite in zip(own, finite_rows, strict=True)
                ],
                "q25": [q[0] for q in quantiles],
                "median": [q[1] for q in quantiles],
                "q75": [q[2] for q in quantiles],
                "n": len(self.full),
            }
        )


@recorded
def faithfulness(
    model: Model,
    task: PromptTask,
    graphs: Graph | Sequence[Graph],
    *,
    metric: AnyMetric | None = None,
    ablation: str = "resample",
    reference: PromptTask | None = None,
    batch_size: int = 16,
    edits: Sequence[Edit] = (),
) -> Verdict:
    """The metric under circuits whose complement is removed; two more runs, then one for each circuit and batch.

    Args:
        model: any backend with its weights at hand.
        task: prompts, best held out from those the circuit was found on.
        graphs: the circuits.
        metric: a name in `interp.tasks.metrics` or a function (logits, task) -> [batch]; the task's own otherwise.
        ablation: what a removed edge carries: the corrupted twin's activation ("resample"), its mean over the corrupted
            prompts of the same template and length, position by position ("mean"), or zeros.
        reference: whose corrupted prompts the means are taken over; the task's own otherwise.
        batch_size: prompts at a time; changes nothing but memory.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: a circuit of another model.
        TaskError: an unknown ablation, a reference without a template of the task, or a metric by which the whole model
            is no better than nothing.
    """
    case, circuits = Case.of(model, task, metric=metric), (graphs,) if isinstance(graphs, Graph) else tuple(graphs)
    values = evaluate(case, circuits, ablation=ablation, reference=reference, batch_size=batch_size)
    full, empty = case.clean.cpu().double().numpy(), values[-1]
    if abs(full.mean() - empty.mean()) < LEAST:
        raise TaskError(
            f"{task.name}: {case.metric} is {full.mean():.3g} for the model and the same with every edge removed: "
            "there is nothing to explain"
        )
    able, facts = Ability.of_case(case), {"metric": case.metric}
    return Verdict(circuits, values[:-1], full, empty, case.metric, ablation, facts, able)


@torch.no_grad()
def evaluate(
    case: Case,
    graphs: Sequence[Graph],
    *,
    ablation: str = "resample",
    reference: PromptTask | None = None,
    batch_size: int = 16,
) -> Float[ndarray, "circuit_and_empty prompt"]:
    """m(C) of each circuit on each prompt, and in the last row m(0), every edge removed."""
    for graph in graphs:
        if graph.layout != case.layout:
            raise SchemaError(f"{graph!r} is a circuit of another model: {case.layout} here")
    masks = [*(torch.from_numpy(g.mask) for g in graphs), torch.zeros(case.layout.exists.shape, dtype=torch.bool)]
    masks = [mask.to(case.task.clean.ids.device) for mask in masks]
    parts = []
    for part, other in portions(case, ablation, reference=reference, batch_size=batch_size):
        runs = [run_edges(case.model, case.ports, part.task.clean, edge_mask, other).logits for edge_mask in masks]
        parts.append(torch.stack([part.value(logits) for logits in runs]))
    return torch.cat(parts, 1).cpu().double().numpy()


def portions(
    case: Case, ablation: str, *, reference: PromptTask | None = None, batch_size: int = 16
) -> Iterator[tuple[Case, Other]]:
    """Prompts in portions, each with what its removed edges carry."""
    if ablation not in ABLATIONS:
        raise UnknownTask(f"unknown ablation {ablation!r}; {nearest(ablation, ABLATIONS)}")
    means = _means(case, reference or case.task) if ablation == "mean" else {}
    for part in case.batches(batch_size):
        if ablation == "zero":
            yield part, torch.zeros(len(case.layout.senders), 1, 1, case.model.info.d_model)
        elif ablation == "resample":
            yield part, part.sent_corrupt
        else:
            yield part, _group_means(part.task, means)


Key = tuple[str, int]


def group_keys(task: PromptTask) -> list[Key]:
    """Template and length of each prompt: within one of these a position means the same in every prompt."""
    names = [task.templates[i] for i in task.template.tolist()]
    return list(zip(names, task.lengths.tolist(), strict=True))


def reference_groups(task: PromptTask, reference: PromptTask) -> dict[Key, list[int]]:
    """Prompts of a reference by template and length.

    Raises:
        TaskError: a prompt of the task is of a group that the reference has not.
    """
    keys = group_keys(reference)
    missing_keys = set(group_keys(task)) - set(keys)
    if missing_keys:
        name, length = min(missing_keys)
        raise TaskError(
            f"no reference prompt of {length} tokens has the template {name!r}: no mean to put in its place"
        )
    return {key: [i for i, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)}


def _means(case: Case, reference: PromptTask) -> dict[Key, Float[Tensor, "sender _ d_model"]]:
    """What senders write on the reference's corrupted prompts, mean within template and length, by position."""
    means = {}
    for key, rows in reference_groups(case.task, reference).items():
        writes = sent(case.model, case.ports, reference.select(rows).to(case.task.clean.ids.device).corrupt)
        means[key] = writes.mean(1)
    return means


def _group_means(task: PromptTask, means: dict[Key, Float[Tensor, "sender _ d_model"]]) -> Other:
    rows = [means[key] for key in group_keys(task)]
    width = task.clean.ids.shape[1]
    padded_means = [torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in rows]
    return torch.stack(padded_means, 1)


def _ratio(value: ndarray, full: ndarray | float, empty: ndarray | float) -> ndarray:
    return (value - empty) / (np.asarray(full) - np.asarray(empty))
