"""Every analysis against truth: how well it finds planted mechanisms, and what it finds where there are none.

An analysis joins by declaring how planted models judge it (`@analysis(planted=PlantedTask(...))`), a plug-in as well.
It is then run on models with what it should recover alone, with every mechanism at once, and with none, over
architectures and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.components import head_names
from interp.errors import NotApplicable, TaskError, UnknownTask, nearest
from interp.loading.load import load
from interp.measurement.planted import cheap, mechanisms, planted_task, questions
from interp.measurement.registry import Analysis, analyses, analyze, find
from interp.parallel import each

SETTINGS = ("alone", "together", "inert")
LEVEL = 0.01  # q below which a head outside the role is a false positive
ROUNDING = 1e-9  # of an area added up from trapezia
SCORES = ("auroc", "average_precision", "lowest", "highest", "closed_form_error")


def judged_analyses(names: Sequence[str] | None = None) -> list[Analysis]:
    """Analyses that say what they should recover, all or those named.

    Raises:
        TaskError: a named analysis that declares no truth.
    """
    specs = [find(n) for n in names] if names else list(analyses().values())
    silent = [a.name for a in specs if a.planted is None]
    if names and silent:
        raise TaskError(f"{silent[0]!r} does not say which planted role it should recover")
    return [a for a in specs if a.planted is not None]


def scoreboard(
    *,
    names: Sequence[str] | None = None,
    seeds: int = 10,
    architectures: Sequence[str] | None = None,
    settings: Sequence[str] = SETTINGS,
    jobs: int = 1,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> pd.DataFrame:
    """One row per (analysis, setting, architecture, seed): how the scores of all heads compare with the truth.

    Columns: `auroc` and `average_precision` of the headline score over heads (NaN where the role is absent), `lowest`
    score of a head that has the role and `highest` of one that has not, `closed_form_error` of the former (relative),
    `missed` heads of the role that are not labelled, `false_labels` and `false_q` (q < 0.01) among the others, `heads`
    in all: 0 where the analysis refuses a model without the role, as one that does not know what it asks. `settings`:
    a model with what the analysis looks for alone, with all mechanisms together, inert. `jobs` architectures and seeds
    are judged at a time, in processes.

    Raises:
        TaskError: an unknown architecture or setting, or a named analysis that declares no truth.
    """
    from interp.zoo.planted.factory import ARCHITECTURES

    all_names = tuple(ARCHITECTURES)
    for what, values, valid in (("architecture", architectures or (), all_names), ("setting", settings, SETTINGS)):
        for name in values:
            if name not in valid:
                raise UnknownTask(f"unknown {what} {name!r}; {nearest(name, valid)}")
    specs = judged_analyses(names)
    cases = [(a, s) for a in architectures or all_names for s in range(seeds)]
    case_rows = each(lambda case: list(_case(specs, settings, *case)), cases, jobs=jobs, progress=progress)
    return pd.DataFrame([row for rows in case_rows for row in rows])


def _case(specs: Sequence[Analysis], settings: Sequence[str], architecture: Any, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of all analyses on the models of one architecture and seed."""
    from interp.zoo.planted.factory import ALL, plant

    together = plant(ALL, architecture=architecture, seed=seed)
    # In the same words: what can be asked is the same, and nothing is there to be found.
    inert = plant([], architecture=architecture, seed=seed, n_words=together.vocab.n_words)
    models = {"together": together, "inert": inert}
    for spec in specs:
        for setting in settings:
            planted = models.get(setting) or plant(mechanisms(spec), architecture=architecture, seed=seed)
            agreement = judge(spec, planted, seed=seed)
            yield {"analysis": spec.name, "setting": setting, "architecture": architecture, "seed": seed} | agreement


def summary(board: pd.DataFrame) -> pd.DataFrame:
    """The worst over architectures and seeds, and the totals of errors, per analysis and setting."""
    groups = board.groupby(["analysis", "setting"], sort=False)
    return groups.agg(
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
    misranked = (board["auroc"] < 1.0 - ROUNDING).any()
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


def judge(spec: Analysis, planted: Any, *, seed: int) -> dict[str, float | int]:
    """How the headline scores of a planted model's heads compare with its truth: the columns of `scoreboard`."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    model = load(planted.model, tokenizer=planted.tokenizer)
    options = questions(spec, planted, seed=seed)
    parts = set(planted.truth.parts(planted_task(spec).recovers))
    try:
        result = analyze(model, spec.name, seed=seed, **cheap(spec) | options)
    except NotApplicable:
        if parts:
            raise
        return {"heads": 0, **dict.fromkeys(SCORES, np.nan), "missed": 0, "false_labels": 0, "false_q": 0}
    rows = result.top(spec.name, variant=spec.headline, k=10**9)
    true = rows["component"].isin(parts).to_numpy(dtype=bool)
    score = rows["value"].to_numpy(dtype=float)
    if spec.two_sided:
        score = np.abs(score)
    label = rows["label"].fillna(False).to_numpy(dtype=bool)
    q = rows["q"].to_numpy(dtype=float)
    # What the prompts of a task show is known where norms are the identity alone.
    has_ideal = bool(planted.truth.effects) or not options
    unit = str(rows["unit"].iloc[0]) if has_ideal else ""
    ideal = np.array([_closed_form(planted, name, unit) for name in rows["component"]])
    error = np.abs(score / ideal - 1)[true]
    both = true.any() and not true.all()
    return {
        "heads": len(rows),
        "auroc": float(roc_auc_score(true, score)) if both else np.nan,
        "average_precision": float(average_precision_score(true, score)) if both else np.nan,
        "lowest": score[true].min() if true.any() else np.nan,
        "highest": score[~true].max() if not true.all() else np.nan,
        "closed_form_error": np.nan if np.isnan(error).all() else float(np.nanmax(error)),
        "missed": len(parts.difference(rows.loc[label, "component"])),
        "false_labels": int((label & ~true).sum()),
        "false_q": int(((q < LEVEL) & ~true).sum()),
    }


def _closed_form(planted: Any, name: str, unit: str) -> float:
    """What a planted head scores: its attention, all of a fraction, what it adds to the logits; NaN where unknown."""
    truth = planted.truth
    for mechanism in planted.mechanisms:
        for slot in mechanism.slots:
            if name in head_names(truth.roles[slot.role]):
                by_unit = {
                    "probability": truth.expected.get(slot.role),
                    "fraction": 1.0,
                    "logit": truth.effects.get(mechanism.name, {}).get(slot.role),
                }
                return float(by_unit.get(unit) or np.nan)
    return np.nan
