"""`interp list`: the names of analyses, tasks, circuit methods and models, each with a line about it."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Annotated

import typer

from interp.cli import index, names
from interp.cli.tables import line_width
from interp.cli.values import READ
from interp.errors import nearest

INDENT = 26
SINGULAR = {"analyses": "analysis", "tasks": "task", "methods": "method", "zoo": "model"}


def list_names(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=f"{', '.join(index.KINDS)}; without it, the names of all.")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, with the options it takes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
) -> None:
    """What analyses, tasks, circuit methods and models are there, and which options does one take?

    Example: interp list analyses induction
    """
    if kind is not None and kind not in index.KINDS:
        raise typer.BadParameter(f"nothing is listed as {kind!r}; {nearest(kind, index.KINDS)}")
    chosen = {one: index.entries(one) for one in ([kind] if kind else index.KINDS)}
    if kind is not None and name is not None:
        names.check(kind, [name], called=SINGULAR[kind])
        chosen = {kind: {name: chosen[kind][name]}}
    if as_json:
        sys.stdout.write(json.dumps(chosen, indent=1) + "\n")
        return
    width = line_width()
    for one, entries in chosen.items():
        if kind is None:
            sys.stdout.write(_names(one, entries, width))
        else:
            sys.stdout.write("".join(name_line(n, about(entry), width) for n, entry in entries.items()))
    if name is not None:
        options = chosen[str(kind)][name].get("options", {})
        said = {option: READ.get(value, value) or "see the reference" for option, value in options.items()}
        sys.stdout.write("".join(name_line(f"  -o {option}=", text, width) for option, text in said.items()))


def about(entry: dict[str, str]) -> str:
    """What is said of a name that is listed."""
    return entry["title"] + (f" ({entry['of']})" if entry.get("of") else "")


def _names(kind: str, entries: index.Entries, width: int) -> str:
    text = textwrap.fill(
        ", ".join(entries),
        width,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{len(entries)} {'models' if kind == 'zoo' else kind} (interp list {kind})\n{text}\n"


def name_line(name: str, text: str, width: int) -> str:
    """A name and what is said of it, wrapped beside it."""
    lead = name if len(name) < INDENT else f"{name}\n{' ' * (INDENT - 1)}"
    first, *rest = textwrap.wrap(text, width - INDENT) or [""]
    lines = [f"{lead:{INDENT - 1}} {first}", *(" " * INDENT + line for line in rest)]
    return "\n".join(line.rstrip() for line in lines) + "\n"
