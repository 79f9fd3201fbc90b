"""What is lost where queries see their first keys and their last ones alone? Loss and needles against the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import tasks
from interp.edits import Edit, KnockOut, SinkWindow
from interp.errors import NotApplicable
from interp.measurement.needle_answers import chunks, each_answer, needle_ability
from interp.measurement.registry import Findings, analysis
from interp.measurement.rerun import Rerun
from interp.measurement.scoring import interval_columns
from interp.model import Model
from interp.results import stats
from interp.tasks import needles
from interp.tasks.haystacks import Format

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LEAST = 3  # prompts, for a test over them


def _budgets(rows: pd.DataFrame) -> go.Figure:
    """What windows of each size cost, with first keys, without them, and random keys of the same number."""
    from interp.results.figures import over

    return over(rows, "window", title="window (tokens)", by="keys", null="as many at random")


@analysis(
    name="attention_window",
    family="sink",
    title="Windows of attention",
    unit="model",
    headline="loss_rise",
    order=47,
    figure=_budgets,
    figures={"needle_accuracy": _budgets},
    quick={"n_prompts": 4, "length": 64, "windows": (8,)},
    exemptions={
        "planted": "what a whole model loses; tests/probes/attention/test_attention_window.py asks planted ones",
    },
    columns={"keys": "str", "sinks": "Int64", "window": "Int64"},
    means="How much worse each token is predicted where attention is limited to a window: what the model takes from "
    "further away, or breaks without. Where a few first keys bring it back, it was those that were missed.",
    misleads="A mask, not a cache: positions stay those of the whole prompt. On random tokens, or text that needs "
    "nothing from afar, a small window costs nothing, and that says nothing of other text; see needle_accuracy.",
    reference="Xiao et al. 2023, arXiv 2309.17453 (4 first keys)",
)
def attention_window(
    model: Model,
    *,
    n_prompts: int = 8,
    length: int = 256,
    sinks: int = 4,
    windows: Sequence[int] = (16, 32, 64, 128),
    compensate: bool = False,
    n_needles: int = 3,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Loss rise: mean of -log p(token) with attention limited to a window, less that with all of it, in nats.

    Prompts are needles in haystacks. For each window w, rows by the column `keys`: "window" (query i sees the last w
    keys), "window and sinks" (besides, the prompt's first `sinks`) and "window and mean" (with `compensate`: what is
    left out stands there as one key). Variants:
      loss_rise        over all tokens; null: that of as many random earlier keys for each query, itself among them; p
                       tests over prompts that it is not above 0; q is Benjamini-Hochberg over all rows;
      needle_accuracy  share of needles whose value ranks first, null that of random keys; the row with keys "all" has
                       no limit.

    Args:
        model: any loaded model with causal attention.
        n_prompts: haystacks, the unit of the interval.
        length: tokens per prompt.
        sinks: first keys that are always seen.
        windows: w; those that leave nothing out of these prompts are not run.
        compensate: also with the mean of what is left out.
        n_needles: needles per prompt.
        task: how a needle is told and asked for.
        bos: "default", "forced" or "none".
        seed: of prompts, random keys and bootstrap.

    Raises:
        NotApplicable: no room for a haystack, or no window that leaves anything out.

    Reference: Xiao et al. 2023 (arXiv 2309.17453), sections 3 and 4. There positions count within the cache.
    """
    hidden = needles.hide(
        model, n=max(n_prompts, LEAST), length=length, n_needles=n_needles, task=task, bos=bos, seed=seed
    )
    n = int(hidden.batch.mask.sum(1).min())
    short = [w for w in dict.fromkeys(windows) if w + sinks < n]
    if not short:
        raise NotApplicable(f"prompts of {n} tokens fit into every window of {sorted(windows)} and {sinks} first keys")
    run, batch = Rerun(model), model.batch(hidden.batch)
    before, found = _losses(run, hidden, ()), each_answer(run, hidden)[0]
    rows = [_row("needle_accuracy", "all", None, None, found, None, seed)]
    kinds = [("window", 0, False), ("window and sinks", sinks, False)] + [("window and mean", sinks, True)] * compensate
    generator = torch.Generator().manual_seed(seed)
    for window in short:
        for keys, first, mean in kinds:
            edit = SinkWindow("pattern", first, window, mean)
            random = KnockOut("pattern", pairs=~random_keys(batch.ids.shape[1], first + window, generator))
            rise, control = (_losses(run, hidden, [e]) - before for e in (edit, random))
            rows.append(_row("loss_rise", keys, first, window, rise, control, seed))
            right, other = (each_answer(run, hidden, [e])[0] for e in (edit, random))
            rows.append(_row("needle_accuracy", keys, first, window, right, other, seed))
    rows.sort(key=lambda row: row["variant"])  # type: ignore[arg-type, return-value]  # a text
    q = stats.benjamini_hochberg(np.array([row["p"] for row in rows], dtype=float))
    rows = [{**row, "q": q[i]} for i, row in enumerate(rows)]
    data = {**hidden.describe(), "bos": bos, "loss_nats": float(before.mean()), "sha256": tasks.fingerprint([batch])}
    return Findings(rows, data, ability=needle_ability(found, model))


def random_keys(n: int, budget: int, generator: torch.Generator) -> Bool[Tensor, "query key"]:
    """`budget` keys for each query at random: itself, and others before it; all where there are no more."""
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    draw = torch.rand(n, n, generator=generator).masked_fill(~seen, -1.0)
    draw.diagonal().fill_(2.0)
    return torch.zeros_like(seen).scatter_(1, draw.topk(min(budget, n), -1).indices, True) & seen


def _losses(run: Rerun, hidden: needles.Needles, edits: Sequence[Edit]) -> Float[np.ndarray, " prompt"]:
    """Mean loss of each prompt's tokens but the first, in nats."""
    parts = []
    for some in chunks(range(len(hidden.batch.ids)), hidden.batch.ids.shape[1] * run.model.info.d_vocab):
        batch = hidden.batch.select(slice(some[0], some[-1] + 1))
        logits = run(batch, edits)[:, :-1].float().cpu()
        real = batch.mask[:, 1:].cpu()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:].cpu(), reduction="none")
        parts.append((loss * real).sum(1) / real.sum(1))
    return torch.cat(parts).double().numpy()


def _row(
    variant: str,
    keys: str,
    sinks: int | None,
    window: int | None,
    values: Float[np.ndarray, " unit"],
    control: Float[np.ndarray, " unit"] | None,
    seed: int,
) -> dict[str, object]:
    score = interval_columns(stats.bootstrap_mean(values, seed=seed))
    return {
        "variant": variant,
        "unit": "nats" if variant == "loss_rise" else "fraction",
        "keys": keys,
        "sinks": sinks,
        "window": window,
        **score,
        "null": np.nan if control is None else float(control.mean()),
        "p": float(stats.p_above(values)) if variant == "loss_rise" else np.nan,
    }
