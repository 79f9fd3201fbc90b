"""Streams of the command line: control characters made visible, and what is done where nobody reads them any more."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it: escapes, changes of direction; and halves of characters."""
PROGRESS = re.compile("(\r|\x1b\\[A|\x1b\\[K)")
"""What progress bars on stderr are made of."""


def printable(text: str) -> str:
    r"""The text with control characters, but for line feed and tab, written out as JSON does.

    >>> printable("L0H1 \x1b[2J")
    'L0H1 \\u001b[2J'
    """
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class Printable(io.TextIOBase):
    """A text stream that shows what is written to it as `printable`; names of models, files and tokens are anybody's.

    Attributes:
        stream: the stream itself, for those who write escapes of their own.
    """

    def __init__(self, stream: TextIO, *, progress: bool = False) -> None:
        self.stream, self._progress = stream, progress

    def write(self, text: str, /) -> int:
        """Write text."""
        parts = PROGRESS.split(text) if self._progress else [text]
        self.stream.write("".join(p if PROGRESS.fullmatch(p) and self._progress else printable(p) for p in parts))
        return len(text)

    def flush(self) -> None:
        """Have it appear."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Number of the file."""
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # pyright: a constant there
        """As the stream's."""
        return self.stream.encoding

    @property
    def buffer(self) -> Any:
        """As the stream's."""
        return self.stream.buffer


def unguarded(stream: IO[str]) -> IO[str]:
    """The stream that a `Printable` writes to; any other itself."""
    return stream.stream if isinstance(stream, Printable) else stream


@contextmanager
def printable_streams() -> Iterator[None]:
    """stdout and stderr as `Printable`; a closed one takes everything and says nothing."""
    before = sys.stdout, sys.stderr
    out, err = (stream or open(os.devnull, "w", encoding="utf-8") for stream in before)  # noqa: PTH123, SIM115
    for stream in (out, err):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of ASCII shows the rest as escapes
    sys.stdout, sys.stderr = Printable(out), Printable(err, progress=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the place in some library that they happen to be raised from."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        sys.stderr.write(f"interp: {' '.join(str(message).split())}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def abandon(stream: IO[str] | None) -> None:
    """Send what is left of a stream that cannot be written to nowhere, or Python would complain of it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
