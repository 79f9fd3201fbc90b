"""What `interp detect` prints: the summary of a result, or a table of each analysis, in the width of the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from interp.cli.output import printable, unguarded
from interp.errors import SchemaError

if TYPE_CHECKING:
    from interp.measurement.declaration import Analysis
    from interp.results.results import Result

NARROW, WIDE = 80, 120
FEW = 2
"""Analyses asked for by name whose tables are shown; more are summed up."""
NONE = "-"
"""Of a number that is none, such as the interval over one prompt."""


def line_width() -> int:
    """Columns of lines on stdout: the terminal's from 40 to 120, 80 where it is none."""
    return max(40, min(shutil.get_terminal_size().columns, WIDE)) if sys.stdout.isatty() else NARROW


def print_summary(result: Result, *, more: Sequence[str] = ()) -> None:
    """At most 20 lines; `more` are the last of them."""
    from interp.studies.summary import summary

    sys.stdout.write("\n".join(summary(result, width=line_width(), more=more)) + "\n")


def print_tables(result: Result, top: int) -> None:
    """The best rows of each analysis, how well the model does its task, what is labelled and what its removal does."""
    from rich.console import Console
    from rich.table import Table

    from interp.measurement.registry import find
    from interp.studies.findings import calls

    console = Console(highlight=False, markup=False, file=unguarded(sys.stdout), width=line_width())
    own = calls(result)
    for name in result.table["analysis"].unique():
        spec = find(name)
        rows = result.top(name, variant=spec.headline, k=top)
        console.print(f"{spec.title}  ({spec.name}: {spec.headline})", style="bold")
        for line in ability_lines(own.get(name, {})):
            console.print(line)
        table = Table()
        for heading in ("component", "score", "95 % interval", "null", "q", "labelled"):
            justify = "left" if heading == "component" else "right"
            table.add_column(heading, justify=justify, overflow="fold")
        for row in rows.to_dict(orient="records"):
            table.add_row(
                printable(row["component"]),
                number(row["value"]),
                interval(row["ci_low"], row["ci_high"]),
                number(row["null"]),
                number(row["q"], ".1e"),
                "yes" if row.get("label") is True else "",
            )
        console.print(table)
        for line in _labelled(result, spec):
            console.print(line)
        console.print()


def number(value: float, form: str = ".3f") -> str:
    """A number, or a dash where it is none."""
    return NONE if value != value else format(value, form)  # noqa: PLR0124  NaN


def interval(low: float, high: float) -> str:
    """`0.978 .. 0.984`, or a dash where there is none, as over one prompt."""
    return NONE if low != low or high != high else f"{low:.3f} .. {high:.3f}"  # noqa: PLR0124  NaN


def ability_lines(provenance: Any) -> list[str]:
    """How well the model does each task that an analysis asks, and a warning where that is not better than chance."""
    from interp.measurement.ability import Ability

    lines = []
    for task, values in provenance.get("ability", {}).items():
        own = Ability.from_dict(values)
        lines += wrapped(f"  {printable(task)}: {own.whole_sentence()}")
        lines += wrapped(f"  {own.caution}") if own.caution else []
    return lines


def _labelled(result: Result, spec: Analysis) -> list[str]:
    """A line with the labelled heads, and one with what removing them all does."""
    lines = wrapped(labelled_text(result, spec))
    effects: Any = result.interventions
    effects = effects[effects["analysis"] == spec.name]
    whole = set(effects["set_id"])
    for row in effects[effects["n_random"] > 0].to_dict(orient="records"):
        how, n = row["set_id"].split(":")[0], row["n_random"]
        dose = any(other.startswith(row["set_id"] + " ") for other in whole)  # the first few heads of a larger set
        edit = f"{how}-ablated" if how in ("zero", "mean", "resample") else how
        spread = f" +- {row['random_sd']:.3f}" if n > 1 else ""
        change = f"{row['metric']} {row['clean']:.3f} -> {row['edited']:.3f}"
        lines += wrapped(
            f"  {'top' if dose else 'all'} {row['k']} {edit}: {change} "
            f"({n} random set{'s' * (n > 1)}, {row['control']}: {row['random_mean']:.3f}{spread})"
        )
    return lines


def labelled_text(result: Result, spec: Analysis) -> str:
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


def print_roles(result: Result) -> None:
    """The heads' roles, all analyses together; nothing to sum up where there was one."""
    from interp.studies.atlas import atlas

    if result.table["analysis"].nunique() > 1:
        with suppress(SchemaError):  # none of them scores heads
            lines = [line for text in atlas(result).summary() for line in wrapped(text)]
            sys.stdout.write("Roles\n" + "\n".join(lines) + "\n")


def wrapped(text: str) -> list[str]:
    """Lines of the terminal's width, the second and further ones indented."""
    return textwrap.wrap(text, line_width(), subsequent_indent=4 * " ", break_long_words=False, break_on_hyphens=False)
