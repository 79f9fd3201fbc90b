"""Scores of all edges, prompt by prompt: intervals, parts by token role, and how stable a circuit is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray

from circuits.graph import select
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from interp.components import EMBED
from interp.errors import SchemaError, nearest
from interp.parallel import cached_property
from interp.results.stats import bootstrap_mean, resample
from interp.shapes import brief

COLUMNS = 2048
"""Edges resampled at one time."""
CHOICES = {"greedy": select.greedy, "top": select.top}


@dataclass(frozen=True, eq=False)
class Stability:
    """How much a circuit changes when its prompts are drawn again.

    Attributes:
        n: edges of each circuit. to_full: Jaccard overlap of each resampled circuit with that of all prompts.
        pairwise: mean overlap of two resampled circuits. sign: fraction of resamples in which each edge of the circuit
            keeps its sign.
    """

    n: int
    to_full: Float[ndarray, " resample"]
    pairwise: float
    sign: Float[ndarray, " edge"]

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row: overlaps, and the share of edges whose sign holds in 95 % of resamples."""
        low, middle, high = np.quantile(self.to_full, (0.025, 0.5, 0.975))
        return pd.DataFrame(
            [
                {
                    "edges": self.n,
                    "to_full": float(self.to_full.mean()),
                    "median": middle,
                    "ci_low": low,
                    "ci_high": high,
                    "pairwise": self.pairwise,
                    "sign_stable": float((self.sign >= 0.95).mean()) if len(self.sign) else float("nan"),
                    "n": len(self.to_full),
                }
            ]
        )


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """What each edge scored on each prompt.

    Attributes:
        layout: the model's components.
        mean: score of each edge, mean over prompts; 0 where there is no edge.
        prompts: the same for each prompt, None where it was not kept.
        roles: mean scores by token role, the parts of which `mean` is the sum; empty unless asked for.
        residual: |sum of edges out of `embed` - change of the metric| / |change|, the change from the prompts where the
            path begins to those where it ends. For integrated gradients along the inputs the error of the
            quadrature; for one gradient, how far the metric is from linear. NaN where the metric does not change.
        provenance: of the call, with method, metric and residuals: plain values.
    """

    layout: Layout
    mean: Float[ndarray, "sender slot"]
    prompts: Float[ndarray, "prompt sender slot"] | None
    residual: float
    provenance: Mapping[str, Any]
    roles: Mapping[str, Float[ndarray, "sender slot"]] = field(default_factory=dict)

    def __repr__(self) -> str:
        extent = "means only" if self.prompts is None else f"{len(self.prompts)} prompts"
        return (
            f"EdgeScores({self.provenance['method']}, {self.layout.n_edges} edges, {extent}, {self.residual:.2%} left)"
        )

    @cached_property
    def graph(self) -> Graph:
        """All edges with their scores; `se`, `ci_low` and `ci_high` (bootstrap over prompts, 95 %) beside them."""
        return Graph.full(self.layout, self.mean, provenance=self.provenance, columns=self._intervals())

    def role(self, name: str) -> Graph:
        """All edges with the part of their scores that is read at tokens of one role ("other": at none's).

        Raises:
            SchemaError: scores were not kept apart, or there is no such role.
        """
        if not self.roles:
            raise SchemaError("scores were not kept apart by role; ask for by_role=True")
        if name not in self.roles:
            raise SchemaError(f"no token has the role {name!r}; {nearest(name, self.roles)}")
        return Graph.full(self.layout, self.roles[name], provenance={**self.provenance, "role": name})

    def table(self) -> pd.DataFrame:
        """One row per edge, strongest first, with its interval, and one column per role where they are apart."""
        table = self.graph.table()
        if self.roles:
            places = [self.layout.place((e.sender, e.receiver, e.port)) for e in table.itertuples()]  # type: ignore[attr-defined]
            rows, columns = np.array(places).T
            for name, scores in self.roles.items():
                table[f"at {name}"] = scores[rows, columns]
        return table

    def stability(
        self, n: int, *, how: str = "greedy", absolute: bool = True, resamples: int = 50, seed: int = 0
    ) -> Stability:
        """Circuits of n edges, unpruned, from prompts drawn with replacement, compared with each other and that of all.

        Raises:
            SchemaError: scores of single prompts were not kept, or an unknown way of choosing.
        """
        if how not in CHOICES:
            raise SchemaError(f"unknown way of choosing edges {how!r}; {nearest(how, CHOICES)}")
        prompt_scores = self._prompt_scores()
        weights = resample(len(prompt_scores), seed=seed, n_resamples=resamples)
        draws = weights @ prompt_scores.reshape(len(prompt_scores), -1)

        def circuit_mask(scores: ndarray) -> Bool[ndarray, " edge"]:
            mask = CHOICES[how](scores.reshape(self.mean.shape), self.layout, n, absolute=absolute)
            return mask[self.layout.exists]

        full = circuit_mask(self.mean)
        masks = np.stack([circuit_mask(scores) for scores in draws])
        exists = self.layout.exists.ravel()
        signs = np.sign(draws[:, exists][:, full]) == np.sign(self.mean.ravel()[exists][full])
        overlap = _jaccard(masks, masks)
        pairs = overlap[np.triu_indices(resamples, 1)]
        return Stability(n, _jaccard(masks, full[None])[:, 0], float(pairs.mean()), signs.mean(0))

    def _prompt_scores(self) -> Float[ndarray, "prompt sender slot"]:
        if self.prompts is None:
            raise SchemaError("scores of single prompts were not kept: keep_prompts=False leaves nothing to resample")
        return self.prompts

    def _intervals(self, *, seed: int = 0) -> dict[str, ndarray]:
        if self.prompts is None:
            return {}
        exists = self.layout.exists
        flat = self.prompts[:, exists]
        parts = [
            bootstrap_mean(flat[:, i : i + COLUMNS].astype(np.float64), seed=seed)
            for i in range(0, flat.shape[1], COLUMNS)
        ]
        columns = {}
        for name, field_ in (("se", "se"), ("ci_low", "low"), ("ci_high", "high")):
            columns[name] = np.full(exists.shape, np.nan)
            columns[name][exists] = np.concatenate([getattr(part, field_) for part in parts])
        return columns


def left_over(layout: Layout, mean: Float[ndarray, "sender slot"], change: float) -> float:
    """|sum of edges out of `embed` - change| / |change|; NaN where nothing changes."""
    total = float(mean[layout.sender_index[EMBED]].sum())
    return abs(total - change) / abs(change) if abs(change) > np.finfo(np.float32).eps else float("nan")


def _jaccard(a: Bool[ndarray, "row edge"], b: Bool[ndarray, "column edge"]) -> Float[ndarray, "row column"]:
    both = a.astype(np.float32) @ b.T.astype(np.float32)
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
