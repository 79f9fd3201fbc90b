"""Reading: text and JSON of a file that anybody may have written, up to a number of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.environment import human_bytes
from interp.errors import InterpError, first_line

MOST_TEXT = 64 * 2**20
"""Bytes of text that are read from one file."""
MOST_JSON = 256 * 2**20
"""Bytes of JSON, likewise."""


def read_bytes(
    path: Path, *, most: int = MOST_TEXT, name: str | None = None, error: type[InterpError] = InterpError
) -> bytes:
    """Content of a file or pipe of at most `most` bytes.

    Args:
        path: where it is.
        most: bytes; what is endless is not read to its end.
        name: what the file is called in an error; its path without.
        error: what is raised.

    Raises:
        InterpError: it cannot be read, or is larger; of the class `error`.
    """
    called = name or repr(str(path))
    try:
        with path.open("rb") as stream:
            content = stream.read(most + 1)
    except (OSError, ValueError) as failure:
        raise error(f"cannot read {called}: {getattr(failure, 'strerror', None) or failure}") from failure
    if len(content) > most:
        raise error(f"cannot read {called}: it is larger than {human_bytes(most)}")
    return content


def read_text(
    path: Path, *, most: int = MOST_TEXT, name: str | None = None, error: type[InterpError] = InterpError
) -> str:
    """Text of a file in UTF-8, with or without a byte-order mark; see `read_bytes`.

    Raises:
        InterpError: it cannot be read, is larger, or is no UTF-8.
    """
    content = read_bytes(path, most=most, name=name, error=error)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise error(f"cannot read {name or repr(str(path))}: {failure}") from failure


def read_json(
    path: Path, *, most: int = MOST_JSON, name: str | None = None, error: type[InterpError] = InterpError
) -> Any:
    """Content of a JSON file; see `read_bytes`.

    Raises:
        InterpError: it cannot be read, is larger, nested too deep, or is no JSON.
    """
    text = read_text(path, most=most, name=name, error=error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as failure:
        raise error(f"cannot read {name or repr(str(path))}: {first_line(failure)}") from failure
