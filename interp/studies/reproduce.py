"""Our scores beside published ones: rank agreement over all heads, and where named heads stand in our ranking."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp import data
from interp.errors import NotApplicable, SchemaError, UnknownEntry, nearest
from interp.loading.load import load
from interp.measurement.registry import analyze, find
from interp.model import Model
from interp.results.stats import spearman
from interp.shapes import brief
from interp.studies.published import Ours, Published, likes

FOLDER, FILE = "published", "heads.json"
TOP = 10
ROW = ("what", "analysis", "variant", "heads", "spearman", "p", "k", "overlap", "chance", "source", "why")


@dataclass(frozen=True, eq=False)
class Agreement:
    """How two measurements of the same heads agree.

    Attributes:
        table: one row per comparison: `what`, `analysis`, `variant`, `heads` compared, `spearman` and its `p` (NaN for
            named heads), `k`, `overlap` (of their k best heads the share that is among our k best), `chance` of that (k
            / heads of the model), `source`, `why` (what kept it from being measured).
        ours: our scores: analysis, variant, component, value, and `published` where a number was.
    """

    table: pd.DataFrame
    ours: pd.DataFrame

    __repr__ = brief


def names() -> tuple[str, ...]:
    """Models of the hub whose heads papers have named."""
    return tuple(_named())


def named(name: str) -> Mapping[str, Any]:
    """What papers named in a model: hub id, revision, and heads with role and source.

    Raises:
        SchemaError: no such model; names the nearest.
    """
    entries = _named()
    if name not in entries:
        raise UnknownEntry(f"no heads are on record for {name!r}; {nearest(name, entries)}")
    return entries[name]


def reproduce(
    model: Model | str,
    *,
    published: pd.DataFrame | str | Path | None = None,
    where: Mapping[str, Any] | None = None,
    scores: Mapping[str, str] | None = None,
    k: int = TOP,
    seed: int = 0,
    **how: Any,
) -> Agreement:
    """Measure what others measured, and compare: published scores of all heads, and heads named by papers.

    Args:
        model: a loaded model, what `load` takes, or one of `names()`, which is loaded and its named heads sought.
        published: table or file (.csv, .parquet) of scores, with a row for each head and score: columns `score`,
            `layer`, `head`, `value`; `source` is quoted.
        where: values of further columns that tell the model's rows from others: `{"model": "gpt2-small"}`.
        scores: name of a published score -> ours, as `analysis.variant`, where none is on record (`published.likes`) or
            another is wanted.
        k: heads compared at the top of both rankings.
        seed: of prompts and intervals.
        how: options of `load`.

    Raises:
        SchemaError: nothing to compare with; a table that is not of that form, or of a model of another shape.
        ModelLoadError: the model cannot be loaded.
    """
    entry = _named().get(model) if isinstance(model, str) else None
    table = None if published is None else Published.of(published, where)
    pairs = {} if table is None else {name: like(name, scores) for name in table.scores}
    if table is None and entry is None:
        raise SchemaError("nothing to compare with: give a table of published scores, or one of " + ", ".join(names()))
    subject = _subject(model, entry, how)
    parts = list(_of_scores(subject, table, pairs, k=k, seed=seed)) if table is not None else []
    parts += _of_named(subject, entry, seed=seed) if entry is not None else []
    ours = [part for _, part in parts if part is not None]
    return Agreement(
        pd.DataFrame([row for row, _ in parts]).reindex(columns=list(ROW)),
        pd.concat(ours, ignore_index=True) if ours else pd.DataFrame(),
    )


def like(name: str, scores: Mapping[str, str] | None = None) -> Ours:
    """Our score that a published one is compared with.

    Raises:
        SchemaError: none is known; say which by `scores`.
    """
    known = likes()
    ours = Ours.of(scores[name]) if scores and name in scores else known.get(name)
    if ours is None:
        raise SchemaError(
            f"no score of ours is on record for {name!r} ({', '.join(known)} are); say which: {name}=analysis.variant"
        )
    find(ours.analysis)
    return ours


def compare(joined: pd.DataFrame, *, k: int = TOP) -> dict[str, float | int]:
    """Spearman's rho of the columns `value` and `published` over heads, and the overlap of their k best.

    p is that of no association, two-sided. The overlap at random is k / heads. A tie at the border is cut by order.
    """
    both = joined.dropna(subset=["value", "published"])
    rank = spearman(both["value"], both["published"])
    k = min(k, len(both))
    best = [set(both.nlargest(k, column)["component"]) for column in ("value", "published")]
    return {
        "heads": len(both),
        "spearman": rank.rho,
        "p": rank.p,
        "k": k,
        "overlap": len(best[0] & best[1]) / k,
        "chance": k / len(both),
    }


def head_overlap(ours: pd.DataFrame, heads: Sequence[str]) -> dict[str, float | int]:
    """Share of the k named heads that are among our k best."""
    unknown = [h for h in heads if h not in set(ours["component"])]
    if unknown:
        raise SchemaError(f"the model has no head {unknown[0]}: is it another one than the paper's?")
    k = len(heads)
    best = set(ours.nlargest(k, "value")["component"])
    overlap = len(best & set(heads)) / k
    return {"heads": len(ours), "spearman": np.nan, "p": np.nan, "k": k, "overlap": overlap, "chance": k / len(ours)}


Part = tuple[dict[str, Any], pd.DataFrame | None]
"""A row of the agreement, and our scores behind it where they could be measured."""


def _named() -> dict[str, Mapping[str, Any]]:
    return data.read_json(data.path(FOLDER, FILE))["models"]


def _subject(model: Model | str, entry: Mapping[str, Any] | None, how: Mapping[str, Any]) -> Model:
    if not isinstance(model, str):
        return model
    if entry is None:
        return load(model, **how)
    return load(entry["model"], **{"revision": entry["revision"], **how})


def _of_scores(model: Model, table: Published, pairs: Mapping[str, Ours], *, k: int, seed: int) -> Iterator[Part]:
    """Published scores of all heads beside ours."""
    for name, ours in pairs.items():
        theirs = table.of_heads(model, name)
        row: dict[str, Any] = {"what": name, "analysis": ours.analysis, "variant": ours.variant, "source": table.source}
        try:
            found = _ours(model, ours, seed=seed).merge(theirs, on=["layer", "head"], how="left")
            if found["value"].notna().sum() == 0:
                raise NotApplicable(f"{ours.analysis}.{ours.variant} has no value for any head of this model")
            yield {**row, **compare(found, k=k)}, found.assign(analysis=ours.analysis, variant=ours.variant)
        except NotApplicable as error:
            yield {**row, "why": str(error)}, None


def _of_named(model: Model, entry: Mapping[str, Any], *, seed: int) -> Iterator[Part]:
    """Heads named by papers in our ranking."""
    for spec in entry["heads"]:
        ours = Ours(spec["analysis"], spec["variant"], tuple(spec.get("options", {}).items()))
        row = {"what": spec["role"], "analysis": ours.analysis, "variant": ours.variant, "source": spec["source"]}
        try:
            found = _ours(model, ours, seed=seed)
        except NotApplicable as error:
            yield {**row, "why": str(error)}, None
            continue
        yield (
            {**row, **head_overlap(found, spec["heads"])},
            found.assign(analysis=ours.analysis, variant=ours.variant),
        )


def _ours(model: Model, score: Ours, *, seed: int) -> pd.DataFrame:
    """Our scores of heads.

    Raises:
        NotApplicable: the analysis cannot be run on the model.
        SchemaError: no such variant, or one that is not of heads.
    """
    options = dict(score.options)
    effects = "causal" in inspect.signature(find(score.analysis).run).parameters and "causal" not in options
    table = analyze(model, score.analysis, seed=seed, **({"causal": False} if effects else {}), **options).table
    if effects and score.variant not in set(table["variant"]):  # one that is of what removal does
        table = analyze(model, score.analysis, seed=seed, **options).table
    rows = table[table["variant"] == score.variant]
    if rows.empty:
        variants = list(dict.fromkeys(table["variant"]))
        raise SchemaError(f"{score.analysis} gave no variant {score.variant!r}; {nearest(score.variant, variants)}")
    if rows["head"].isna().any():
        raise SchemaError(f"{score.analysis}.{score.variant} is not a score of heads")
    return rows[["layer", "head", "component", "value"]].reset_index(drop=True)
