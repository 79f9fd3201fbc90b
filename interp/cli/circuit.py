"""`interp circuit`: the circuit of a task, printed and written."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def circuit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")],
    task: Annotated[str, typer.Option("--task", "-t", metavar="T", help="ioi, greater-than, induction, ...")],
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="M", help="How edges are scored or chosen.")
    ] = "eap-ig",
    edges: Annotated[int | None, typer.Option(min=1, metavar="N", help="Size of the circuit before pruning.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is measured; the task's own otherwise.")] = None,
    ablation: Annotated[str, typer.Option(help="What removed edges carry: resample, mean or zero.")] = "resample",
    n_prompts: Annotated[int, typer.Option(min=2, help="Prompts to find it on, and as many others to judge it.")] = 64,
    n_random: Annotated[int, typer.Option(min=1, help="Random circuits of the same size to compare with.")] = 20,
    top: Annotated[int, typer.Option(min=0, metavar="K", help="Edges printed.")] = 20,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write table, graph, picture and faithfulness here.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts and random circuits.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
) -> None:
    """Which edges of MODEL do task T, and how much of it do they do alone?

    Example: interp circuit zoo:default --task ioi --method eap-ig --out circuit
    """
    from circuits.find import circuit as find
    from circuits.methods import METHODS
    from interp.errors import nearest
    from interp.loading.load import load

    if method not in METHODS:
        raise typer.BadParameter(f"unknown method {method!r}; {nearest(method, METHODS)}")
    if out is not None and out.is_file():
        raise typer.BadParameter(f"{str(out)!r} is a file; name a folder")
    loaded = load(model, revision=revision, dtype=dtype, device=device)
    found = find(
        loaded,
        task,
        method=method,
        edges=edges,
        metric=metric,
        ablation=ablation,
        n_prompts=n_prompts,
        n_random=n_random,
        seed=seed,
    )
    command = shlex.join(["interp", *sys.argv[1:]])
    if out is not None:
        for path in found.save(out).values():
            sys.stderr.write(f"wrote {path}\n")
    if as_json:
        document = {
            "provenance": {**found.provenance, "command": command},
            "faithfulness": json.loads(found.table().to_json(orient="records"))[0],
            "rows": json.loads(found.graph.table().to_json(orient="records")),
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    sys.stdout.write(found.summary() + "\n")
    rows = found.graph.table().head(top)
    if len(rows):
        sys.stdout.write(rows[["sender", "receiver", "port", "score"]].to_string(index=False) + "\n")
    hidden = found.graph.n_edges - len(rows)
    if hidden:
        sys.stdout.write(f"... and {hidden} more\n")
