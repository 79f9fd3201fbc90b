"""`Mechanisms`: logits that each head and MLP adds to a fact at the end of its prompt, and which are labelled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from interp.components import head_name, mlp_name
from interp.decompose import decompose
from interp.measurement import source_attribution as attributed
from interp.measurement.answers import exchange_columns
from interp.measurement.scoring import LEVEL, head_rows, interval_columns
from interp.model import Model
from interp.patching.case import Case
from interp.results import stats
from interp.results.stats import Head
from interp.shapes import brief

MLP = "MLP"


@dataclass(frozen=True, eq=False)
class Found:
    """Labelled heads and MLPs, those with the largest values first, and all others."""

    heads: list[Head]
    other_heads: list[Head]
    mlps: list[int]
    other_mlps: list[int]

    @property
    def names(self) -> set[str]:
        """Labelled components."""
        return {*(head_name(*place) for place in self.heads), *map(mlp_name, self.mlps)}


@dataclass(frozen=True, eq=False)
class Mechanisms:
    """Direct effects of all heads and MLPs on the right attribute's logit less the mean of the others.

    Attributes:
        case: model and task; the wrong answers are the other attributes.
        sources: effects by token. effects: of heads from the subject, the relation and the first token.
        names: heads, then MLPs. values: of each of them. test: null, p and q. label, role: of each.
    """

    case: Case
    sources: attributed.Sources
    effects: dict[str, Float[ndarray, "batch layer head"]]
    names: list[str]
    values: Float[ndarray, "batch component"]
    test: dict[str, Float[ndarray, " component"]]
    label: Bool[ndarray, " component"]
    role: list[str]

    __repr__ = brief

    @classmethod
    def of(cls, case: Case, subject: str, *, ratio: float, n_draws: int, seed: int) -> Mechanisms:
        """One run, with its `n_draws` exchanges of answers."""
        task, model = case.task, case.model
        sources, others = attributed.sources(model, task, task.answers, task.wrong, draws=n_draws, seed=seed)
        effects = attributed.by_source(sources, attributed.source_masks(task, subject))
        values, *exchanges = (_flat(x) for x in (sources, *others))
        mean, n = values.mean(0), values.shape[1] - model.info.n_layers
        whole = np.repeat([mean[:n].clip(min=0).sum(), mean[n:].clip(min=0).sum()], [n, model.info.n_layers])
        able, margin = attributed.able(sources), attributed.SMALLEST * whole
        test = exchange_columns(mean, [x.mean(0) for x in exchanges], margin=margin, able=able)
        least = np.maximum(attributed.SHARE * whole, attributed.SMALLEST * mean.clip(min=0).sum())
        label = (test["q"] < LEVEL) & (np.abs(mean) >= least)
        info = model.info
        names = [head_name(layer, h) for layer in info.attention_layers for h in range(info.n_heads)]
        names += map(mlp_name, range(info.n_layers))
        role = [*attributed.source_roles(effects, ratio).reshape(-1).tolist(), *[MLP] * info.n_layers]
        return cls(case, sources, effects, names, values, test, label, role)

    @property
    def able(self) -> bool:
        """Whether the model prefers the right attribute in three of four prompts."""
        return attributed.able(self.sources)

    @property
    def n_heads(self) -> int:
        """Heads among the components."""
        return self.values.shape[1] - self.case.model.info.n_layers

    @property
    def found(self) -> Found:
        """What is labelled, largest first, and what is not."""
        info = self.case.model.info
        places = [(layer, h) for layer in info.attention_layers for h in range(info.n_heads)]
        order = np.argsort(-np.abs(self.values.mean(0)), kind="stable").tolist()
        heads = [(i, bool(self.label[i])) for i in order if i < self.n_heads]
        mlps = [(i - self.n_heads, bool(self.label[i])) for i in order if i >= self.n_heads]
        return Found(
            [places[i] for i, yes in heads if yes],
            [places[i] for i, yes in heads if not yes],
            [i for i, yes in mlps if yes],
            [i for i, yes in mlps if not yes],
        )

    @property
    def sums(self) -> dict[str, Float[Tensor, " batch"]]:
        """Heads by token, MLPs and the rest: the additive mechanisms of each prompt, in logits."""
        heads = {f"heads<{name}": torch.from_numpy(x.sum((1, 2))) for name, x in self.effects.items()}
        rest = [x.double() for x in self.sources.rest.values()]
        zero = torch.zeros(len(self.case), dtype=torch.float64)
        return {**heads, "MLPs": self.sources.mlps.double().sum(0), "rest": sum(rest, zero)}

    @property
    def sum_error(self) -> float:
        """|sum of `sums` - logit| over the largest |logit|, the largest over prompts."""
        total, logit = torch.stack([x.cpu() for x in self.sums.values()]).sum(0), self.sources.logit.double().cpu()
        return float((total - logit).abs().max() / logit.abs().max().clamp(min=1e-30))

    def rows(self, seed: int) -> pd.DataFrame:
        """The variant `mechanism`."""
        info, n = self.case.model.info, self.n_heads
        layers = [layer for layer in info.attention_layers for _ in range(info.n_heads)] + list(range(info.n_layers))
        heads: list[int | None] = [*range(info.n_heads)] * len(info.attention_layers)
        interval = interval_columns(stats.bootstrap_mean(self.values, seed=seed))
        kind = [r if yes or i >= n else None for i, (r, yes) in enumerate(zip(self.role, self.label, strict=True))]
        columns = {"layer": layers, "head": heads + [None] * info.n_layers, "component": self.names, "role": kind}
        return pd.DataFrame(
            {"variant": "mechanism", "unit": "logit", **columns, **interval, **self.test, "label": self.label}
        )

    def source_rows(self, seed: int) -> pd.DataFrame:
        """The variant `source`: sums, and the logit that they add up to."""
        parts = {**self.sums, "logit": self.sources.logit.double()}
        values = torch.stack([x.cpu() for x in parts.values()], 1).numpy()
        columns = interval_columns(stats.bootstrap_mean(values, seed=seed))
        return pd.DataFrame({"variant": "source", "unit": "logit", "component": list(parts), **columns})

    def token_rows(self, seed: int) -> list[pd.DataFrame]:
        """The variants subject, relation and start: heads by token."""
        model = self.case.model
        return [
            named_heads(head_rows(model, name, "logit", **interval_columns(stats.bootstrap_mean(x, seed=seed))))
            for name, x in self.effects.items()
        ]

    def logits(self) -> dict[str, Float[Tensor, "batch d_vocab"]]:
        """What labelled components and all others write at END, read by the final norm's gain and the unembedding."""
        model: Model = self.case.model
        parts, names = decompose(model, self.case.task.clean), self.found.names
        chosen = torch.tensor([name in names for name in parts.names])
        unembed = model.weights().unembed
        return {
            name: unembed(parts.vectors[rows].sum(0), fold_norm=True)
            for name, rows in (("answer_direction", chosen), ("answer_direction_rest", ~chosen))
        }


def named_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of heads with their names, for a table that has other rows beside."""
    return rows.assign(component=[head_name(*place) for place in zip(rows["layer"], rows["head"], strict=True)])


def _flat(sources: attributed.Sources) -> Float[ndarray, "batch component"]:
    """Heads, all tokens summed, and MLPs side by side."""
    heads = attributed.by_prompt(sources.heads.sum(2))
    return np.concatenate([heads.reshape(len(heads), -1), sources.mlps.T.double().numpy()], 1)
