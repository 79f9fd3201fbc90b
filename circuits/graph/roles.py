"""Roles of components as a user gives them: a table, a mapping, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from interp.components import Component
from interp.errors import SchemaError, SiteError
from interp.measurement.declaration import PATTERN

Roles = Mapping[str, str] | pd.DataFrame
"""component -> role, or a table with the columns component and role (and stage), as `interp.atlas(...).roles()` has."""


def role_names(roles: Roles | None) -> dict[str, tuple[str, ...]]:
    """Roles of each component, the main one first; those that only say where a head looks (by stage) stand last.

    Raises:
        SchemaError: neither a mapping nor a table with these columns, or a name that is no component's.
    """
    if roles is None:
        return {}
    if isinstance(roles, pd.DataFrame):
        rows = _rows(roles)
    elif isinstance(roles, Mapping):
        rows = [(name, role, "") for name, role in roles.items()]
    else:
        raise SchemaError(f"roles are a table or a mapping from component to role; got {type(roles).__name__}")
    names: dict[str, dict[str, None]] = {}
    for name, role, _ in sorted(rows, key=lambda row: row[2] == PATTERN):
        names.setdefault(_component(name), {})[str(role)] = None
    return {name: tuple(own) for name, own in names.items()}


def _rows(table: pd.DataFrame) -> list[tuple[Any, Any, Any]]:
    missing = [name for name in ("component", "role") if name not in table]
    if missing:
        columns = ", ".join(map(str, table.columns))
        raise SchemaError(f"roles without a column {missing[0]!r}; expected component and role, found {columns}")
    known = table[table["role"].notna()]
    stages = known["stage"] if "stage" in known else [""] * len(known)
    return list(zip(known["component"], known["role"], stages, strict=True))


def _component(name: Any) -> str:
    try:
        return str(Component.parse(name))
    except SiteError as error:
        raise SchemaError(f"roles: {error}") from error
