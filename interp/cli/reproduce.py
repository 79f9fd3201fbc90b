"""`interp reproduce`: our scores on a model of the hub beside published ones."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from interp.cli.names import LARGEST_SEED, check_run


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A published table; without it, the names of all.")
    ] = None,
    k: Annotated[
        int, typer.Option("--top", min=1, metavar="K", help="Heads compared at the top of both rankings.")
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of prompts and intervals.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Do our scores agree with published ones? Needs the model, from the hub or its cache.

    Example: interp reproduce gpt2-small
    """
    check_run(dtype=dtype, device=device)
    from interp.errors import SchemaError
    from interp.studies import reproduce as compared

    if name is None:
        for table_name in compared.names():
            entry = compared.published(table_name)
            sys.stdout.write(f"{table_name:20} {entry['model']:36} {entry['source']}\n")
        return
    try:
        compared.published(name)
    except SchemaError as error:
        raise typer.BadParameter(str(error)) from error
    table = compared.reproduce(name, k=k, seed=seed, dtype=dtype, device=device).table
    if as_json:
        sys.stdout.write(table.to_json(orient="records", indent=1) + "\n")
        return
    for row in table.to_dict(orient="records"):
        sys.stdout.write(f"{row['what']}  ({row['analysis']}: {row['variant']}; {row['source']})\n")
        if isinstance(row["why"], str):
            sys.stdout.write(f"  not measured: {row['why']}\n")
            continue
        has_rank = row["spearman"] == row["spearman"]  # NaN for named heads
        rho = f"Spearman {row['spearman']:.3f} over {row['heads']:.0f} heads, " if has_rank else ""
        sys.stdout.write(
            f"  {rho}{row['overlap']:.0%} of the {row['k']:.0f} best heads shared (at random {row['chance']:.1%})\n"
        )
