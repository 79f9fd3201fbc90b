"""Pages and tables made from the code, so that they cannot fall behind it.

    python docs/_generate.py

writes two kinds. `COMMITTED` are plain Markdown, kept in git because they are worth reading where they lie; a test
compares them with what this file makes. The rest is directives for Sphinx, ignored by git: the API, the data sets.
"""

from __future__ import annotations

import ast
import csv
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from _pages import COLUMN_MEANINGS, FAMILIES, FOLDERS, INTERVENTION_MEANINGS, PAGES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
NOTE = "<!-- Made by `python docs/_generate.py`; do not edit. -->"
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
        "What each command prints when asked for `--help`. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.\n"
        "Data goes to stdout, progress and complaints to stderr; `interp --debug COMMAND` shows a traceback.\n",
    ]
    parts += [f"## {path}\n\n```text\n{text.rstrip()}\n```\n" for path, text in commands()]
    return "\n".join(parts)


def label_rule(spec: Any) -> str:
    """The sentences of the docstring that say when a head is labelled."""
    head = re.split(r"\nArgs:", inspect.getdoc(spec.run) or "")[0]
    flat = " ".join(head.split())
    found = [s.rstrip(";.") for s in re.split(r"(?<=[.;]) ", flat) if LABEL.search(s)]
    return ". ".join(s[0].upper() + s[1:] for s in found) or "none"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def analyses() -> str:
    """docs/reference/analyses.md."""
    from interp.measurement.registry import analyses as registered

    found = [s for s in registered().values() if s.run.__module__.startswith(("probes.", "circuits.", "interp."))]
    lines = [
        "# Analyses",
        "",
        NOTE,
        "",
        "`interp detect MODEL` runs every analysis of heads that suits the model; `interp detect MODEL -a NAME`, or",
        '`interp.analyze(model, "induction", seed=0)` in Python, one of them. Options, variants and errors stand in',
        "the docstrings of `probes.heads` and `probes.attention`. How nulls, intervals and q are made:",
        "[statistics](../explanation/statistics.md).",
        "",
        "| analysis | of | quantity |",
        "|---|---|---|",
    ]
    lines += [f"| [`{s.name}`](#{s.name}) | {_cell(s.unit)} | {_cell(s.quantity)} |" for s in found]
    for s in found:
        lines += ["", f"({s.name})=", f"## {s.title}: `{s.name}`", "", _cell(s.quantity).replace("*", "\\*"), ""]
        facts = {
            "Means": s.means,
            "Misleads": s.misleads,
            "Label": label_rule(s),
            "Headline": f"variant `{s.headline}`, one row per {s.unit}",
            "Judged": f"on planted `{s.planted.recovers}`, see the [scoreboard](../scoreboard.md)" if s.planted else "",
            "Columns": ", ".join(f"`{name}` ({kind})" for name, kind in s.columns.items()),
            "Reference": s.reference,
            "Code": f"`{s.run.__module__}`",
        }
        lines += [f"- **{key}.** {_cell(text)}" for key, text in facts.items() if text]
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
            rows = [f"| {{py:obj}}`~{name}` | {_cell(_first_line(value))} |" for name, value in offered.items()]
            table = "\n".join(["| name | what it is |", "|---|---|", *rows])
            directives = "\n".join(_directive(name, value) for name, value in offered.items())
            parts.append(f"## {home}\n\n{_first_line(module)}\n\n{table}\n\n```{{eval-rst}}\n{directives}```\n")
        pages[page] = "\n".join(parts)
    rows = [f"| [{title}]({page}.md) | {intro} |" for page, (title, intro, _) in PAGES.items()]
    toctree = ["```{toctree}", ":hidden:", "", *PAGES, "```", ""]
    pages["index"] = "\n".join(["# Python API", "", "| page | holds |", "|---|---|", *rows, "", *toctree])
    return pages


def datasets() -> str:
    """docs/reference/datasets.md: the card of every folder in datasets/."""
    cards = sorted((ROOT / "datasets").glob("*/README.md"))
    lines = ["# Data sets", "", "```{include} ../../datasets/README.md", ":start-line: 2", "```", ""]
    for card in cards:
        path = card.relative_to(ROOT).as_posix()
        lines += [f"```{{include}} ../../{path}", ":heading-offset: 1", "```", "", f"In `{card.parent.name}/`.", ""]
    return "\n".join(lines)


def folders() -> list[str]:
    """Folders that hold files of the project, those that differ in digits alone as one: `step-*`.

    A line of `FOLDERS` that ends in `/**` stands for a folder and all inside it.
    """
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    places = {re.sub(r"\d{2,}$", "*", str(Path(name).parent)) for name in names if name and (ROOT / name).is_file()}
    whole = {folder.removesuffix("**") for folder in FOLDERS if folder.endswith("/**")}  # one line for all inside
    places = {next((f"{w}**" for w in whole if f"{place}/".startswith(w)), place) for place in places}
    gone = sorted(set(FOLDERS) - places)
    if gone:
        raise KeyError(f"docs/_pages.py: FOLDERS has a line for {gone[0]!r}, which is not there")
    return sorted(places)


def _folder_line(folder: str) -> str:
    """What a folder holds: said in `FOLDERS`, by its package, or by the heading of its card.

    Raises:
        KeyError: none of them says it; a line in `FOLDERS` is missing.
    """
    where, init = ROOT / folder, ROOT / folder / "__init__.py"
    if folder in FOLDERS:
        return FOLDERS[folder]
    if init.is_file():
        return (ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "").split("\n", 1)[0]
    for card, of in ((where / "README.md", ""), (where.parent / "README.md", f", {where.name}")):
        if card.is_file() and card.parent != ROOT:
            return card.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ") + of
    inside = folder.removeprefix("tests/")
    for tested in (inside, f"interp/{inside}"):
        if inside != folder and (ROOT / tested / "__init__.py").is_file():
            return f"tests of `{tested}`"
    raise KeyError(f"docs/_pages.py: FOLDERS has no line for {folder!r}")


def where_things_are() -> str:
    """docs/reference/where-things-are.md: every folder of the tree, a line each."""
    rows = [f"| `{folder}` | {_cell(_folder_line(folder))} |" for folder in folders()]
    return "\n".join(
        [
            f"# Where things are\n\n{NOTE}\n",
            "One line a folder. `interp` is the instrument, `probes` ask what one component does, `circuits` how "
            "components work together.",
            "A module whose name begins with an underscore holds a function that its package hands out under the same "
            "name:",
            "`probes/heads/_induction.py` is `probes.heads.induction`. Words of our own are in the "
            "[glossary](../explanation/glossary.md).\n",
            "| folder | holds |",
            "|---|---|",
            *rows,
            "",
        ]
    )


OUTCOMES = {
    "works": "everything that is tried",
    "partly": "it loads and runs; what is refused, with the reason, stands beside it",
    "refused": "it does not load, or nothing can be run; the reason stands beside it",
    "raw error": "a fault of ours: an error that is none of the toolkit's",
    "wrong": "a fault of ours: a number that is not the model's",
    "not built": "no tiny model of it could be made here",
}


def architectures() -> str:
    """docs/reference/architectures.md, from docs/architectures.csv."""
    with (DOCS / "architectures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = Counter(row["outcome"] for row in rows)
    lines = [
        "# Architectures",
        "",
        NOTE,
        "",
        "Every model type of transformers that has a causal class, as a tiny random model: loaded with `interp.load`",
        '(`backend="hf"`, then `"lens"` where that refuses) and run. Tried are: logits against the plain forward pass;',
        "captures of the residual stream, q, k, v, z, patterns, `head_out`, `attn_out`, `mlp_out`; statistics against",
        "the dense pattern; a head ablated against a hook; each prompt of a batch padded on the left or right against",
        "the prompt alone; prompts beyond the context under dynamic rotary scaling; weights against a run; the",
        "decomposition of the stream; generation; gradients. `python tests/architectures` makes the table anew.",
        "",
        "| outcome | types | means |",
        "|---|---|---|",
        *(f"| {kind} | {counts[kind]} | {meaning} |" for kind, meaning in OUTCOMES.items()),
        f"| all | {len(rows)} | usable, wholly or in part: {counts['works'] + counts['partly']} |",
    ]
    for kind in OUTCOMES:
        some = [row for row in rows if row["outcome"] == kind]
        if some:
            lines += ["", f"## {kind.capitalize()}", "", "| type | class | backend | what not, and why |"]
            lines += ["|---|---|---|---|"]
            lines += [f"| `{r['type']}` | `{r['family']}` | {r['backend']} | {_plain(r['lacks'])} |" for r in some]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A reason in a table: what Markdown would take for markup is escaped."""
    return re.sub(r"([*_<>\[\]`])", r"\\\1", _cell(text))


def table_in(text: str, name: str, table: str) -> str:
    """The text with what stands between `<!-- name -->` and `<!-- end of name -->` replaced."""
    pattern = re.compile(rf"(<!-- {name}[^\n]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text)


def sites() -> str:
    """docs/reference/sites.md."""
    from interp.sites import DIFFERENCES, DIVISORS, KINDS, LENS, LENS_REFUSED, PER_HEAD, UNLAYERED

    def place(kind: str) -> str:
        if kind in UNLAYERED:
            return kind
        return f"L3H5.{kind}" if kind in PER_HEAD else f"L3.{kind}"

    lines = [
        "# Sites",
        "",
        NOTE,
        "",
        "Places that can be captured and edited. `L3.z` is layer 3, `L3H5.z` one head, `L0-5.mlp_out` several layers,",
        '`z` every layer, `@-1` the last token of each prompt. `capture="all"` is every site that the model has. What',
        "an architecture lacks is refused with the reason.",
        "",
        "| kind | written | holds | edited |",
        "|---|---|---|---|",
        *(f"| `{k}` | `{place(k)}` | {_cell(v)} | {'no' if k in DIVISORS else 'yes'} |" for k, v in KINDS.items()),
        "| `module:NAME` | `module:transformer.h.0.mlp` | what a module gives (its first tensor) | yes |",
        "| `module:NAME:input` | `module:transformer.h.0.mlp:input` | what a module takes (its first argument) | yes |",
        "",
        "`norm_scale` without a layer is the divisor of the final norm. A router that gives its choice beside",
        "`router_logits` refuses their edit, since a change would reach nothing.",
        "",
        "## Names of TransformerLens",
        "",
        "A name stands for the same tensor here, or is refused. `blocks.i.` is left out. Compared at every hook of",
        "bridges of GPT-2, Llama, GPT-NeoX and Gemma-2 by `tests/backends/test_lens_names.py`.",
        "",
        "| name | here | refused where |",
        "|---|---|---|",
    ]
    for name, (kind, *traits) in LENS.items():
        lines.append(f"| `{name.removeprefix('blocks.')}` | `{kind}` | {'; '.join(DIFFERENCES[t] for t in traits)} |")
    for name, why in LENS_REFUSED.items():
        lines.append(f"| `{name.removeprefix('blocks.')}` | | everywhere: {why} |")
    return "\n".join(lines) + "\n"


def i_want_to() -> str:
    """docs/how-to/i-want-to.md, from the operations that tests/curriculum tries."""
    folder = ROOT / "tests" / "curriculum"
    themes = [tomllib.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.toml")]
    lines = [
        "# I want to ...",
        "",
        NOTE,
        "",
        "What courses and demos of the field ask, in at most three lines each. What each gives is compared with",
        "plain PyTorch by `tests/curriculum/test_curriculum.py`. The lines use these names; put your own model and",
        "prompts in their place.",
        "",
        "```python",
        (folder / "start.py").read_text(encoding="utf-8").rstrip(),
        "```",
    ]
    for theme in sorted(themes, key=lambda t: t["order"]):
        lines += ["", f"## ... {theme['title']}"]
        for op in theme["operation"]:
            before = op.get("before", "").strip()
            have = [f"Where you have\n\n```python\n{before}\n```\n"] if 0 < len(before.splitlines()) <= 3 else []
            lines += [
                "",
                f"### {op['want']}",
                "",
                f"Asked by: {op['source']}.",
                "",
                *have,
                "```python",
                op["code"].strip(),
                "```",
            ]
    return "\n".join(lines) + "\n"


COMMITTED: dict[Path, Callable[[], str]] = {
    DOCS / "reference" / "cli.md": cli,
    DOCS / "reference" / "analyses.md": analyses,
    DOCS / "reference" / "tables.md": tables,
    DOCS / "reference" / "architectures.md": architectures,
    DOCS / "reference" / "sites.md": sites,
    DOCS / "reference" / "where-things-are.md": where_things_are,
    DOCS / "how-to" / "i-want-to.md": i_want_to,
    ROOT / "README.md": lambda: table_in((ROOT / "README.md").read_text(encoding="utf-8"), "analyses", families()),
}


def main() -> None:
    """Write every page that differs from what stands there."""
    pages = {path: make() for path, make in COMMITTED.items()}
    pages |= {DOCS / "reference" / "api" / f"{name}.md": text for name, text in api().items()}
    pages[DOCS / "reference" / "datasets.md"] = datasets()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
