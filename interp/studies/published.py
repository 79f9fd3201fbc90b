"""Scores of heads that others have published: tables in one documented form, read, narrowed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp import data
from interp.components import head_name
from interp.errors import SchemaError, nearest
from interp.model import Model
from interp.shapes import brief

COLUMNS = ("score", "layer", "head", "value")
"""Of a table in the documented form, a row for each head and score; whatever else it has tells rows apart."""
LEVEL_COLUMN, READERS = "score", {".csv": pd.read_csv, ".parquet": pd.read_parquet}
FILES = ", ".join(READERS)


@dataclass(frozen=True)
class Ours:
    """Which of our scores measures the same: analysis, variant and its options."""

    analysis: str
    variant: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, text: str) -> Ours:
        """From `analysis.variant`.

        Raises:
            SchemaError: not of that form.
        """
        analysis, dot, variant = text.partition(".")
        if not (analysis and dot and variant):
            raise SchemaError(
                f"{text!r} is no score of ours; write analysis.variant, such as induction.prefix_matching"
            )
        return cls(analysis, variant)


def likes() -> dict[str, Ours]:
    """Names of scores in published tables -> what of ours is measured alike, by `datasets/published/scores.json`.

    Activations stand beside activations there, and weights beside weights.
    """
    entries = data.read_json(data.path("published", "scores.json"))["scores"]
    return {
        name: Ours(entry["analysis"], entry["variant"], tuple(entry["options"].items()))
        for name, entry in entries.items()
    }


@dataclass(frozen=True, eq=False)
class Published:
    """A table of published scores of one model: `score`, `layer`, `head`, `value`, and where it came from.

    Raises:
        SchemaError: a column that is missing, numbers that are none, or several values for one head and score.
    """

    table: pd.DataFrame
    source: str

    __repr__ = brief

    @classmethod
    def of(cls, table: pd.DataFrame | str | Path, where: Mapping[str, Any] | None = None) -> Published:
        """Rows of a table, or of a file of one, whose columns are as `where` says (`{"model": "gpt2-small"}`)."""
        frame, name = (table, "a table") if isinstance(table, pd.DataFrame) else (_read(Path(table)), Path(table).name)
        missing = [column for column in COLUMNS if column not in frame.columns]
        if missing:
            raise SchemaError(
                f"{name} has no column {missing[0]!r}: a row is a head and a score, with {', '.join(COLUMNS)}; "
                f"it has {', '.join(map(str, frame.columns))}"
            )
        for column, value in (where or {}).items():
            frame = _narrowed(frame, column, value, name)
        _check(frame, name)
        said = sorted({str(s) for s in frame["source"].dropna()}) if "source" in frame.columns else []
        return cls(frame[list(COLUMNS)].reset_index(drop=True), "; ".join(said) or name)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of scores in the table."""
        return tuple(dict.fromkeys(self.table["score"]))

    def of_heads(self, model: Model, score: str) -> pd.DataFrame:
        """`layer`, `head`, `published` of every head of a model.

        Raises:
            SchemaError: as many heads as the model has were not published, or others.
        """
        theirs = self.table[self.table["score"] == score]
        heads = {(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)}
        given = set(zip(theirs["layer"], theirs["head"], strict=True))
        if len(given) != len(heads):
            raise SchemaError(f"{score}: {len(given)} heads were published, and this model has {len(heads)}")
        if given != heads:
            layer, head = min(given - heads)
            raise SchemaError(f"{score}: {head_name(layer, head)} of the published table is no head of this model")
        return theirs.rename(columns={"value": "published"})[["layer", "head", "published"]].astype(
            {"layer": "Int64", "head": "Int64"}
        )


def _read(path: Path) -> pd.DataFrame:
    read = READERS.get(path.suffix)
    if read is None:
        raise SchemaError(f"cannot tell the format of {str(path)!r}; end it in {FILES}")
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise SchemaError(f"cannot read {str(path)!r}: {' '.join(str(error).split())}") from error


def _narrowed(frame: pd.DataFrame, column: str, value: Any, name: str) -> pd.DataFrame:
    if column not in frame.columns:
        raise SchemaError(f"{name} has no column {column!r}; {nearest(str(column), list(map(str, frame.columns)))}")
    rows = frame[frame[column].astype(str) == str(value)]
    if rows.empty:
        values = sorted(set(frame[column].astype(str)))
        raise SchemaError(f"no row of {name} has {column} {value!r}; {nearest(str(value), values)}")
    return rows


def _check(frame: pd.DataFrame, name: str) -> None:
    for column in ("layer", "head", "value"):
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise SchemaError(f"column {column!r} of {name} holds no numbers")
    places = frame[["layer", "head"]].to_numpy(float)
    if not (np.isfinite(places).all() and (places == places.round()).all() and (places >= 0).all()):
        raise SchemaError(f"columns layer and head of {name} hold whole numbers from 0")
    twice = frame.duplicated(["score", "layer", "head"], keep=False)
    if twice.any():
        apart = [c for c in frame.columns if c not in COLUMNS and frame[c].nunique(dropna=False) > 1]
        hint = f"; say which rows by {' and '.join(map(repr, apart))}" if apart else ""
        row = frame[twice].iloc[0]
        head = head_name(int(row["layer"]), int(row["head"]))
        raise SchemaError(f"{name} has several values of {row['score']} for {head}{hint}")
