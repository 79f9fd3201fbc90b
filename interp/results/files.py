"""Files of results: which paths can be written, and writing them whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from interp.errors import InterpError, SchemaError

SUFFIXES = (".parquet", ".csv", ".json")


def writable(path: str | os.PathLike[str]) -> Path:
    """The path, once it is known that a file can be written there.

    Raises:
        SchemaError: a suffix that is none of `.parquet`, `.csv`, `.json`.
        InterpError: no such folder, or no permission.
    """
    target = Path(path).expanduser()
    if target.suffix not in SUFFIXES:
        raise SchemaError(f"cannot tell the format of {str(target)!r}; end it in {', '.join(SUFFIXES)}")
    return writable_file(target)


def writable_file(target: Path) -> Path:
    """A path of any suffix whose folder exists and can be written to."""
    if target.is_dir():
        raise InterpError(f"cannot write {str(target)!r}: it is a folder")
    if not target.parent.is_dir():
        raise InterpError(f"cannot write {str(target)!r}: no folder {str(target.parent)!r}")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".interp-"):
            pass
    except OSError as error:
        raise InterpError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
    return target


def atomic_write(target: Path, write: Callable[[Path], object]) -> None:
    """Write through a temporary file beside the target, so that no half-written file is ever seen."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".interp-", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise InterpError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
