"""Rows that say what an analysis found: of its headline, and of classes that have a variant of their own.

An analysis may tell several kinds of head apart (`Stage.kinds`), each with its own score, test and label in a variant
named like the kind. What is found are then the heads of all its kinds, not those of the headline alone.
"""

from __future__ import annotations

import pandas as pd

from interp.measurement.declaration import Analysis


def class_variants(spec: Analysis, table: pd.DataFrame) -> list[str]:
    """The headline, and the kinds of the analysis that are variants with labels of their own."""
    own = set(table.loc[table["analysis"] == spec.name, "variant"]) if "label" in table and "role" in table else set()
    kinds = spec.stage.kinds if spec.stage is not None else {}
    return [spec.headline, *(kind for kind in kinds if kind in own and kind != spec.headline)]


def labelled_rows(spec: Analysis, table: pd.DataFrame) -> pd.DataFrame:
    """Labelled rows of a result's table, one per component: of the variant of its own kind, else of the headline."""
    if "label" not in table:
        return table.iloc[:0]
    rows = table[(table["analysis"] == spec.name) & table["label"].fillna(False).astype(bool)]
    variants = class_variants(spec, table)
    rows = rows[rows["variant"].isin(variants)]
    if len(variants) == 1:
        return rows
    kind = rows["role"].where(rows["role"].isin(variants[1:]), spec.headline)
    return rows[rows["variant"] == kind]


def labelled_by_class(spec: Analysis, table: pd.DataFrame) -> dict[str, list[str]]:
    """Class -> its labelled components, highest first; one class, the headline's, where there are no others."""
    rows = labelled_rows(spec, table)
    rows = rows.reindex(rows["value"].abs().sort_values(ascending=False, kind="stable").index)
    return {v: list(rows.loc[rows["variant"] == v, "component"]) for v in class_variants(spec, table)}
