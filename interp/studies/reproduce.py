"""Our scores beside published ones: rank agreement over all heads, and where named heads stand in our ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

FOLDER = "published"
TOP = 10


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
    """Published tables there are."""
    return tuple(_tables())


def published(name: str) -> Mapping[str, Any]:
    """Entry of a table: hub id, source, scores, named heads.

    Raises:
        SchemaError: no such table; names the nearest.
    """
    tables = _tables()
    if name not in tables:
        raise UnknownEntry(f"no published table {name!r}; {nearest(name, tables)}")
    return tables[name]


def reproduce(name: str, model: Model | None = None, *, k: int = TOP, seed: int = 0, **how: Any) -> Agreement:
    """Measure what a published table measured, and compare; `how` goes to `load` where no model is given.

    Raises:
        SchemaError: no such table, or a model of another shape than the table's.
        ModelLoadError: the hub cannot be reached.
    """
    entry = published(name)
    subject = load(entry["model"], revision=entry["revision"], **how) if model is None else model
    rows, tables = [], []
    for spec in entry["scores"]:
        theirs = pd.read_csv(data.path(FOLDER, entry["file"]))
        theirs = theirs.rename(columns={spec["column"]: "published"})[["layer", "head", "published"]]
        ours = _ours(subject, spec, seed=seed)
        table = _pairs(ours, theirs, name)
        rows.append({"what": spec["column"], **_which(spec), **compare(table, k=k), "source": entry["source"]})
        tables.append(table.assign(**_which(spec)))
    for spec in entry["heads"]:
        row: dict[str, Any] = {"what": spec["role"], **_which(spec), "source": spec["source"]}
        try:
            ours = _ours(subject, spec, seed=seed)
        except NotApplicable as error:
            rows.append({**row, "why": str(error)})
            continue
        rows.append({**row, **head_overlap(ours, spec["heads"])})
        tables.append(ours.assign(**_which(spec)))
    columns = ["what", "analysis", "variant", "heads", "spearman", "p", "k", "overlap", "chance", "source", "why"]
    return Agreement(pd.DataFrame(rows).reindex(columns=columns), pd.concat(tables, ignore_index=True))


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
        raise SchemaError(f"the model has no head {unknown[0]}: is it another one than the table's?")
    k = len(heads)
    best = set(ours.nlargest(k, "value")["component"])
    overlap = len(best & set(heads)) / k
    return {"heads": len(ours), "spearman": np.nan, "p": np.nan, "k": k, "overlap": overlap, "chance": k / len(ours)}


def _tables() -> dict[str, Mapping[str, Any]]:
    return data.read_json(data.path(FOLDER, "tables.json"))["tables"]


def _which(spec: Mapping[str, Any]) -> dict[str, str]:
    return {"analysis": spec["analysis"], "variant": spec["variant"]}


def _ours(model: Model, spec: Mapping[str, Any], *, seed: int) -> pd.DataFrame:
    find(spec["analysis"])
    table = analyze(model, spec["analysis"], seed=seed, **spec.get("options", {})).table
    rows = table[table["variant"] == spec["variant"]]
    return rows[["layer", "head", "component", "value"]].reset_index(drop=True)


def _pairs(ours: pd.DataFrame, theirs: pd.DataFrame, name: str) -> pd.DataFrame:
    if len(ours) != len(theirs):
        raise SchemaError(f"{name}: {len(theirs)} heads were published, and this model has {len(ours)}")
    table = ours.merge(theirs.astype({"layer": "Int64", "head": "Int64"}), on=["layer", "head"], how="inner")
    if len(table) != len(ours):
        raise SchemaError(f"{name}: layers or heads of the published table are not those of this model")
    return table
