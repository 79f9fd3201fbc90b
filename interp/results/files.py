"""Files of tables: which formats there are, and writing one whole or not at all (`interp.files`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import SchemaError
from interp.files import atomic_write, writable_file
from interp.files.marks import PROVENANCE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SUFFIXES", "atomic_write", "check_suffix", "writable", "writable_file", "write_csv", "write_table"]

SUFFIXES = (".parquet", ".csv", ".json")
EXECUTED = ("=", "+", "-", "@", "\t", "\r")
"""What text begins with that a spreadsheet takes for a formula."""


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Refuse what is none of `SUFFIXES`.

    Raises:
        SchemaError: says which there are.
    """
    if Path(path).suffix not in SUFFIXES:
        raise SchemaError(f"cannot tell the format of {os.fspath(path)!r}; end it in {', '.join(SUFFIXES)}")


def writable(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The path, once it is known that a table can be written there; see `interp.files.writable_file`.

    Raises:
        SchemaError: a suffix that is none of `.parquet`, `.csv`, `.json`.
        InterpError: no such folder, no permission, or a file that is not ours.
    """
    check_suffix(path)
    return writable_file(path, force=force)


def write_table(table: pd.DataFrame, path: str | os.PathLike[str], *, force: bool = False, quote: bool = False) -> Path:
    """Write a bare table by the suffix of the path; `quote` as in `write_csv`.

    Raises:
        SchemaError: an unknown suffix.
        InterpError: the file cannot be written.
    """
    target = writable(path, force=force)
    writers: dict[str, Callable[[Path], object]] = {
        ".csv": lambda p: write_csv(table, p, quote=quote),
        ".json": lambda p: table.to_json(p, orient="records", indent=1),
        ".parquet": lambda p: _write_parquet(table, p),
    }
    return atomic_write(target, writers[target.suffix], force=force)


def write_csv(table: pd.DataFrame, path: Path, *, quote: bool = False) -> None:
    """Write CSV; with `quote`, text that a spreadsheet would execute gets an apostrophe in front and is shown as text.

    Tokens such as `=`, `+1` and `@` are such text. Numbers stay numbers.
    """
    if quote:
        table = table.copy()
        for name in table.columns:
            table[name] = table[name].map(_inert)
        table.columns = [_inert(name) for name in table.columns]
    table.to_csv(path, index=False)


def _inert(value: object) -> object:
    return "'" + value if isinstance(value, str) and value.startswith(EXECUTED) else value


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), PROVENANCE: b"{}"}), path)
