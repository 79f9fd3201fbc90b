"""`interp circuit`: the circuit of a task, printed and written."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import own
from interp.cli.index import entries
from interp.cli.names import LARGEST_SEED, check_options, check_run
from interp.cli.options import Force, Quote
from interp.cli.tables import wrapped
from interp.environment import CIRCUIT_METHODS, plugin_names
from interp.files import writable_folder, write_files

if TYPE_CHECKING:
    from circuits.find import Found
    from interp.results.results import Result

OWN = "circuit"
"""How the name of a folder begins that is named after what was asked."""
FILES = ("edges.csv", "faithfulness.csv", "graph.json", "circuit.dot", "circuit.html")
Roles = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Roles of heads for the page: CSV (component, role), or detect's .parquet."),
]
LARGEST_ROLES = 1 << 24
"""Bytes of a file of roles at most."""
TABLES = ("table.parquet", "table.csv")

Save = Annotated[bool, typer.Option("--save", help="The same into circuit-MODEL-TASK-METHOD, made in this folder.")]
Size = Annotated[int, typer.Option(min=2, max=100_000, help="Prompts to find it on, and as many others to judge it.")]
Random = Annotated[
    int, typer.Option("--random", min=1, metavar="N", help="Random circuits of the same size; from 99 on with a p.")
]


def circuit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")],
    task: Annotated[
        str | None, typer.Option("--task", "-t", metavar="T", help="ioi, greater-than, induction, ...")
    ] = None,
    clean: own.Clean = None,
    corrupt: own.Corrupt = None,
    answer: Annotated[own.Texts, typer.Option(metavar="TOKEN", help="Right after --clean.")] = None,
    wrong: Annotated[own.Texts, typer.Option(metavar="TOKEN", help="What it is compared with.")] = None,
    pairs: own.PairFile = None,
    answer_tokens: own.AnswerTokens = "one",
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="M", help=f"How: {', '.join(plugin_names(CIRCUIT_METHODS))}.")
    ] = "eap-ig",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="Of the method, such as steps=10; repeatable."),
    ] = None,
    edges: Annotated[int | None, typer.Option(min=1, metavar="N", help="Size of the circuit before pruning.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is measured; the task's own otherwise.")] = None,
    ablation: Annotated[str, typer.Option(help="What removed edges carry: resample, mean or zero.")] = "resample",
    n_prompts: Size = 64,
    n_random: Random = 20,
    top: Annotated[int, typer.Option(min=0, metavar="K", help="Edges printed.")] = 20,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write table, graph, picture and faithfulness here.")
    ] = None,
    save: Save = False,
    roles: Roles = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of prompts and random circuits.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    force: Force = False,
    quote: Quote = False,
) -> None:
    """Which edges of MODEL do a task, and how much of it do they do alone? Some methods ask about components instead.

    The task is a named one (--task), or prompts of your own. Of eight pairs or more every second one is held out; fewer
    are judged on themselves, which is said.

    Example: interp circuit zoo:default --task ioi --method eap-ig --out circuit
    """
    options = dict(_option(text) for text in option or ())
    check_run(model, dtype=dtype, device=device, method=method, tasks=[task] if task else ())
    check_options(method, options)
    out = _folder(out, folder_name(model, task, method), save=save)
    gives = entries("methods")[method]["gives"]
    if out is not None:
        writable_folder(out, TABLES if gives == "table" else FILES, force=force)
    role_table = _roles(roles)
    given = own.pairs_instead(task, (clean, corrupt, answer, wrong), pairs, answer_tokens)
    from circuits.find import circuit as find
    from interp.loading.load import load
    from interp.results.results import Result

    loaded = load(model, revision=revision, dtype=dtype, device=device)
    asked: Any = task
    if given is not None:
        asked, held_out = given.tasks(loaded, answer_tokens=answer_tokens)
        options |= {} if gives == "table" else {"held_out": held_out}
    outcome = find(
        loaded,
        asked,
        method=method,
        edges=edges,
        metric=metric,
        ablation=ablation,
        n_prompts=n_prompts,
        n_random=n_random,
        seed=seed,
        **options,
    )
    if isinstance(outcome, Result):
        _write_table(outcome, out=out, top=top, as_json=as_json, force=force, quote=quote)
    else:
        _write_circuit(outcome, roles=role_table, out=out, top=top, as_json=as_json, force=force, quote=quote)


def _folder(out: Path | None, named: str, *, save: bool) -> Path | None:
    """Where files go: the folder that is given, the one that is named after what was asked, or nowhere."""
    if save and out is not None:
        raise typer.BadParameter("--save names the folder itself; leave --out out")
    return Path(named) if save else out


def folder_name(model: str, task: str | None, method: str) -> str:
    """`circuit-default-ioi-eap-ig`: after the last part of a model's name, the task ("own" without one), the method.

    >>> folder_name("zoo:default", "greater-than", "eap-ig")
    'circuit-default-greater-than-eap-ig'
    """
    last = [part for part in re.split(r"[/\\:]", model) if part.strip(".")] or ["model"]
    parts = (OWN, last[-1], task or "own", method)
    return "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


def _option(text: str) -> tuple[str, Any]:
    """`steps=10` as ("steps", 10): a value is JSON where it can be read as such, else text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r}: options of a method are written NAME=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _roles(path: Path | None) -> Any:
    """Roles of heads: a table with component and role, or what `interp detect` wrote; None without a file.

    Raises:
        SchemaError: a file that cannot be read as such, or names no component.
    """
    if path is None:
        return None
    import pandas as pd

    from circuits.graph.roles import role_names
    from interp.errors import SchemaError
    from interp.files import read_text
    from interp.results.results import Result
    from interp.studies.atlas import atlas

    if path.suffix == ".parquet":
        table = atlas(Result.load(path)).roles()
    else:
        try:
            table = pd.read_csv(io.StringIO(read_text(path, most=LARGEST_ROLES, error=SchemaError)))
        except ValueError as error:  # pandas' own errors are ValueErrors
            raise SchemaError(
                f"{path}: no table of roles, a CSV with the columns component and role: {error}"
            ) from error
    role_names(table)
    return table


def _write_circuit(
    outcome: Found, *, roles: Any, out: Path | None, top: int, as_json: bool, force: bool, quote: bool
) -> None:
    if out is not None:
        for path in outcome.save(out, roles=roles, force=force, quote=quote).values():
            sys.stderr.write(f"wrote {path}\n")
    if as_json:
        document = {
            "provenance": {**outcome.provenance, "command": _command()},
            "faithfulness": json.loads(outcome.table().to_json(orient="records"))[0],
            "rows": json.loads(outcome.graph.table().to_json(orient="records")),
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    lines = [line for text in outcome.summary().splitlines() for line in wrapped(text)]
    sys.stdout.write("\n".join(lines) + "\n")
    rows = outcome.graph.table().head(top)
    if len(rows):
        sys.stdout.write(rows[["sender", "receiver", "port", "score"]].to_string(index=False) + "\n")
    n_more = outcome.graph.n_edges - len(rows)
    if n_more:
        sys.stdout.write(f"... and {n_more} more\n")


def _write_table(result: Result, *, out: Path | None, top: int, as_json: bool, force: bool, quote: bool) -> None:
    """What a method without a circuit says: its table, the strongest components first where it is printed."""
    result.provenance["command"] = _command()
    if out is not None:
        for path in write_files(
            out, {name: partial(result.save, quote=quote) for name in TABLES}, force=force
        ).values():
            sys.stderr.write(f"wrote {path}\n")
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
        return
    rows = result.table.sort_values("value", key=lambda v: -v.abs(), kind="stable").head(top)
    provenance = result.provenance
    sys.stdout.write(
        f"{provenance['method']} on {provenance['data']['task']}: {provenance['metric']}, {len(result.table)} rows\n"
    )
    columns = rows[["component", "variant", "value", "ci_low", "ci_high", "n"]]
    sys.stdout.write(columns.to_string(index=False, na_rep="", float_format=lambda x: f"{x:.4g}") + "\n")
    n_more = len(result.table) - len(rows)
    if n_more:
        sys.stdout.write(f"... and {n_more} more\n")


def _command() -> str:
    return shlex.join(["interp", *sys.argv[1:]])
