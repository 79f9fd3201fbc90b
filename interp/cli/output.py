"""Streams of the command line: control characters made visible, the time that passes, and streams that nobody reads."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it: escapes, changes of direction; and halves of characters."""
PROGRESS = re.compile("(\r|\x1b\\[A|\x1b\\[K)")
"""What progress bars on stderr are made of."""
QUIET = 2.0
"""Seconds without output after which a terminal is told how long a command has been running."""


def printable(text: str) -> str:
    r"""The text with control characters, but for line feed and tab, written out as JSON does.

    >>> printable("L0H1 \x1b[2J")
    'L0H1 \\u001b[2J'
    """
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class Clock:
    """A line on a terminal, `interp circuit ... 12 s`, while nothing else is written; gone as soon as something is.

    Attributes:
        label: what is running. stream: the terminal; where it is none, nothing happens.
    """

    def __init__(self, label: str, stream: TextIO, *, quiet: float = QUIET) -> None:
        self.label, self.stream, self.quiet = label, stream, quiet
        self._start = self._last = time.monotonic()
        self._shown, self._lock, self._ended = False, threading.Lock(), threading.Event()
        if stream.isatty():
            threading.Thread(target=self._tick, daemon=True).start()

    def clear(self) -> None:
        """Take the line away: something else is going to be written."""
        with self._lock:
            self._last = time.monotonic()
            if self._shown:
                self.stream.write("\r\x1b[K")
                self.stream.flush()
            self._shown = False

    def end(self) -> None:
        """Take it away for good."""
        self._ended.set()
        self.clear()

    def _tick(self) -> None:
        while not self._ended.wait(min(1.0, self.quiet)):
            now = time.monotonic()
            with self._lock, suppress(OSError, ValueError):
                if now - self._last >= self.quiet and not self._ended.is_set():
                    self.stream.write(f"\r{self.label} ... {now - self._start:.0f} s\x1b[K")
                    self.stream.flush()
                    self._shown = True


class Printable(io.TextIOBase):
    """A text stream that shows what is written to it as `printable`; names of models, files and tokens are anybody's.

    Attributes:
        stream: the stream itself, for those who write escapes of their own. clock: ended by what is written.
    """

    def __init__(self, stream: TextIO, *, progress: bool = False, clock: Clock | None = None) -> None:
        self.stream, self._progress, self.clock = stream, progress, clock

    def write(self, text: str, /) -> int:
        """Write text."""
        if self.clock is not None:
            self.clock.clear()
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
    """The stream that a `Printable` writes to, whose clock ends: who writes there has a bar of his own; or itself."""
    if not isinstance(stream, Printable):
        return stream
    if stream.clock is not None:
        stream.clock.end()
    return stream.stream


@contextmanager
def printable_streams(label: str = "interp") -> Iterator[None]:
    """stdout and stderr as `Printable`, with a clock of this label; a closed one takes everything and says nothing."""
    before = sys.stdout, sys.stderr
    out, err = (stream or open(os.devnull, "w", encoding="utf-8") for stream in before)  # noqa: PTH123, SIM115
    for stream in (out, err):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of ASCII shows the rest as escapes
    clock = Clock(label, err)
    sys.stdout, sys.stderr = Printable(out, clock=clock), Printable(err, progress=True, clock=clock)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            clock.end()
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
