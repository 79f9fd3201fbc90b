"""Pages made from what the code says of itself: commands, analyses, columns of tables, the API."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from _markdown import NOTE, cell
from _pages import COLUMN_MEANINGS, FAMILIES, INTERVENTION_MEANINGS, PAGES, TYPES

LABEL = re.compile(r"(head|set) is labelled|(label|role) needs")


def commands() -> Iterator[tuple[str, str]]:
    """Every command and subcommand with its `--help`, 100 columns wide."""
    import typer

    from interp.cli.main import app

    def walk(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
        options = {"resilient_parsing": True, "parent": parent, "terminal_width": 100, "max_content_width": 100}
        context = command.make_context(name, [], **options)
        yield context.command_path, command.get_help(context)
        for sub, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, sub, context)

    yield from walk(typer.main.get_command(app), "interp", None)


def cli() -> str:
    """docs/reference/cli.md."""
    parts = [
        f"# Command line\n\n{NOTE}\n",
        "What each command prints when asked for `--help`. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted,\n"
        "141 nobody reads the output; what they mean, and what happens to files:\n"
        "[files and exit codes](files-and-exit-codes.md). Data goes to stdout, progress and complaints to stderr;\n"
        "`--debug`, anywhere in a command, shows a traceback.\n",
    ]
    parts += [f"## {path}\n\n```text\n{text.rstrip()}\n```\n" for path, text in commands()]
    return "\n".join(parts)


def index() -> str:
    """interp/cli/index.json: names of analyses, tasks, methods and models, for the command line."""
    from interp.cli.index import make

    return json.dumps(make(), indent=1) + "\n"


def label_rule(spec: Any) -> str:
    """The sentences of the docstring that say when a head is labelled."""
    head = re.split(r"\nArgs:", inspect.getdoc(spec.run) or "")[0]
    flat = " ".join(head.split())
    found = [s.rstrip(";.") for s in re.split(r"(?<=[.;]) ", flat) if LABEL.search(s)]
    return ". ".join(s[0].upper() + s[1:] for s in found) or "none"


def analyses() -> str:
    """docs/reference/analyses.md."""
    from interp.measurement.registry import analyses as registered

    found = [s for s in registered().values() if s.run.__module__.startswith(("probes.", "circuits.", "interp."))]
    lines = [
        "# Analyses",
        "",
        NOTE,
        "",
        "`interp detect MODEL` runs every analysis of heads that suits the model, but those that are dear (what each",
        "[costs](../explanation/cost.md)); `interp detect MODEL -a NAME`, or",
        '`interp.analyze(model, "induction", seed=0)` in Python, one of them. Options, variants and errors stand in',
        "the docstrings of `probes.heads` and `probes.attention`. How nulls, intervals and q are made:",
        "[statistics](../explanation/statistics.md).",
        "",
        "| analysis | of | quantity |",
        "|---|---|---|",
    ]
    lines += [f"| [`{s.name}`](#{s.name}) | {cell(s.unit)} | {cell(s.quantity)} |" for s in found]
    for s in found:
        lines += ["", f"({s.name})=", f"## {s.title}: `{s.name}`", "", cell(s.quantity).replace("*", "\\*"), ""]
        facts = {
            "Means": s.means,
            "Misleads": s.misleads,
            "Label": label_rule(s),
            "Headline": f"variant `{s.headline}`, one row per {s.unit}",
            "Judged": f"on planted `{s.planted.recovers}`, see the [scoreboard](../scoreboard.md)" if s.planted else "",
            "Columns": ", ".join(f"`{name}` ({kind})" for name, kind in s.columns.items()),
            "Runs": "" if s.default else "by name, or on prompts of one's own: it costs more than three passes",
            "Reference": s.reference,
            "Code": f"`{s.run.__module__}`",
        }
        lines += [f"- **{key}.** {cell(text)}" for key, text in facts.items() if text]
    return "\n".join(lines) + "\n"


def families() -> str:
    """The table of README.md: analyses by the question they answer."""
    from interp.measurement.registry import analyses as registered

    found = [s for s in registered().values() if s.run.__module__.startswith("probes.")]
    unknown = {s.family for s in found} - FAMILIES.keys()
    if unknown:
        raise KeyError(f"no question in docs/_pages.py for the families {sorted(unknown)}")
    lines = ["| question | analyses |", "|---|---|"]
    for family, question in FAMILIES.items():
        names = ", ".join(f"`{s.name}`" for s in found if s.family == family)
        lines.append(f"| {question} | {names} |")
    return "\n".join(lines)


def tables() -> str:
    """docs/reference/tables.md."""
    from interp.measurement.registry import analyses as registered
    from interp.results.results import COLUMNS, INTERVENTION_COLUMNS, SCHEMA_VERSION

    def columns(declared: dict[str, str], meanings: dict[str, str]) -> list[str]:
        return ["| column | type | holds |", "|---|---|---|"] + [
            f"| `{name}` | {kind} | {meanings[name]} |" for name, kind in declared.items()
        ]

    lines = [
        "# Tables",
        "",
        NOTE,
        "",
        f"Schema version {SCHEMA_VERSION}. A `Result` is `table`, `interventions` and `provenance`; `.parquet` and",
        "`.json` files hold them all, `.csv` the table alone. What does not apply is NA. Undeclared columns: error.",
        "",
        "## Every analysis: `Result.table`",
        "",
        *columns(COLUMNS, COLUMN_MEANINGS),
        "",
        "## Interventions: `Result.interventions`",
        "",
        *columns(INTERVENTION_COLUMNS, INTERVENTION_MEANINGS),
        "",
        "## Columns that analyses add",
        "",
        "| analysis | columns |",
        "|---|---|",
    ]
    for spec in registered().values():
        if spec.columns and spec.run.__module__.startswith("probes."):
            added = ", ".join(f"`{name}` ({kind})" for name, kind in spec.columns.items())
            lines.append(f"| [`{spec.name}`](analyses.md#{spec.name}) | {added} |")
    return "\n".join(lines) + "\n"


def public(module: Any) -> list[str]:
    """Names a module offers: `__all__`, or the functions, classes and documented constants that it defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if name != "__version__"]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def _directive(name: str, value: Any) -> str:
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, Exception) else "class"
        bases = "" if value.__bases__ == (object,) else "   :show-inheritance:\n"
        return f".. auto{kind}:: {name}\n   :members:\n{bases}"
    if callable(value):
        return f".. autofunction:: {name}\n"
    return f".. py:data:: {name}\n   :value: {_constant(value)}\n"


def _constant(value: Any) -> str:
    """A constant of names, or of things by name: the names."""
    return ", ".join(map(repr, value)) if isinstance(value, Iterable) and not isinstance(value, str) else repr(value)


def _first_line(value: Any) -> str:
    """What a docstring begins with; constants have none of their own, and show what they hold."""
    described = inspect.ismodule(value) or callable(value)
    return (inspect.getdoc(value) or "").split("\n")[0] if described else f"`{_constant(value)}`"


def _types() -> list[str]:
    """What names in signatures stand for, and how shapes are written."""
    rows = [f"| `{name}` | {cell(meaning)} |" for name, meaning in TYPES.items()]
    return [
        "## Types in signatures",
        "",
        "`Float[Tensor, 'batch pos d_model']` is a tensor of floating-point numbers with these axes (jaxtyping); the",
        "same name is the same length, `...` and `*name` are any number of axes, and `#` marks a length that may be 1.",
        "",
        "| name | takes |",
        "|---|---|",
        *rows,
        "",
    ]


def api() -> dict[str, str]:
    """Pages of docs/reference/api/, by name. What a package exports is described there and not at its home again."""
    seen: set[int] = set()
    pages = {}
    for page, (title, intro, names) in PAGES.items():
        parts = [f"# {title}\n\n{intro}\n"]
        for home in names:
            module = importlib.import_module(home)
            offered = {f"{home}.{name}": getattr(module, name) for name in public(module)}
            offered = {name: value for name, value in offered.items() if id(value) not in seen}
            if not offered:
                continue
            seen |= {id(value) for value in offered.values()}
            rows = [f"| {{py:obj}}`~{name}` | {cell(_first_line(value))} |" for name, value in offered.items()]
            table = "\n".join(["| name | what it is |", "|---|---|", *rows])
            directives = "\n".join(_directive(name, value) for name, value in offered.items())
            parts.append(f"## {home}\n\n{_first_line(module)}\n\n{table}\n\n```{{eval-rst}}\n{directives}```\n")
        pages[page] = "\n".join(parts)
    rows = [f"| [{title}]({page}.md) | {intro} |" for page, (title, intro, _) in PAGES.items()]
    toctree = ["```{toctree}", ":hidden:", "", *PAGES, "```", ""]
    pages["index"] = "\n".join(["# Python API", "", "| page | holds |", "|---|---|", *rows, "", *_types(), *toctree])
    return pages
