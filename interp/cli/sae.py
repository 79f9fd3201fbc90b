"""`interp sae`: sparse dictionaries of a model's activations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Sparse autoencoders and transcoders of a model's activations.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Sparse autoencoders and transcoders of a model's activations."""


@app.command()
def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")],
    site: Annotated[list[str], typer.Argument(metavar="SITE...", help="Where it reads, such as L2.resid_post.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go; an interrupted run goes on there.")],
    site_out: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE", help="Where a transcoder writes; repeatable, one for each SITE, across layers."),
    ] = None,
    kind: Annotated[str, typer.Option(help="batchtopk, topk, jumprelu, standard or gated.")] = "batchtopk",
    features: Annotated[int, typer.Option(min=1, metavar="N", help="Features, of each layer.")] = 1024,
    k: Annotated[int, typer.Option(min=1, help="Active features of a token.")] = 32,
    sparsity: Annotated[float | None, typer.Option(help="Weight of the sparsity loss; by kind unless said.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Tokens of an update.")] = 1024,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the parameters and of the order of the data.")] = 0,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Text to run the model on, repeatable; sources of Python unless said."),
    ] = None,
    save_every: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Between two saved states.")] = 60.0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
) -> None:
    """Train a dictionary of MODEL at SITE, write it, and say what it is worth on other text.

    Example: interp sae train zoo:default L2.resid_post --features 768 --k 24 --steps 500 --out sae
    """
    from interp.dictionaries.hygiene import hygiene
    from interp.dictionaries.training.files import check_writable, write
    from interp.dictionaries.training.run import train as run
    from interp.dictionaries.training.settings import Settings
    from interp.dictionaries.training.streams import passages
    from interp.errors import InterpError
    from interp.loading.load import load
    from interp.texts import sources
    from interp.zoo.trained.loop import STATE

    settings = {
        "kind": kind,
        "n_features": features,
        "k": k,
        "sparsity": sparsity,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    try:
        places = passages(site, site_out)
        check_writable(Settings(**settings), places[0], places[1])  # pyright: ignore[reportArgumentType]
    except InterpError as error:
        raise typer.BadParameter(str(error)) from error
    if out.is_file():
        raise typer.BadParameter(f"{str(out)!r} is a file; name a folder")
    prompts = [_read(path) for path in text] if text else list(sources("train").values())
    target = load(model, revision=revision, device=device)
    dictionary = run(target, site, prompts, site_out=site_out, folder=out, save_every=save_every, **settings)
    write(dictionary, out)
    (out / STATE).unlink()
    for row in hygiene(target, dictionary).table.to_dict(orient="records"):
        where = row["component"] if isinstance(row["component"], str) else ""
        sys.stdout.write(f"{row['variant']:16} {where:16} {row['value']:.4f}\n")
    sys.stderr.write(f"wrote {out}\n")


def _read(path: Path) -> str:
    from interp.errors import InterpError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InterpError(f"cannot read {str(path)!r}: {error}") from error
