"""Where the shipped prompt data lies, and how it is read."""

from __future__ import annotations

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
