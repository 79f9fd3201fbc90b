"""How a result is shown in a notebook: a sentence, the headline rows with labelled ones first, and a count."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd

from interp.plots.titles import heading, provenance_of

ROWS = 10
"""Of one analysis."""
MOST = 12
"""Labelled components that are named."""
SAID = ("analysis", "variant", "layer", "head", "unit")
"""Columns whose values stand in the sentence, or in the name of the component."""


def html_of(table: pd.DataFrame, provenance: Mapping[str, Any]) -> str:
    """One analysis: its headline rows. Several: a line for each."""
    names = list(dict.fromkeys(table["analysis"]))
    if not names:
        return "<p>No rows.</p>"
    if len(names) == 1:
        return _single(table, provenance)
    lines = [_line(table[table["analysis"] == name], provenance_of(provenance, str(name))) for name in names]
    note = f"{len(table):,} rows in all, in .table; .top(NAME) has the first of one analysis, .plot(NAME) draws it."
    return count(pd.DataFrame(lines), len(lines)) + f"<p>{note}</p>"


def count(table: pd.DataFrame, total: int) -> str:
    """A table in HTML, and below it how many rows it shows of how many."""
    columns = [name for name in table if table[name].notna().any()] or list(table.columns)
    drawn = table[columns].to_html(index=False, na_rep="", float_format=lambda x: f"{x:.3g}", escape=True)
    return drawn + (f"<p>{len(table):,} of {total:,} rows shown.</p>" if len(table) < total else "")


def headline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first variant: labelled ones first, each group from the largest value down."""
    rows = table[table["variant"] == table["variant"].iloc[0]]
    label = labelled(rows)
    size = rows["value"].abs().where(label, rows["value"])
    return rows.assign(_label=label, _size=size).sort_values(["_label", "_size"], ascending=False, kind="stable")[
        list(rows.columns)
    ]


def labelled(rows: pd.DataFrame) -> pd.Series:
    """Whether each row has a true label."""
    return rows["label"].fillna(False).astype(bool) if "label" in rows else pd.Series(False, index=rows.index)


def finding(rows: pd.DataFrame) -> str:
    """How many rows are labelled, by name: "4 of 48 labelled: L3H6, L3H4, L3H3, L3H7"."""
    if "label" not in rows or rows["label"].isna().all():
        return f"{len(rows):,} rows, scores without labels"
    names = [str(name) for name in rows["component"][labelled(rows)]]
    told = ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
    return f"{len(names) or 'none'} of {len(rows):,} labelled" + (f": {told}" if names else "")


def _single(table: pd.DataFrame, provenance: Mapping[str, Any]) -> str:
    rows = headline_rows(table)
    unit = str(rows["unit"].iloc[0])
    model, measured, sample, null = heading(rows, provenance)
    parts = (finding(rows), model, f"{measured}, {unit}", sample, null)
    said = ". ".join([" · ".join(part for part in parts if part), ""]).strip()
    shown = rows.head(ROWS).drop(columns=[name for name in SAID if name in rows])
    others = [str(v) for v in dict.fromkeys(table["variant"])][1:]
    more = (
        f"<p>Also measured, in .table: {escape(', '.join(others))} ({len(table):,} rows in all).</p>" if others else ""
    )
    return f"<p>{escape(said)}</p>{count(shown, len(rows))}{more}"


def _line(table: pd.DataFrame, provenance: Mapping[str, Any]) -> dict[str, Any]:
    rows = headline_rows(table)
    _, measured, sample, null = heading(rows, provenance)
    best = rows.iloc[0]
    highest = f"{best['component']}: {best['value']:.3g} {best['unit']}"
    return {"analysis": measured, "found": finding(rows), "first": highest, "sample": sample, "null": null}
