"""`interp detect` and `interp demo`: what the heads of a model do, in twenty lines or in tables."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import options as cli_options
from interp.cli import values
from interp.cli.index import entries
from interp.cli.names import LARGEST_SEED, check_run
from interp.cli.tables import FEW, print_roles, print_summary, print_tables

if TYPE_CHECKING:
    from interp.batch import Batch
    from interp.model import Model

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of prompts, intervals and random controls.")]
Names = Annotated[list[str] | None, typer.Option("--analysis", "-a", metavar="NAME", help="Run this one; repeatable.")]
Prompt = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt of your own; repeatable.")]
Span = Annotated[list[str] | None, typer.Option(metavar="NAME=PLACE", help="A part of each prompt; repeatable.")]
MORE = "--full: all tables and reasons; -a NAME: one analysis; --out FILE: keep all"
"""Last line of a summary."""
HEAD = "head"
"""Unit of the analyses that are run where none is named."""


def detect(
    model: ModelArgument,
    analysis: Names = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print a table of each analysis, and why others ran not.")
    ] = False,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write .parquet, .csv or .json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take: passes, time, memory. Nothing is measured.")
    ] = False,
    top: Annotated[int | None, typer.Option(min=1, metavar="K", help="Rows in each table; 5 unless said.")] = None,
    option: values.Options = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    bos: cli_options.Bos = None,
    stack: Annotated[str | None, typer.Option(help="Of an encoder-decoder: encoder or decoder.")] = None,
    source: Annotated[str | None, typer.Option(metavar="TEXT", help="What its decoder reads.")] = None,
    force: cli_options.Force = False,
    quote: cli_options.Quote = False,
    prompt: Prompt = None,
    text: cli_options.TextFiles = None,
    span: Span = None,
) -> None:
    """What do the attention heads of MODEL do? What was found in twenty lines, or tables with nulls and intervals.

    Example: interp detect zoo:default -a induction --out heads.parquet

    --dry-run says first what it would take: passes, an estimate of time, and memory.

    Tables are shown of one or two analyses named by -a, and of all with --full or --top.

    With --prompt or --text only analyses that measure on prompts of one's own run; which do not is said. --span names
    a stretch of each: characters START to END (document=0:5200; an end left out is the text's), or words that it has
    once.

    Analyses that cost more than three passes over 1,024 tokens run by name only, or on prompts of one's own.

    -o sets any option of the analyses that are run (interp list analyses NAME shows them): n_prompts=64 of each that
    has it, induction.prompts=FILE of one. Prompts and pairs of one's own are files: see the how-to on own prompts.
    """
    check_run(model, dtype=dtype, device=device, analyses=analysis)
    cli_options.check_bos(bos)
    given = values.typed_options(option or [], analysis or head_analyses(dear=bool(prompt or text)))
    check_run(model, tasks=values.task_names(given))
    with cli_options.usage():
        texts = [*(prompt or ()), *(cli_options.read_text(path) for path in text or ())]
        spans = cli_options.read_spans(span or [], texts)
    target = None if out is None else cli_options.table_target(out, force=force)
    with cli_options.usage():
        given = values.checked(given)
    from interp.loading.load import load
    from interp.measurement.registry import detect as run

    checkpoint = load(model, revision=revision, dtype=dtype, device=device, stack=stack, source_text=source)
    prompts = cli_options.own_prompts(checkpoint, texts, spans, bos=bos)
    policy = None if texts else bos  # of the texts themselves
    options = values.of_model(given, checkpoint, seed=seed)
    if dry_run:
        _print_plan(checkpoint, analysis, prompts, options)
        return
    result = run(
        checkpoint, analysis, prompts=prompts, seed=seed, bos=policy, options=options, progress=cli_options.progress
    )
    result.provenance["command"] = _command()
    if target is not None:
        result.save(target, force=force, quote=quote)
        _say(f"wrote {target}")
    tables = full or top is not None or (analysis is not None and len(set(analysis)) <= FEW)
    if tables or as_json:
        cli_options.say_left_out(result.provenance["left_out"])
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    elif tables:
        print_tables(result, top or 5)
        print_roles(result)
    else:
        print_summary(result, more=[MORE])


def _print_plan(model: Model, names: list[str] | None, prompts: Batch | None, options: dict[str, Any]) -> None:
    """What `detect` would take, on stdout; what would not be run, on stderr."""
    from interp.measurement.cost import plan

    foretold = plan(model, names, prompts=prompts, options=options)
    sys.stdout.write(f"{foretold}\n")
    cli_options.say_left_out(foretold.left_out)


def demo(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Hub id, local folder, or zoo:NAME.")] = "zoo:default",
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes.")] = Path("report.html"),
    prompt: Annotated[str | None, typer.Option(help="Text to show attention on, instead of random tokens.")] = None,
    seed: Seed = 0,
    force: cli_options.Force = False,
) -> None:
    """Detect the heads of the shipped model, say what was found, and write a page about them."""
    from interp.files import writable_file

    check_run(model)
    target = writable_file(out, force=force)
    from interp.loading.load import load
    from interp.measurement.registry import detect as run
    from interp.reports import report

    checkpoint = load(model)
    if prompt is not None:
        checkpoint.batch(prompt)  # a prompt that cannot be run is refused before the work, not after it
    result = run(checkpoint, seed=seed, progress=cli_options.progress)
    result.provenance["command"] = _command()
    path = report(checkpoint, results=result, prompt=prompt, seed=seed, path=target, force=force, command=_command())
    print_summary(result, more=[f"report: {path.resolve()}"])


def head_analyses(*, dear: bool = False) -> list[str]:
    """Names of the analyses that are run where none is named; the `dear` ones on prompts of one's own alone."""
    found = entries("analyses")
    return [name for name, entry in found.items() if entry["of"] == HEAD and (dear or "by_name" not in entry)]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _command() -> str:
    return shlex.join(["interp", *sys.argv[1:]])
