"""Every analysis against truth: how well it finds planted mechanisms, and what it finds where there are none.

An analysis joins by naming the role it should recover (`@analysis(recovers=...)`). It is then run on models with that
mechanism alone, with every mechanism at once, and with none, over architectures and seeds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import TaskError, nearest
from interp.model import load
from interp.registry import Analysis, analyses, analyze, find

SETTINGS = ("alone", "together", "inert")
LEVEL = 0.01  # q below which a head outside the role is a false positive
CHEAP = {"n_prompts": 24, "causal": False}  # enough to rank heads; effects are checked elsewhere


def measured(names: Sequence[str] | None = None) -> list[Analysis]:
    """Analyses that say what they should recover, all or those named.

    Raises:
        TaskError: a named analysis that declares no truth.
    """
    chosen = [find(n) for n in names] if names else list(analyses().values())
    silent = [a.name for a in chosen if a.recovers is None]
    if names and silent:
        raise TaskError(f"{silent[0]!r} does not say which planted role it should recover")
    return [a for a in chosen if a.recovers is not None]


def scoreboard(
    *,
    names: Sequence[str] | None = None,
    seeds: int = 10,
    architectures: Sequence[str] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> pd.DataFrame:
    """One row per (analysis, setting, architecture, seed): how the scores of all heads compare with the truth.

    Columns: `auroc` and `average_precision` of the headline score over heads (NaN where the role is absent), `lowest`
    score of a head that has the role and `highest` of one that has not, `closed_form` of the former, `missed` heads of
    the role that are not labelled, `false_labels` and `false_q` (q < 0.01) among the others, `heads` in all.
    """
    from interp.zoo.factory import ALL, ARCHITECTURES, plant

    known = tuple(ARCHITECTURES)
    for architecture in architectures or ():
        if architecture not in known:
            raise TaskError(f"unknown architecture {architecture!r}; {nearest(architecture, known)}")
    specs = measured(names)
    cases = [(a, s) for a in architectures or known for s in range(seeds)]
    rows = []
    for architecture, seed in progress(cases):
        shared = {
            "together": plant(ALL, architecture=architecture, seed=seed),
            "inert": plant([], architecture=architecture, seed=seed),
        }
        for spec in specs:
            own = [m for m in ALL if any(slot.role == spec.recovers for slot in m.slots)]
            planted = {"alone": plant(own, architecture=architecture, seed=seed), **shared}
            for setting in SETTINGS:
                found = _judge(spec, planted[setting], seed=seed)
                rows.append(
                    {"analysis": spec.name, "setting": setting, "architecture": architecture, "seed": seed} | found
                )
    return pd.DataFrame(rows)


def summary(board: pd.DataFrame) -> pd.DataFrame:
    """The worst over architectures and seeds, and the totals of errors, per analysis and setting."""
    grouped = board.groupby(["analysis", "setting"], sort=False)
    return grouped.agg(
        models=("seed", "size"),
        heads=("heads", "sum"),
        auroc=("auroc", "min"),
        average_precision=("average_precision", "min"),
        lowest=("lowest", "min"),
        highest=("highest", "max"),
        closed_form_error=("closed_form_error", "max"),
        missed=("missed", "sum"),
        false_labels=("false_labels", "sum"),
        false_q=("false_q", "sum"),
    ).reset_index()


def failed(board: pd.DataFrame) -> bool:
    """Whether a planted head is missed, ranked below another, or a head of an inert model is labelled."""
    misranked = (board["auroc"] < 1.0).any()
    return bool(misranked or board["missed"].any() or board["false_labels"].any())


def markdown(table: pd.DataFrame) -> str:
    """A summary as a markdown table."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(_cell(value) for value in row) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3g}"
    return str(value)


def _judge(spec: Analysis, planted: Any, *, seed: int) -> dict[str, float | int]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    model = load(planted.model, tokenizer=planted.tokenizer)
    options = {k: v for k, v in CHEAP.items() if k in inspect.signature(spec.run).parameters}
    rows = analyze(model, spec.name, seed=seed, **options).top(spec.name, variant=spec.headline, k=10**9)
    role = set(planted.truth.roles.get(spec.recovers, ()))
    true = np.array([(layer, head) in role for layer, head in zip(rows["layer"], rows["head"], strict=True)])
    score = rows["value"].to_numpy(dtype=float)
    label = rows["label"].fillna(False).to_numpy(dtype=bool)
    q = rows["q"].to_numpy(dtype=float)
    expected = planted.truth.expected.get(spec.recovers) if role else None
    both = true.any() and not true.all()
    return {
        "heads": len(rows),
        "auroc": float(roc_auc_score(true, score)) if both else np.nan,
        "average_precision": float(average_precision_score(true, score)) if both else np.nan,
        "lowest": score[true].min() if true.any() else np.nan,
        "highest": score[~true].max() if not true.all() else np.nan,
        "closed_form_error": np.nan if expected is None else float(np.abs(score[true] - expected).max()),
        "missed": int((true & ~label).sum()),
        "false_labels": int((label & ~true).sum()),
        "false_q": int(((q < LEVEL) & ~true).sum()),
    }
