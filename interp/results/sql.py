"""Questions in SQL to a few tables: with limits of time, memory and size, and no way to other files."""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.environment import human_bytes
from interp.errors import SchemaError, first_line

if TYPE_CHECKING:
    import duckdb

SECONDS = 60.0
"""A question may take."""
MEMORY = 2 * 10**9
"""Bytes that DuckDB may hold meanwhile, and bytes of an answer."""
MOST_ROWS = 1_000_000
"""Of an answer."""
SETTINGS: Mapping[str, object] = {
    "enable_external_access": "false",  # a question, not a way to other files
    "python_enable_replacements": "false",  # nor to variables of this program
    "memory_limit": f"'{MEMORY}B'",
    "max_temp_directory_size": "'0KB'",
    "lock_configuration": "true",
}
LOGGING = re.compile(r"\b(enable_logging|disable_logging|truncate_duckdb_logs|write_log)\b", re.IGNORECASE)


def ask(sql: str, tables: Mapping[str, pd.DataFrame], *, seconds: float = SECONDS) -> pd.DataFrame:
    """Answer of DuckDB to one SELECT (WITH, SHOW, DESCRIBE, SUMMARIZE, EXPLAIN) about tables by name.

    Raises:
        SchemaError: DuckDB does not understand the question, it is none or several, or it asks for more than a limit
            allows; says which.
    """
    import duckdb

    try:
        with duckdb.connect() as connection, _limited(connection, seconds) as start, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pandas, about how DuckDB uses it
            for name, table in tables.items():
                connection.register(name, table)
            for name, value in SETTINGS.items():
                connection.execute(f"SET {name} = {value}")
            _check_question(sql)
            return _answer(connection, sql, start, seconds)
    except duckdb.InterruptException as error:
        raise SchemaError(f"DuckDB: the question took longer than {seconds:g} s and was ended") from error
    except duckdb.OutOfMemoryException as error:
        raise SchemaError(f"DuckDB: the question needs more than {human_bytes(MEMORY)} of memory") from error
    except (duckdb.Error, TypeError, OverflowError, ValueError, RuntimeError, MemoryError) as error:
        raise SchemaError(f"DuckDB: {first_line(error)}") from error


def _check_question(sql: str) -> None:
    import duckdb

    statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise SchemaError(f"{len(statements)} questions; ask one, such as SELECT * FROM results")
    kind = str(statements[0].type).rpartition(".")[2]
    if kind not in ("SELECT", "EXPLAIN"):
        raise SchemaError(f"{kind} is no question: ask with SELECT, DESCRIBE, SUMMARIZE or EXPLAIN")
    if found := LOGGING.search(sql):
        raise SchemaError(f"{found[1]} is about DuckDB's own log, which is not written")


@contextmanager
def _limited(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[float]:
    """Interrupt the connection after some seconds; gives when it began."""
    clock = threading.Timer(seconds, connection.interrupt)
    clock.daemon = True
    clock.start()
    try:
        yield time.monotonic()
    finally:
        clock.cancel()


def _answer(connection: duckdb.DuckDBPyConnection, sql: str, start: float, seconds: float) -> pd.DataFrame:
    """The whole answer, taken in chunks: a billion rows, or one cell of a gigabyte, are refused on the way."""
    cursor = connection.execute(sql)
    chunks: list[pd.DataFrame] = []
    rows = size = 0
    while not chunks or len(chunks[-1]):
        chunks.append(cursor.fetch_df_chunk())
        rows, size = rows + len(chunks[-1]), size + int(chunks[-1].memory_usage(deep=True).sum())
        if rows > MOST_ROWS or size > MEMORY:
            limit = f"{MOST_ROWS} rows" if rows > MOST_ROWS else human_bytes(MEMORY)
            raise SchemaError(f"the answer has more than {limit}; add a LIMIT, or ask for less")
        if time.monotonic() - start > seconds:
            raise SchemaError(f"the question took longer than {seconds:g} s and was ended")
    filled = [chunk for chunk in chunks if len(chunk)]
    return pd.concat(filled, ignore_index=True) if filled else chunks[0]


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table with cells that JSON has no place for as text."""
    return table.map(_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", errors="backslashreplace")
    return value if isinstance(value, str | int | float | bool | None) else _plain_other(value)


def _plain_other(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if pd.isna(value) else str(value)
