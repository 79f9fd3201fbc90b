"""`interp runs`: stored results listed, queried and compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with results and circuits, searched to the bottom.")
    ],
    analysis: Annotated[str | None, typer.Option("--analysis", "-a", metavar="NAME", help="Runs of this one.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Runs on this model.")] = None,
    sql: Annotated[
        str | None, typer.Option(metavar="QUERY", help="Ask DuckDB; tables are runs, results and interventions.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two runs side by side, by id or file.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Rows shown of a comparison.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON records on stdout, nothing else.")] = False,
) -> None:
    """What is stored in DIR, and what does it say?

    Example: interp runs results --sql "SELECT component, value FROM results WHERE q < 0.01"
    """
    if sql is not None and compare is not None:
        raise typer.BadParameter("--sql and --compare are two questions; ask one at a time")
    from interp.cli.tables import line_width
    from interp.results import runs as folders
    from interp.results.sql import plain_cells

    listing = folders.runs(folder, analysis=analysis, model=model)
    for path, why in listing.skipped.items():
        sys.stderr.write(f"skipped {path}: {' '.join(why.split())}\n")
    if compare is not None:
        a, b = (listing.load(run) for run in compare)
        table = folders.compare(a, b).head(top)
        for key, (left, right) in folders.differences(a, b).items():
            sys.stderr.write(f"{key}: {left} -> {right}\n")
    else:
        table = listing.table if sql is None else listing.query(sql)
    if as_json:
        sys.stdout.write(plain_cells(table).to_json(orient="records", indent=1, date_format="iso") + "\n")
    elif not len(table):
        sys.stdout.write("nothing found\n")
    else:
        if compare is not None:  # standard errors and intervals of both are in --json
            spread = [name for name in table if str(name).startswith(("se_", "ci_"))]
            table = table.drop(columns=spread).dropna(axis=1, how="all")
        form = {"index": False, "na_rep": "", "float_format": lambda x: f"{x:.4g}", "line_width": line_width()}
        sys.stdout.write(table.to_string(**form) + "\n")  # columns that do not fit come in a block of their own
