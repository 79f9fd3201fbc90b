"""What a row of a tidy table is to plots and reports: a `Score` in plain types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interp.components import head_name


@dataclass(frozen=True)
class Score:
    """One row of a table in plain types: NaN, None or "" is what the row does not have."""

    analysis: str
    variant: str
    layer: int | None
    head: int | None
    component: str
    value: float
    low: float
    high: float
    null: float
    q: float
    label: bool | None
    unit: str

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Score:
        """From a record of a tidy frame; missing columns are missing values."""
        texts = {name: "" if missing(row.get(name)) else str(row[name]) for name in ("analysis", "variant", "unit")}
        label = None if missing(row.get("label")) else bool(row["label"])
        layer, head = (None if missing(row.get(name)) else int(row[name]) for name in ("layer", "head"))
        place = "" if layer is None or head is None else head_name(layer, head)
        value, low, high, null, q = (
            math.nan if missing(row.get(name)) else float(row[name])
            for name in ("value", "ci_low", "ci_high", "null", "q")
        )
        return cls(
            **texts,
            layer=layer,
            head=head,
            component=place if missing(row.get("component")) else str(row["component"]),
            value=value,
            low=low,
            high=high,
            null=null,
            q=q,
            label=label,
        )


def scores(rows: pd.DataFrame) -> list[Score]:
    """Rows of a tidy frame as `Score`s, in order."""
    return [Score.of(row) for row in rows.to_dict("records")]


def largest(rows: Iterable[Score], k: int) -> list[Score]:
    """The k largest values, largest first, equal ones in the order given; rows without a value are left out."""
    return sorted((s for s in rows if not math.isnan(s.value)), key=lambda s: -s.value)[:k]


def leading(rows: Iterable[Score], k: int) -> list[Score]:
    """The k rows worth showing, largest first: labelled ones, by size, and after these the largest of the others.

    What is labelled below 0 would be lost among the largest. Rows without a value are left out.
    """
    valued = [s for s in rows if not math.isnan(s.value)]
    labelled = sorted((s for s in valued if s.label), key=lambda s: -abs(s.value))[:k]
    return largest([*labelled, *largest((s for s in valued if not s.label), k - len(labelled))], k)


def missing(value: Any) -> bool:
    """Whether a cell of a frame holds nothing: None, NA or NaN."""
    return value is None or value is pd.NA or value != value  # noqa: PLR0124  (NaN is what differs from itself)
