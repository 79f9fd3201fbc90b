"""The command line: data on stdout, progress and complaints on stderr, library calls and nothing else in between.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted, 141 nobody reads the output any more. Heavy imports wait until a
command runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from interp.cli import (
    circuit as cli_circuit,
)
from interp.cli import (
    detect as cli_detect,
)
from interp.cli import (
    report as cli_report,
)
from interp.cli import (
    reproduce as cli_reproduce,
)
from interp.cli import (
    runs as cli_runs,
)
from interp.cli import (
    sae as cli_sae,
)
from interp.cli import (
    zoo as cli_zoo,
)
from interp.cli.completion import completion
from interp.cli.listing import list_names
from interp.cli.output import abandon, plain_warnings, printable_streams
from interp.environment import __version__
from interp.errors import InterpError, UnknownName

DEBUG = "--debug"
FAILED, USAGE, INTERRUPTED, UNREAD = 1, 2, 130, 141
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports the leaf of its usage errors alone

LONGEST = 2000
"""Characters of an error, what is left out of it not counted."""

app = typer.Typer(
    name="interp",
    help="Look inside transformer language models.",
    no_args_is_help=True,
    add_completion=False,  # `interp completion` knows the names too
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_zoo.app, name="zoo")
app.add_typer(cli_sae.app, name="sae")
app.command()(cli_circuit.circuit)
app.command()(cli_report.report)
app.command()(cli_runs.runs)
app.command()(cli_reproduce.reproduce)
app.command("list")(list_names)
app.command()(completion)
app.command()(cli_detect.detect)
app.command()(cli_detect.demo)


def _say_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"interp {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error; at the end too.")
    ] = False,
) -> None:
    """Look inside transformer language models."""


@app.command()
def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Versions and devices: what to paste into a bug report."""
    import json

    from interp.environment import describe

    facts = describe()
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return
    for name, value in facts.items():
        sys.stdout.write(f"{name:24} {value}\n")


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes only.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Append rows here.")] = None,
) -> None:
    """Speed and memory against the plain forward pass and against peers (needs the source checkout)."""
    from interp.studies.bench import run

    raise typer.Exit(run(quick=quick, out=out))


def _shortened(text: str) -> str:
    """Both ends of a text that nobody reads: a file of one line may stand in a message, before what to do instead."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and turns every failure into one line on stderr and an exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None or not sys.stderr.isatty():  # bars are for terminals; read when Hugging Face is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    label = " ".join(["interp", *arguments[:2]])[:60]
    with _interruptible() as interrupted, printable_streams(label), plain_warnings():
        code = _run(arguments, interrupted)
    sys.exit(code)


def _run(arguments: Sequence[str], interrupted: list[int]) -> int:
    """The exit code of a command; what went wrong is said. `--debug` may stand anywhere before a `--`."""
    own = list(arguments)
    end = own.index("--") if "--" in own else len(own)
    debug = DEBUG in own[:end]
    try:
        code = app(
            args=[word for word in own[:end] if word != DEBUG] + own[end:], prog_name="interp", standalone_mode=False
        )
        sys.stdout.flush()
    except UsageError as error:
        _complain(error.format_message())  # type: ignore[attr-defined]
        return USAGE
    except BrokenPipeError:
        abandon(sys.stdout)
        return UNREAD
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if interrupted:  # some library has made another error of it
            code = INTERRUPTED
        elif debug:
            raise
        else:
            return _failed(error)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this without a word
        _complain("interrupted")
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    """Say what a command failed of; anything but an error of ours, of the system or for want of memory is a bug."""
    if isinstance(error, InterpError):
        _complain(str(error))
        return USAGE if isinstance(error, UnknownName) else FAILED
    if isinstance(error, OSError):
        if error.filename is None:
            abandon(sys.stdout)
        where = "the output" if error.filename is None else repr(error.filename)
        _complain(f"{where}: {error.strerror or error}")
    elif isinstance(error, MemoryError):
        _complain(f"out of memory: {error}; take fewer or shorter prompts")
    else:
        _complain(f"unexpected {type(error).__name__}: {error} (for the traceback add {DEBUG} to the command)")
    return FAILED


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody reads this either
        _say(f"interp: {_shortened(' '.join(text.split()))}")


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Ctrl-C is remembered: a library may swallow the KeyboardInterrupt, or raise something else for it."""
    signals: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not in the main thread, where signals do not arrive
        yield signals
        return
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, before)
