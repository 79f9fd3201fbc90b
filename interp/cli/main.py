"""The command line: data on stdout, progress and complaints on stderr, library calls and nothing else in between.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
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
from interp.errors import InterpError, SchemaError

if TYPE_CHECKING:
    from interp.measurement.registry import Analysis
    from interp.results.results import Result

FAILED, USAGE, INTERRUPTED = 1, 2, 130
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports the leaf of its usage errors alone

app = typer.Typer(
    name="interp",
    help="Look inside transformer language models.",
    no_args_is_help=True,
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

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")]
Seed = Annotated[int, typer.Option(help="Seed of prompts, intervals and random controls.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")]
Names = Annotated[list[str] | None, typer.Option("--analysis", "-a", metavar="NAME", help="Run this one; repeatable.")]


@app.callback()
def _options(
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
) -> None:
    """What do the attention heads of MODEL do? One table, with nulls, intervals and causal checks.

    Example: interp detect zoo:default -a induction --out heads.parquet
    """
    from interp.loading.load import load
    from interp.measurement.registry import detect as run
    from interp.measurement.registry import find
    from interp.results.files import writable

    with cli_options.usage():
        cli_options.check_bos(bos)
        for name in analysis or ():
            find(name)
        target = None if out is None else _table_path(out)
    target = None if target is None else writable(target)
    checkpoint = load(model, revision=revision, dtype=dtype, device=device, stack=stack, source_text=source)
    result = run(checkpoint, analysis, seed=seed, bos=bos, progress=cli_report.progress)
    result.provenance["command"] = _command()
    cli_options.say_left_out(result.provenance["left_out"])
    if target is not None:
        result.save(target)
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
) -> None:
    """Detect the heads of the shipped model, print the best, and write a page about them."""
    from interp.loading.load import load
    from interp.measurement.registry import detect as run
    from interp.reports import report
    from interp.results.files import writable_file

    target = writable_file(out)
    checkpoint = load(model)
    if prompt is not None:
        checkpoint.batch(prompt)  # a prompt that cannot be run is refused before the work, not after it
    result = run(checkpoint, seed=seed, progress=cli_report.progress)
    result.provenance["command"] = _command()
    cli_options.say_left_out(result.provenance["left_out"])
    _print_tables(result, 3)
    path = report(checkpoint, results=result, prompt=prompt, seed=seed, path=target, command=_command())
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

    console = Console(highlight=False)
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
                row["component"], f"{row['value']:.3f}", interval, f"{row['null']:.3f}", f"{row['q']:.1e}", label
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


def _table_path(path: Path) -> Path:
    from interp.results.files import SUFFIXES

    if path.suffix not in SUFFIXES:
        raise SchemaError(f"cannot tell the format of {str(path)!r}; end it in {', '.join(SUFFIXES)}")
    return path


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _command() -> str:
    import shlex

    return shlex.join(["interp", *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and turns every failure into one line on stderr and an exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if not sys.stderr.isatty():  # progress bars are for terminals; read when Hugging Face's packages are imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(args=arguments, prog_name="interp", standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this without a word
            _say("interp: interrupted")
    except UsageError as error:
        _say(f"interp: {error.format_message()}")  # type: ignore[attr-defined]
        code = USAGE
    except (KeyboardInterrupt, typer.Abort):
        _say("interp: interrupted")
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        code = FAILED
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, InterpError) else f"unexpected {type(error).__name__}: "
        hint = "" if isinstance(error, InterpError) else " (--debug shows the traceback)"
        _say(f"interp: {kind}{' '.join(str(error).split())}{hint}")
        code = FAILED
    sys.exit(code if isinstance(code, int) else 0)
