"""`interp reproduce`: our scores on a model beside published ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.names import LARGEST_SEED, check_run
from interp.cli.options import usage
from interp.cli.tables import wrapped

Pairs = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Rows of the file that count; repeatable.")
]


def reproduce(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Hub id, local folder, zoo:NAME, or a name of which heads are on record; without it, these names.",
        ),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Published scores: .csv or .parquet with score, layer, head, value."),
    ] = None,
    where: Pairs = None,
    score: Annotated[
        list[str] | None,
        typer.Option(metavar="THEIRS=OURS", help="Compare their score with ours, analysis.variant; repeatable."),
    ] = None,
    k: Annotated[
        int, typer.Option("--top", min=1, metavar="K", help="Heads compared at the top of both rankings.")
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of prompts and intervals.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Do our scores agree with published ones? Models of the hub need it or its cache.

    Example: interp reproduce gpt2 --published scores.csv --where model=gpt2-small
    """
    check_run(dtype=dtype, device=device)
    from interp.studies import reproduce as compared
    from interp.studies.published import Published

    if model is None:
        for name in compared.names():
            entry = compared.named(name)
            roles = ", ".join(head["role"] for head in entry["heads"])
            sys.stdout.write(f"{name:20} {entry['model']:36} {roles}\n")
        return
    with usage():
        if published is None and model not in compared.names():
            compared.named(model)
        scores = _pairs(score, "--score")
        table = None if published is None else Published.of(published, _pairs(where, "--where")).table
        for name in [] if table is None else dict.fromkeys(table["score"]):
            compared.like(str(name), scores)
    options: dict[str, Any] = {"published": published, "where": _pairs(where, "--where"), "scores": scores}
    found = compared.reproduce(model, **options, k=k, seed=seed, dtype=dtype, device=device).table
    if as_json:
        sys.stdout.write(found.to_json(orient="records", indent=1) + "\n")
        return
    _say(found.to_dict(orient="records"))


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """`NAME=VALUE` of a repeated option."""
    pairs = [text.partition("=") for text in given or ()]
    for name, sign, value in pairs:
        if not (name and sign and value):
            raise typer.BadParameter(f"{option} takes NAME=VALUE; got {name + sign + value!r}")
    return {name: value for name, _, value in pairs}


def _say(rows: Sequence[Mapping[Any, Any]]) -> None:
    for row in rows:
        for line in wrapped(f"{row['what']}  ({row['analysis']}: {row['variant']}; {row['source']})"):
            sys.stdout.write(line + "\n")
        if isinstance(row["why"], str):
            sys.stdout.write("\n".join(wrapped(f"  not measured: {row['why']}")) + "\n")
            continue
        has_rank = row["spearman"] == row["spearman"]  # NaN for named heads
        rho = f"Spearman {row['spearman']:.3f} over {row['heads']:.0f} heads, " if has_rank else ""
        text = f"  {rho}{row['overlap']:.0%} of the {row['k']:.0f} best heads shared (at random {row['chance']:.1%})"
        sys.stdout.write("\n".join(wrapped(text)) + "\n")
