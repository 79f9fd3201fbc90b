"""Faithfulness over sizes of circuit, and the two areas that sum it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from circuits.evaluation._faithfulness import Verdict, faithfulness
from circuits.graph.graph import Graph
from interp.edits import Edit
from interp.errors import SchemaError, nearest
from interp.model import Model
from interp.plots._curves import ABOVE
from interp.plots.theme import ACCENT, GRID, MARK, Figure, null_line, template
from interp.plots.titles import heading, titled
from interp.results.provenance import recorded
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of the model's edges: the sizes of the MIB benchmark."""
SELECTIONS = ("top", "greedy")


@dataclass(frozen=True, eq=False)
class Curve:
    """Circuits of rising size from one set of scores, and how faithful each is.

    Attributes:
        fractions: edges asked for, as a fraction of the model's. verdict: the circuits and what they keep.
        provenance: of the call: plain values.
    """

    fractions: tuple[float, ...]
    verdict: Verdict
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def actual(self) -> np.ndarray:
        """Fractions that are left after pruning: what the circuit really costs."""
        return np.array([g.fraction for g in self.verdict.graphs])

    def cpr(self, *, actual: bool = False) -> float:
        """Area under faithfulness over the fraction of edges, by trapezoids: larger is better.

        Half of the area lies between 0.5 and 1 of the edges. Over the fractions asked for, as the benchmark has it; or
        over those that are left after pruning.
        """
        return self._area(self.verdict.faithfulness, actual=actual)

    def cmd(self, *, actual: bool = False) -> float:
        """Area under |1 - faithfulness|: smaller is better, 0 for circuits that behave as the model does."""
        return self._area(np.abs(1 - self.verdict.faithfulness), actual=actual)

    def _area(self, heights: np.ndarray, *, actual: bool) -> float:
        at = self.actual if actual else np.array(self.fractions)
        order = np.argsort(at, kind="stable")
        return float(np.trapezoid(heights[order], at[order]))

    def table(self) -> pd.DataFrame:
        """One row per size, with the fraction asked for beside the one that is left."""
        table = self.verdict.table()
        table.insert(0, "asked", self.fractions)
        return table

    def plot(self) -> go.Figure:
        """Faithfulness over the fraction of edges that are left, with its interval."""
        rows, null = self.table().sort_values("fraction"), null_line()["line"]
        band = pd.concat([rows["ci_high"], rows["ci_low"][::-1]])
        figure = Figure(
            [
                go.Scatter(
                    x=pd.concat([rows["fraction"], rows["fraction"][::-1]]),
                    y=band,
                    fill="toself",
                    line={"width": 0},
                    fillcolor=ACCENT,
                    opacity=0.25,
                    hoverinfo="skip",
                    name="95 % interval",
                ),
                go.Scatter(
                    x=rows["fraction"],
                    y=rows["faithfulness"],
                    mode="lines+markers",
                    line={"color": ACCENT, "width": 2},
                    text=[f"{n} edges" for n in rows["edges"]],
                    name="circuit",
                ),
            ]
        )
        span = [float(rows["fraction"].min()), float(rows["fraction"].max())]
        for height, name, line in (
            (1, "whole model", {"color": MARK, "dash": "dash", "width": 1.5}),
            (0, "null", null),
        ):
            figure.add_scatter(x=span, y=[height] * 2, mode="lines", name=name, line=line, hoverinfo="skip")
        figure.update_layout(template=template(), height=360, legend=ABOVE)
        figure.update_xaxes(type="log", title_text="fraction of edges")
        figure.update_yaxes(title_text="faithfulness", showgrid=True, gridcolor=GRID)
        of = f"faithfulness by size ({len(rows)} circuits)"
        return titled(figure, [*heading(rows.assign(null=0.0), self.provenance, of=of)])


@recorded
def curve(
    model: Model,
    task: PromptTask,
    scored: Graph,
    *,
    fractions: Sequence[float] = FRACTIONS,
    select: str = "greedy",
    absolute: bool = True,
    metric: AnyMetric | None = None,
    ablation: str = "resample",
    reference: PromptTask | None = None,
    batch_size: int = 16,
    edits: Sequence[Edit] = (),
) -> Curve:
    """CPR = integral of f dk and CMD = integral of |1 - f| dk over circuits chosen by score (MIB, arXiv 2504.13151).

    Args:
        model: as in `faithfulness`, like `task`, `metric`, `ablation`, `reference` and `batch_size`.
        task: prompts.
        scored: a graph with a score for every edge.
        fractions: sizes, of the model's edges.
        select: "top", the largest, or "greedy", grown from the logits; pruned either way.
        absolute: by magnitude, else by sign. With signed scores a circuit may exceed faithfulness 1, by leaving out
            what works against the answer.
        metric: what is measured.
        ablation: what a removed edge carries.
        reference: whose prompts means are taken over.
        batch_size: prompts at a time.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: no fractions, or one outside 0 to 1.
    """
    if select not in SELECTIONS:
        raise SchemaError(f"unknown selection {select!r}; {nearest(select, SELECTIONS)}")
    if not fractions or not all(0 <= f <= 1 for f in fractions):
        raise SchemaError(f"fractions {list(fractions)}; expected some between 0 and 1")
    whole = Graph.full(scored.layout, scored.scores)
    sizes = [round(f * scored.layout.n_edges) for f in fractions]
    circuits = [
        whole if size == scored.layout.n_edges else getattr(whole, select)(size, absolute=absolute) for size in sizes
    ]
    verdict = faithfulness(
        model, task, circuits, metric=metric, ablation=ablation, reference=reference, batch_size=batch_size
    )
    return Curve(tuple(fractions), verdict, {"metric": verdict.metric})
