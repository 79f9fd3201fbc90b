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
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import (
    circuit as cli_circuit,
)
from interp.cli import (
    options as cli_options,
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
from interp.cli.names import LARGEST_SEED, check_run
from interp.cli.output import abandon, plain_warnings, printable, printable_streams, unguarded
from interp.environment import __version__
from interp.errors import InterpError, SchemaError, UnknownName

if TYPE_CHECKING:
    from interp.measurement.registry import Analysis
    from interp.results.results import Result

FAILED, USAGE, INTERRUPTED, UNREAD = 1, 2, 130, 141
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports the leaf of its usage errors alone

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

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of prompts, intervals and random controls.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")]
Names = Annotated[list[str] | None, typer.Option("--analysis", "-a", metavar="NAME", help="Run this one; repeatable.")]


def _say_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"interp {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Look inside transformer language models."""


@app.command()
def detect(
    model: ModelArgument,
    analysis: Names = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write .parquet, .csv or .json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Heads shown per analysis.")] = 5,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    bos: cli_options.Bos = None,
    stack: Annotated[str | None, typer.Option(help="Of an encoder-decoder: encoder or decoder.")] = None,
    source: Annotated[str | None, typer.Option(metavar="TEXT", help="What its decoder reads.")] = None,
    force: cli_options.Force = False,
    quote: cli_options.Quote = False,
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A prompt of your own to measure on; repeatable.")
    ] = None,
    span: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PLACE", help="A part of it, START:END or words; repeatable.")
    ] = None,
) -> None:
    """What do the attention heads of MODEL do? One table, with nulls, intervals and causal checks.

    Example: interp detect zoo:default -a induction --out heads.parquet

    With --text only analyses that measure on prompts of one's own run; which do not is said. --span names a stretch of
    each text: characters START to END (document=0:5200; an end left out is the text's), or words that it has once.
    """
    check_run(model, dtype=dtype, device=device, analyses=analysis)
    cli_options.check_bos(bos)
    with cli_options.usage():
        texts = [cli_options.read_text(path) for path in text or ()]
        spans = cli_options.read_spans(span or [], texts)
    target = None if out is None else cli_options.table_target(out, force=force)
    from interp.loading.load import load
    from interp.measurement.registry import detect as run

    checkpoint = load(model, revision=revision, dtype=dtype, device=device, stack=stack, source_text=source)
    prompts = cli_options.own_prompts(checkpoint, texts, spans, bos=bos)
    policy = None if texts else bos  # of the texts themselves
    result = run(checkpoint, analysis, prompts=prompts, seed=seed, bos=policy, progress=cli_report.progress)
    result.provenance["command"] = _command()
    cli_options.say_left_out(result.provenance["left_out"])
    if target is not None:
        result.save(target, force=force, quote=quote)
        _say(f"wrote {target}")
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        _print_tables(result, top)
        _print_roles(result)


@app.command()
def demo(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Hub id, local folder, or zoo:NAME.")] = "zoo:default",
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes.")] = Path("report.html"),
    prompt: Annotated[str | None, typer.Option(help="Text to show attention on, instead of random tokens.")] = None,
    seed: Seed = 0,
    force: cli_options.Force = False,
) -> None:
    """Detect the heads of the shipped model, print the best, and write a page about them."""
    from interp.files import writable_file

    check_run(model)
    target = writable_file(out, force=force)
    from interp.loading.load import load
    from interp.measurement.registry import detect as run
    from interp.reports import report

    checkpoint = load(model)
    if prompt is not None:
        checkpoint.batch(prompt)  # a prompt that cannot be run is refused before the work, not after it
    result = run(checkpoint, seed=seed, progress=cli_report.progress)
    result.provenance["command"] = _command()
    cli_options.say_left_out(result.provenance["left_out"])
    _print_tables(result, 3)
    path = report(checkpoint, results=result, prompt=prompt, seed=seed, path=target, force=force, command=_command())
    sys.stdout.write(f"report: {path.resolve()}\n")


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


def _print_tables(result: Result, top: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from interp.measurement.registry import find

    console = Console(highlight=False, file=unguarded(sys.stdout))
    for name in result.table["analysis"].unique():
        spec = find(name)
        rows = result.top(name, variant=spec.headline, k=top)
        table = Table(title=f"{spec.title}  ({spec.name}: {spec.headline})", title_justify="left", title_style="bold")
        for heading in ("component", "score", "95 % interval", "null", "q", "labelled"):
            table.add_column(heading, justify="left" if heading == "component" else "right")
        for row in rows.to_dict(orient="records"):
            interval = f"{row['ci_low']:.3f} .. {row['ci_high']:.3f}"
            label = "yes" if row.get("label") is True else ""
            table.add_row(
                printable(row["component"]),
                f"{row['value']:.3f}",
                interval,
                f"{row['null']:.3f}",
                f"{row['q']:.1e}",
                label,
            )
        console.print(table)
        _print_labelled(console, result, spec)


def _print_labelled(console: Any, result: Result, spec: Analysis) -> None:
    """One line with the labelled heads, and one with what removing them all does."""
    console.print(_labelled_text(result, spec), soft_wrap=True)
    effects: Any = result.interventions
    effects = effects[effects["analysis"] == spec.name]
    whole = set(effects["set_id"])
    for row in effects[effects["n_random"] > 0].to_dict(orient="records"):
        how, n = row["set_id"].split(":")[0], row["n_random"]
        dose = any(other.startswith(row["set_id"] + " ") for other in whole)  # the first few heads of a larger set
        edit = f"{how}-ablated" if how in ("zero", "mean", "resample") else how
        spread = f" +- {row['random_sd']:.3f}" if n > 1 else ""
        console.print(
            f"  {'top' if dose else 'all'} {row['k']} {edit}: {row['metric']} {row['clean']:.3f} -> {row['edited']:.3f}"
            f"  ({n} random set{'s' * (n > 1)}, {row['control']}: {row['random_mean']:.3f}{spread})",
            soft_wrap=True,
        )
    console.print()


def _labelled_text(result: Result, spec: Analysis) -> str:
    """Number and names of the labelled rows, class by class where the analysis tells several apart."""
    from interp.measurement.classes import labelled_by_class

    rows = result.top(spec.name, variant=spec.headline, k=len(result.table))
    classes = labelled_by_class(spec, result.table)
    count = f"{sum(map(len, classes.values()))} of {len(rows)} {'heads' if spec.unit.startswith('head') else 'rows'}"
    if len(classes) > 1:
        parts = [f"{len(names)} {name}{f' ({_some(names)})' if names else ''}" for name, names in classes.items()]
        return f"{count} labelled: {', '.join(parts)}"
    (names,) = classes.values()
    return f"{count} labelled{': ' + _some(names) if names else ''}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")


def _print_roles(result: Result) -> None:
    """The heads' roles, all analyses together; nothing to sum up where there was one."""
    from interp.studies.atlas import atlas

    if result.table["analysis"].nunique() > 1:
        with suppress(SchemaError):  # none of them scores heads
            sys.stdout.write("Roles\n" + "\n".join(atlas(result).summary()) + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _command() -> str:
    import shlex

    return shlex.join(["interp", *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and turns every failure into one line on stderr and an exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None or not sys.stderr.isatty():  # bars are for terminals; read when Hugging Face is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with _interruptible() as interrupted, printable_streams(), plain_warnings():
        code = _run(arguments, interrupted)
    sys.exit(code)


def _run(arguments: Sequence[str], interrupted: list[int]) -> int:
    """The exit code of a command; what went wrong is said."""
    try:
        code = app(args=list(arguments), prog_name="interp", standalone_mode=False)
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
        elif "--debug" in arguments:
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
        _complain(f"unexpected {type(error).__name__}: {error} (--debug shows the traceback)")
    return FAILED


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody reads this either
        _say(f"interp: {' '.join(text.split())}")


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
