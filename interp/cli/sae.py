"""`interp sae`: sparse dictionaries of a model's activations, trained, and what they say of it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from interp.cli import dictionaries as cli_dictionaries
from interp.cli import options as cli_options
from interp.cli.names import LARGEST_SEED, check_run
from interp.files import writable_folder, write_files

GRAPH_FILES = ("graph.json", "page.html", "edges.csv", "nodes.csv")

app = typer.Typer(help="Sparse autoencoders and transcoders: what their features do.", no_args_is_help=True)


app.command()(cli_dictionaries.load)
app.command()(cli_dictionaries.features)


@app.callback()
def _group() -> None:
    """Sparse autoencoders and transcoders: what their features do."""


@app.command()
def graph(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text whose next token is explained.")],
    dictionary: Annotated[
        str | None,
        typer.Option("--dictionary", "-d", metavar="PATH", help="Folder or hub id; the model's neurons without."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write graph.json, page.html, edges.csv, nodes.csv here.")
    ] = None,
    features: Annotated[int, typer.Option(min=1, metavar="N", help="Features traced back at most.")] = 7500,
    keep: Annotated[int, typer.Option("-k", min=1, metavar="K", help="Edges kept into each node.")] = 256,
    node: Annotated[float, typer.Option(help="Share of influence that the kept nodes carry.")] = 0.8,
    edge: Annotated[float, typer.Option(help="Share of influence that the kept edges carry.")] = 0.98,
    batch: Annotated[int, typer.Option(min=1, help="Nodes traced back in one pass.")] = 32,
    heads: Annotated[bool, typer.Option("--heads", help="Part each edge by attention head.")] = False,
    check: Annotated[int, typer.Option(min=0, metavar="N", help="Edges checked by taking their source out.")] = 128,
    top: Annotated[int, typer.Option(min=0, metavar="K", help="Edges printed.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the graph as JSON on stdout, nothing else.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the edges checked.")] = 0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    force: cli_options.Force = False,
    quote: cli_options.Quote = False,
) -> None:
    """Which features of MODEL make it say what it says after a prompt: an attribution graph.

    Example: interp sae graph zoo:default --prompt "sun moon star sun moon" --out graph
    """
    check_run(model, dtype=dtype, device=device)
    for name, share in (("--node", node), ("--edge", edge)):
        if not 0 < share <= 1:
            raise typer.BadParameter(f"{name} is a share of influence, above 0 and at most 1; got {share:g}")
    if out is not None:
        writable_folder(out, GRAPH_FILES, force=force)
    from circuits.features.attribute import attribution_graph
    from circuits.features.edge_check import check_edges
    from circuits.features.schema import document
    from interp import dictionaries
    from interp.loading.load import load

    checkpoint = load(model, revision=revision, dtype=dtype, device=device)
    features_of = None if dictionary is None else dictionaries.load(dictionary, checkpoint)
    found = attribution_graph(
        checkpoint, prompt, features_of, max_features=features, k=keep, batch=batch, node=node, edge=edge, heads=heads
    )
    lines = [found.summary()]
    if check and len(found.edges.weight):
        outcome = check_edges(checkpoint, found, features_of, n=check, sizes=(1.0,), seed=seed)
        features_alone = outcome.ranks.set_index("sources")["model"].get("feature", math.nan)
        lines.append(
            f"{len(outcome.table)} edges checked by taking their source out: rank correlation {outcome.held:.3f} with "
            f"attention, norms and gates held, {outcome.model:.3f} in the model itself ({features_alone:.3f} of "
            f"features), {outcome.random:.3f} of random edges"
        )
    summary = "\n".join(lines)
    if out is not None:
        from circuits.graph.page import page
        from interp.results.files import write_csv

        writers = {
            "graph.json": found.save,
            "page.html": lambda path: path.write_text(page(found, summary), encoding="utf-8"),
            "edges.csv": lambda path: write_csv(found.table(), path, quote=quote),
            "nodes.csv": lambda path: write_csv(found.node_table(), path, quote=quote),
        }
        for path in write_files(out, writers, force=force).values():
            sys.stderr.write(f"wrote {path}\n")
    if as_json:
        sys.stdout.write(json.dumps(document(found)) + "\n")
        return
    sys.stdout.write(summary + "\n")
    rows = found.table().head(top)
    if len(rows):
        sys.stdout.write(rows.to_string(index=False, float_format=lambda x: f"{x:.4g}") + "\n")
    n_more = len(found.edges.weight) - len(rows)
    if n_more:
        sys.stdout.write(f"... and {n_more} more\n")


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
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Of the parameters and of the order of the data.")
    ] = 0,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Text to run the model on, repeatable; sources of Python unless said."),
    ] = None,
    save_every: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Between two saved states.")] = 60.0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    force: cli_options.Force = False,
) -> None:
    """Train a dictionary of MODEL at SITE, write it, and say what it is worth on other text.

    Example: interp sae train zoo:default L2.resid_post --features 768 --k 24 --steps 500 --out sae
    """
    check_run(model, device=device)
    from interp.dictionaries._hygiene import hygiene
    from interp.dictionaries.formats.saelens import CONFIG, WEIGHTS
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
    writable_folder(out, (WEIGHTS, CONFIG) if len(site) == 1 else (), force=force)
    prompts = [cli_options.read_text(path) for path in text] if text else list(sources("train").values())
    target = load(model, revision=revision, device=device)
    dictionary = run(target, site, prompts, site_out=site_out, folder=out, save_every=save_every, **settings)
    write(dictionary, out, force=force, obsolete=[STATE])
    for row in hygiene(target, dictionary).table.to_dict(orient="records"):
        where = row["component"] if isinstance(row["component"], str) else ""
        sys.stdout.write(f"{row['variant']:16} {where:16} {row['value']:.4f}\n")
    sys.stderr.write(f"wrote {out}\n")
