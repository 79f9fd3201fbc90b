"""Results read back from the files that they were saved to: parquet, one JSON document, or a circuit's graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from interp.components import Edge
from interp.errors import SchemaError, first_line
from interp.files import read_json
from interp.results.results import COLUMNS, Result, frame

EDGE_COLUMNS = {"sender": "str", "receiver": "str", "port": "str"}
READ = (".parquet", ".json")
"""Suffixes of files that hold provenance."""


class NotOurs(SchemaError):  # noqa: N818  (a state of affairs)
    """A file that another program wrote."""


def load(path: str | os.PathLike[str]) -> Result:
    """What `Result.save` or a graph's `save` wrote; edges of a graph are rows, their score the value.

    Raises:
        SchemaError: not such a file.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise SchemaError(f"cannot read {str(path)!r}: it is no file")
        return _document(path) if path.suffix == ".json" else Result.load(path)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise SchemaError(f"{str(path)!r} is damaged: {type(error).__name__}: {first_line(error)}") from error


def _document(path: Path) -> Result:
    content = read_json(path, error=SchemaError)
    if isinstance(content, dict) and isinstance(content.get("provenance"), dict):
        if {"rows", "interventions"} <= content.keys():
            return _table(content)
        if {"layout", "edges"} <= content.keys():
            return _graph(content)
    raise NotOurs(f"{str(path)!r} is neither a result nor a circuit: not written by interp")


def _table(content: Mapping[str, Any]) -> Result:
    rows = pd.DataFrame(content["rows"], columns=None if content["rows"] else list(COLUMNS))
    extra = {str(name): str(kind) for name, kind in rows.dtypes.items() if name not in COLUMNS}
    return Result(
        frame(rows, extra=extra), dict(content["provenance"]), frame(content["interventions"], interventions=True)
    )


def _graph(content: Mapping[str, Any]) -> Result:
    """One row per edge of the circuit, with its interval where it has one."""
    provenance = dict(content["provenance"])
    rows = [
        {
            **{name: value for name, value in row.items() if name in ("se", "ci_low", "ci_high", *EDGE_COLUMNS)},
            "analysis": provenance.get("method") or provenance.get("circuit") or "circuit",
            "variant": "edge",
            "component": str(Edge(row["sender"], row["receiver"], row["port"])),
            "value": row["score"],
            "unit": provenance.get("metric"),
        }
        for row in content["edges"]
    ]
    return Result(frame(rows, extra=EDGE_COLUMNS), provenance)
