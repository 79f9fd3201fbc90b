"""Where the shipped prompt data lies, how it is read, and which of it is held out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from interp.errors import SchemaError, nearest
from interp.files import read_json as read_document


def root() -> Path:
    """The `datasets` folder: inside an installed package, at the top of a checkout."""
    here = Path(__file__).parent
    return here / "_datasets" if (here / "_datasets").is_dir() else here.parent / "datasets"


def names() -> tuple[str, ...]:
    """Folders of shipped data."""
    return tuple(sorted(path.name for path in root().iterdir() if path.is_dir()))


def path(name: str, file: str) -> Path:
    """A file of a data folder.

    Raises:
        SchemaError: no such folder or file; names the nearest.
    """
    folder = root() / name
    if not folder.is_dir():
        raise SchemaError(f"no data called {name!r}; {nearest(name, names())}")
    found = folder / file
    if not found.is_file():
        raise SchemaError(f"{name!r} has no file {file!r}; {nearest(file, [p.name for p in folder.iterdir()])}")
    return found


def read_json(where: Path) -> Any:
    """Content of a JSON file.

    Raises:
        SchemaError: not JSON; says where it breaks.
    """
    return read_document(where, name=where.name, error=SchemaError)


def is_held_out(key: str, *, one_in: int) -> bool:
    """Whether a key belongs to the held-out split: one in so many, decided by its text alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % one_in == 0
