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
    width = max(40, min(shutil.get_terminal_size().columns, 120)) if sys.stdout.isatty() else NARROW
    for name, entries in chosen.items():
        if kind is None:
            sys.stdout.write(_names(name, entries, width))
        else:
            sys.stdout.write("".join(_line(n, entry, width) for n, entry in entries.items()))


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


def _line(name: str, entry: dict[str, str], width: int) -> str:
    about = entry["title"] + (f" ({entry['of']})" if entry.get("of") else "")
    lead = name if len(name) < INDENT else f"{name}\n{' ' * (INDENT - 1)}"
    first, *rest = textwrap.wrap(about, width - INDENT) or [""]
    lines = [f"{lead:{INDENT - 1}} {first}", *(" " * INDENT + line for line in rest)]
    return "\n".join(line.rstrip() for line in lines) + "\n"
