"""Writing: a file, or a folder of several, that appears whole or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from interp.files.targets import HIDDEN, cannot_write, check_replaceable, expanded, real, writable_folder

Write = Callable[[Path], object]
"""Writes to the path that it is given."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def atomic_write(target: Path, write: Write, *, force: bool = False) -> Path:
    """Write a file through a hidden one beside it, so that no half-written file is ever seen; returns the target.

    A symbolic link is followed and stays. A new file has the permissions that the umask leaves, one that is replaced
    keeps its own.

    Args:
        target: where to.
        write: writes the content to the path it is given.
        force: replace a file that is not ours.

    Raises:
        InterpError: the file cannot be written, or must not be replaced.
    """
    place = real(target)
    try:
        check_replaceable(target, place, force=force)
        with _hidden_file(place.parent, place.suffix[:16]) as temporary:
            mode = (place if place.exists() else temporary).stat().st_mode & 0o777
            write(temporary)
            temporary.chmod(mode)
            _flush(temporary)
            temporary.replace(place)
        _flush(place.parent)
    except Exception as error:
        if not _of_writing(error):
            raise
        raise cannot_write(target, error) from error
    return target


def write_files(
    folder: str | os.PathLike[str], writers: Mapping[str, Write], *, force: bool = False, obsolete: Sequence[str] = ()
) -> dict[str, Path]:
    """Write several files of a folder, all of them or none; returns their paths by name.

    Raises:
        InterpError: as `write_folder`.
    """

    def make(stage: Path) -> None:
        for name, write in writers.items():
            (stage / name).parent.mkdir(exist_ok=True, parents=True)
            write(stage / name)

    target = write_folder(folder, make, force=force, obsolete=obsolete)
    return {name: target / name for name in writers}


def write_folder(
    folder: str | os.PathLike[str], make: Write, *, force: bool = False, obsolete: Sequence[str] = ()
) -> Path:
    """Let a function fill a folder, which is put in its place when all is written; returns the folder.

    A folder that is not there, and one that holds earlier output of ours and nothing else, appears with one rename.
    Into one that holds other files as well, or that this process stands in, the complete files are moved one after the
    other; what else is there stays.

    Args:
        folder: where to; made if it is not there, with those above it.
        make: writes files, and folders of them, into the folder that it is given.
        force: replace files that are not ours.
        obsolete: names of files in the folder that go away once the new ones are there.

    Raises:
        InterpError: something cannot be written, or must not be replaced; nothing was.
    """
    target = expanded(folder)
    place = real(target)
    try:
        with _parents(place), _stage(place) as stage:
            make(stage)
            names = _names(stage)
            writable_folder(target, names, force=force)
            _settle(stage, place, names, obsolete)
    except Exception as error:
        if not _of_writing(error):
            raise
        raise cannot_write(target, error) from error
    return target


def _of_writing(error: Exception) -> bool:
    """Whether the file could not be written; torch and safetensors have other errors than OSError for a full disk."""
    return isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"


def _settle(stage: Path, place: Path, names: Sequence[str], obsolete: Sequence[str]) -> None:
    """Permissions and disk first, then the renames."""
    mode = _mode(stage)
    for name in names:
        earlier = place / name
        (stage / name).chmod(earlier.stat().st_mode & 0o777 if earlier.exists() else mode)
        _flush(stage / name)
    _flush(stage)
    if not place.exists():
        stage.rename(place)
    elif stage.parent == place or not _only(place, {*names, *obsolete}) or not _exchange(stage, place):
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).replace(real(place / name))
        for name in {*obsolete} - {*names}:
            (place / name).unlink(missing_ok=True)
    _flush(place.parent)  # after an exchange the old folder has the hidden name, and goes with it


@contextmanager
def _hidden_file(folder: Path, suffix: str) -> Iterator[Path]:
    """An empty file with the permissions of the umask, gone afterwards unless it was renamed."""
    temporary = _name(folder, suffix)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _stage(place: Path) -> Iterator[Path]:
    """An empty hidden folder on the same disk; inside a folder that is there, so that its own permissions suffice."""
    stage = _name(place if place.is_dir() and not _movable(place) else place.parent, "")
    stage.mkdir()
    try:
        if place.is_dir():
            shutil.copymode(place, stage)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _parents(place: Path) -> Iterator[None]:
    """The folders above, made where they are missing; those made go again where something fails."""
    missing = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _name(folder: Path, suffix: str) -> Path:
    return folder / f"{HIDDEN}{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def _mode(folder: Path) -> int:
    """Permissions of a new file: those that the umask, or the folder's default, leaves."""
    with _hidden_file(folder, "") as probe:
        return probe.stat().st_mode & 0o777


def _movable(place: Path) -> bool:
    return not _inside(place) and os.access(place.parent, os.W_OK) and not os.path.ismount(place)


def _inside(place: Path) -> bool:
    """Whether this process stands in the folder or below: a shell would find itself in one that is gone."""
    try:
        here = Path.cwd()
    except OSError:
        return False
    return here == place or place in here.parents


def _only(place: Path, names: set[str]) -> bool:
    return set(_names(place)) <= names


def _names(folder: Path) -> list[str]:
    """Files in a folder and below, by their paths in it; links count as files, what is being written does not."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(str(path) for path in found if not any(part.startswith(HIDDEN) for part in path.parts))


def _exchange(a: Path, b: Path) -> bool:
    """Give each of two folders the other's name in one step; False where the system cannot (then nothing happened)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Have what was written reach the disk: a full one says so here at the latest.

    Raises:
        OSError: it does not.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != 22:  # a file system without it, for folders
            raise
    finally:
        os.close(descriptor)
