"""Results stored in a folder: what is there, questions to it in SQL, and two runs side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import SchemaError, nearest
from interp.files import HIDDEN
from interp.results import stored
from interp.results.results import Result
from interp.results.sql import ask

KEY = ["analysis", "variant", "component", "position"]
"""What makes a row of one table the counterpart of a row of another."""


@dataclass(frozen=True, eq=False)
class Runs:
    """The results in a folder and below it.

    Attributes:
        table: one row per run, newest first: run, path, model, analyses (or the circuit method), seed, device, rows,
            created, seconds.
        skipped: files that are broken or no results, and why; JSON of other programs is passed over, and so is what a
            killed run left behind.
    """

    folder: Path
    table: pd.DataFrame
    skipped: Mapping[str, str]

    def path(self, run: str) -> Path:
        """File of a run, by its id, the beginning of one, or its path in the folder.

        Raises:
            SchemaError: none, or several, begin so.
        """
        table = self.table
        matches = table[table["run"].str.startswith(run) | (table["path"] == run)]
        if len(matches) > 1:
            raise SchemaError(f"{run!r} is the beginning of {len(matches)} runs: {', '.join(matches['path'])}")
        if not len(matches):
            raise SchemaError(
                f"no run {run!r} in {str(self.folder)!r}; {nearest(run, [*table['run'], *table['path']])}"
            )
        return self.folder / matches["path"].iloc[0]

    def load(self, run: str) -> Result:
        """A stored result; see `path`. Of a circuit its edges."""
        return stored.load(self.path(run))

    def query(self, sql: str) -> pd.DataFrame:
        """Answer of DuckDB to a question about three tables: `runs`, `results` and `interventions`.

        `results` holds the rows of all runs with the run's id in front; a column that only some have is NULL in others.

        Raises:
            SchemaError: DuckDB does not understand the question, what it says of it; or it takes more time, memory or
                rows than `interp.results.sql` allows.
        """
        where = zip(self.table["run"], self.table["path"], strict=True)
        results = [(run, stored.load(self.folder / path)) for run, path in where]
        tables = {
            "runs": self.table,
            "results": _stack([(run, r.table) for run, r in results]),
            "interventions": _stack([(run, r.interventions) for run, r in results]),
        }
        return ask(sql, tables)


def runs(folder: str | Path, *, analysis: str | None = None, model: str | None = None) -> Runs:
    """Results below a folder, those of an analysis or a model if one is named.

    Raises:
        SchemaError: no such folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise SchemaError(f"{str(root)!r} is no folder")
    rows, skipped = [], {}
    for path in _files(root):
        name = str(path.relative_to(root))
        try:
            result = stored.load(path)
            names = [str(n) for n in dict.fromkeys(result.table["analysis"])]
            method = result.provenance.get("method")
            row = _row(result, [str(method)] if method else names, name)
        except stored.NotOurs as error:
            if path.suffix == ".parquet":
                skipped[name] = str(error)
            continue
        except SchemaError as error:
            skipped[name] = str(error)
            continue
        if (analysis is None or analysis in (*names, method)) and (model is None or model == row["model"]):
            rows.append(row)
    columns = ["run", "path", "model", "analyses", "seed", "device", "rows", "created", "seconds"]
    table = pd.DataFrame(rows, columns=columns).sort_values("created", ascending=False, ignore_index=True)
    return Runs(root, table, skipped)


def _files(root: Path) -> list[Path]:
    """What may be results, in order; without what is being written, or was when a run was killed.

    Raises:
        SchemaError: a folder that cannot be read.
    """
    try:
        found = [path for suffix in stored.READ for path in root.rglob(f"*{suffix}")]
    except OSError as error:
        raise SchemaError(f"cannot read {str(root)!r}: {error.strerror or error}") from error
    return sorted(p for p in found if not any(part.startswith(HIDDEN) for part in p.relative_to(root).parts))


def compare(a: Result, b: Result) -> pd.DataFrame:
    """What changed from one result to another: value, interval, b - a, and whether that is more than noise.

    z = (b - a) / sqrt(se_a^2 + se_b^2), for independent prompts; `changed` where |z| >= 1.96, NA where an error is not
    known. Rows that only one of them has are kept, the other side empty. Largest changes first.
    """
    columns = [*KEY, "value", "se", "ci_low", "ci_high"]
    table = a.table[columns].merge(b.table[columns], on=KEY, how="outer", suffixes=("_a", "_b"))
    table["change"] = table["value_b"] - table["value_a"]
    error = np.hypot(table["se_a"], table["se_b"])
    with np.errstate(divide="ignore", invalid="ignore"):
        table["z"] = np.where(error > 0, table["change"] / error, np.nan)
    table["changed"] = (table["z"].abs() >= 1.96).astype("boolean").mask(table["z"].isna())
    return table.sort_values("change", key=lambda s: -s.abs(), kind="stable", ignore_index=True)


def differences(a: Result, b: Result) -> dict[str, tuple[Any, Any]]:
    """What the two runs' provenance says differently: `call.defaults.length` -> (its value in a, in b)."""
    left, right = _flat(a.provenance), _flat(b.provenance)
    every = dict.fromkeys([*left, *right])
    return {key: (left.get(key), right.get(key)) for key in every if left.get(key) != right.get(key)}


def _row(result: Result, names: list[str], path: str) -> dict[str, Any]:
    provenance = result.provenance
    listed = provenance.get("calls")
    calls = [call for call in listed if isinstance(call, Mapping)] if isinstance(listed, list) else []
    own = [provenance] if "run_id" in provenance else calls
    ids = [str(call.get("run_id", "")) for call in own]
    model = provenance.get("model")
    return {
        "run": ids[0] if len(ids) == 1 else "+".join(i[:6] for i in ids[:3]) or Path(path).stem,
        "path": path,
        "model": model.get("name") if isinstance(model, Mapping) else model,
        "analyses": ", ".join(names),
        "seed": provenance.get("seed"),
        "device": provenance.get("device"),
        "rows": len(result.table),
        "created": str(
            provenance.get("created_utc") or max((str(c.get("created_utc", "")) for c in calls), default="")
        ),
        "seconds": _number(provenance.get("seconds", sum(_number(call.get("seconds", 0.0)) for call in calls))),
    }


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else math.nan


def _stack(tables: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    parts = [table.assign(run=run)[["run", *table.columns]] for run, table in tables]
    full = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame({"run": pd.Series(dtype=str)})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value, default=str) if isinstance(value, list | tuple) else value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return leaves
