"""How copying emerges in training: the induction score and the copying accuracy of one checkpoint after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from interp.errors import TaskError
from interp.loading.load import load
from interp.measurement.planted import cheap
from interp.measurement.registry import analyses, analyze
from interp.model import Model
from interp.shapes import brief
from interp.tasks import repeated_random

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformers import PreTrainedTokenizerBase

PERIOD, PROMPTS = 32, 16
ROLE = "induction"
"""Role in planted models, and column of the table: heads that copying on rests on."""


@dataclass(frozen=True, eq=False)
class Dynamics:
    """What was measured along a training run."""

    table: pd.DataFrame
    """One row per checkpoint: `step`, `induction` (highest prefix-matching score of a head, probability), `component`
    that has it, `accuracy` (fraction) and `loss` (nats) on the second copy of a repeated block."""
    heads: dict[int, pd.DataFrame]

    __repr__ = brief
    """Step -> prefix-matching rows of every head."""

    def rise(self) -> tuple[int, int]:
        """The steps of neighbouring checkpoints between which the induction score rises most."""
        climbs = self.table[ROLE].diff().iloc[1:]
        after = int(climbs.to_numpy().argmax()) + 1
        return int(self.table["step"].iloc[after - 1]), int(self.table["step"].iloc[after])

    def plot(self) -> go.Figure:
        """Score and accuracy against step, over the head maps on both sides of the rise."""
        from interp.plots.heads import before_and_after
        from interp.plots.titles import null_text, sample, titled

        before, after = self.rise()
        figure = before_and_after(self.table, self.heads[before], self.heads[after], steps=(before, after), score=ROLE)
        rows = self.heads[after]
        span = f"{len(self.table)} checkpoints, steps {self.table['step'].min():,} to {self.table['step'].max():,}"
        return titled(figure, ["training dynamics", span, sample(rows, {}), null_text(rows)])


def dynamics(
    checkpoints: Sequence[tuple[int, Path]],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    n_prompts: int = 24,
    seed: int = 0,
) -> Dynamics:
    """Induction score, copying accuracy and loss of every (step, folder), as `interp.zoo.checkpoints` lists them.

    All checkpoints see the same prompts. The score is the headline of the first analysis that recovers planted
    induction heads, of attention alone (`causal=False`).

    Raises:
        TaskError: fewer than two checkpoints, between which nothing can be seen to rise.
    """
    if len(checkpoints) < 2:
        raise TaskError(f"training dynamics need two checkpoints or more, got {len(checkpoints)}")
    spec = next(a for a in analyses().values() if a.planted is not None and a.planted.recovers == ROLE)
    rows, heads = [], {}
    for step, folder in checkpoints:
        model = load(folder, tokenizer=tokenizer)
        options: dict[str, Any] = cheap(spec) | {"n_prompts": n_prompts}
        result = analyze(model, spec.name, seed=seed, **options)
        heads[step] = result.top(spec.name, variant=spec.headline, k=10**9)
        best = heads[step].iloc[0]
        row = {"step": step, ROLE: float(best["value"]), "component": best["component"]}
        rows.append(row | copying(model, seed=seed))
    return Dynamics(pd.DataFrame(rows), heads)


def copying(model: Model, *, period: int = PERIOD, n: int = PROMPTS, seed: int = 0) -> dict[str, float]:
    """Greedy accuracy (fraction) and loss (nats) on the second copy of a random block, its first token left out."""
    (group,) = repeated_random(model, lengths=[period], n_each=n, bos="default", seed=seed)
    logits = model.run(group.batch).logits
    assert logits is not None
    targets = group.batch.ids[:, group.second[1] :]
    predicted_logits = logits[:, group.second[0] : group.second[-1]].float().cpu()
    loss = torch.nn.functional.cross_entropy(predicted_logits.transpose(1, 2), targets.cpu())
    return {"accuracy": (predicted_logits.argmax(-1) == targets.cpu()).float().mean().item(), "loss": loss.item()}
