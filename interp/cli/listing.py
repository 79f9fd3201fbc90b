"""`interp list`: the names of analyses, tasks, circuit methods and models, each with a line about it."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import Annotated

import typer

from interp.cli import index
from interp.errors import nearest

NARROW, INDENT = 80, 26


def list_names(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=f"{', '.join(index.KINDS)}; without it, the names of all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
) -> None:
    """What analyses, tasks, circuit methods and models are there?

    Example: interp list analyses
    """
    if kind is not None and kind not in index.KINDS:
        raise typer.BadParameter(f"nothing is listed as {kind!r}; {nearest(kind, index.KINDS)}")
    chosen = {name: index.entries(name) for name in ([kind] if kind else index.KINDS)}
    if as_json:
        sys.stdout.write(json.dumps(chosen, indent=1) + "\n")
        return
    width = line_width()
    for name, entries in chosen.items():
        if kind is None:
            sys.stdout.write(_names(name, entries, width))
        else:
            sys.stdout.write("".join(name_line(n, about(entry), width) for n, entry in entries.items()))


def line_width() -> int:
    """Columns of the terminal, 40 to 120; where the output goes elsewhere, 80."""
    return max(40, min(shutil.get_terminal_size().columns, 120)) if sys.stdout.isatty() else NARROW


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
