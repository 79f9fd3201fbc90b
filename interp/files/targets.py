"""Targets: whether a file or folder can be written where it is to go, asked before any work begins."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from interp.errors import InterpError
from interp.files.marks import is_ours

HIDDEN = ".interp-"
"""How names begin under which something is being written; what a killed run leaves behind begins so too."""
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def writable_file(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The path, once it is known that a file can be written there; a symbolic link is followed.

    Args:
        path: where to; `~` is the home folder.
        force: replace a file that is not ours.

    Raises:
        InterpError: no such folder, or no permission; a folder, device, pipe or socket; a file that is not ours.
    """
    target = expanded(path)
    try:
        _check_file(target, real(target), force=force)
    except OSError as error:
        raise cannot_write(target, error) from error
    return target


def writable_folder(path: str | os.PathLike[str], names: Iterable[str], *, force: bool = False) -> Path:
    """The path, once it is known that files of these names can be written into it; it need not be there.

    Raises:
        InterpError: as `writable_file`, of the folder or of a file in it.
    """
    target = expanded(path)
    folder = real(target)
    try:
        if folder.exists() and not folder.is_dir():
            raise InterpError(f"cannot write to {str(target)!r}: it is {kind_of(folder)}; name a folder")
        if folder.is_dir():
            for name in names:
                check_replaceable(target / name, real(folder / name), force=force)
        _try(next(place for place in (folder, *folder.parents) if place.exists()))
    except OSError as error:
        raise cannot_write(target, error) from error
    return target


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` written out.

    Raises:
        InterpError: the home folder of nobody.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InterpError(f"cannot write {os.fspath(path)!r}: {error}") from error


def real(target: Path) -> Path:
    """Where a path leads, through symbolic links; of a circle, itself.

    Raises:
        InterpError: no path at all.
    """
    try:
        return Path(os.path.realpath(target))
    except ValueError as error:
        raise cannot_write(target, error) from error


def kind_of(path: Path) -> str:
    """What stands at a path that is no plain file, in words."""
    mode = path.stat().st_mode
    return next((words for test, words in KINDS if test(mode)), "a file")


def cannot_write(target: Path, error: Exception) -> InterpError:
    """The error as one line about the path."""
    return InterpError(f"cannot write {str(target)!r}: {getattr(error, 'strerror', None) or error}")


def check_replaceable(target: Path, place: Path, *, force: bool) -> None:
    """Refuse what must not be replaced; `target` is what the user calls it, `place` where it is.

    Raises:
        InterpError: says why.
        OSError: no name that a file can have.
    """
    try:
        place.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(place.stat().st_mode):
        raise InterpError(f"cannot write {str(target)!r}: it is {kind_of(place)}; name a file")
    if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InterpError(f"cannot write {str(target)!r}: it is write-protected")
    if not force and place.stat().st_size and not is_ours(place):
        raise InterpError(
            f"{str(target)!r} is there and was not written by interp: it is not replaced; name another file, or say "
            "--force (force=True in Python)"
        )


def _check_file(target: Path, place: Path, *, force: bool) -> None:
    if not place.parent.is_dir():
        raise InterpError(f"cannot write {str(target)!r}: no folder {str(place.parent)!r}")
    check_replaceable(target, place, force=force)
    _try(place.parent)


def _try(folder: Path) -> None:
    """Make a file in a folder and take it away again."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=HIDDEN):
        pass
