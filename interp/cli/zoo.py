"""`interp zoo`: the models in the package, and the scoreboard of every analysis on planted truth."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.listing import name_line
from interp.cli.names import check
from interp.cli.options import Force, table_target
from interp.cli.output import unguarded
from interp.cli.tables import line_width

app = typer.Typer(help="Models with known mechanisms that come with the package.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="As in `interp zoo list`, without zoo: or with it.")]


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Names and one-line descriptions of the models in the package."""
    import json

    from interp import zoo

    entries = [zoo.entry(name) for name in zoo.names()]
    if as_json:
        sys.stdout.write(json.dumps([vars(e) for e in entries], indent=1) + "\n")
        return
    width = line_width()
    for e in entries:
        sys.stdout.write(name_line(f"zoo:{e.name}", f"{e.kind}: {e.summary}", width))


@app.command()
def build(name: Name, folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.")]) -> None:
    """Write a model as an ordinary Hugging Face folder, for use with other tools."""
    from interp import zoo
    from interp.errors import InterpError
    from interp.files import writable_folder, write_folder

    zoo.entry(_bare(name))
    writable_folder(folder, ())
    if folder.is_dir() and any(folder.iterdir()):
        raise InterpError(f"{str(folder)!r} is not an empty folder")
    model, tokenizer = zoo.load(_bare(name))

    def save(where: Path) -> None:
        model.save_pretrained(where)
        tokenizer.save_pretrained(where)

    sys.stdout.write(f"{write_folder(folder, save)}\n")


@app.command()
def card(name: Name) -> None:
    """What a model is, how it was made, and what it can and cannot show."""
    from interp import zoo
    from interp.components import head_names

    bare = _bare(name)
    where = zoo.folder(bare)
    if where is not None:
        sys.stdout.write((where / "README.md").read_text(encoding="utf-8"))
        return
    truth = zoo.truth(bare)
    sys.stdout.write(f"# {bare}\n\n{zoo.entry(bare).summary}\n\n")
    if truth is None:
        return
    for role, heads in truth.roles.items():
        score_text = f", expected score {truth.expected[role]:.4f}" if role in truth.expected else ""
        places = ", ".join(head_names(heads))
        sys.stdout.write(f"- {role}: {places}{score_text}\n")
    sys.stdout.write(f"\n{truth.docs}\n")


@app.command()
def verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A trained model, or its folder: measure its skills on held-out items."),
    ] = None,
    behaviour: Annotated[
        bool, typer.Option("--behaviour", help="Judge the planted models instead: do they do what they say?")
    ] = False,
    circuits: Annotated[
        bool, typer.Option("--circuits", help="Judge the methods that find circuits, on planted circuits.")
    ] = False,
    dictionaries: Annotated[
        bool, typer.Option("--dictionaries", help="Judge trained dictionaries, on planted features.")
    ] = False,
    analysis: Annotated[
        list[str] | None,
        typer.Option(
            "--analysis", "-a", metavar="NAME", help="Or mechanism, or kind of dictionary, with the last. Repeatable."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Models per architecture and setting.")] = 10,
    architecture: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Write every row.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the summary as a markdown table.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 1,
    items: Annotated[int, typer.Option(min=1, help="Held-out items of each skill, with NAME.")] = 256,
    force: Force = False,
) -> None:
    """Judge every analysis on models whose mechanisms are known; exit 1 if a planted head is missed or misranked.

    With --behaviour, judge the planted models themselves; with --circuits, how methods rank the planted edges; with
    --dictionaries, what share of planted features is recovered. With NAME, measure a trained model: exit 1 if it does
    not keep a promise of its card.
    """
    questions = {"--behaviour": behaviour, "--circuits": circuits, "--dictionaries": dictionaries}
    chosen = [flag for flag, wanted in questions.items() if wanted]
    if name is not None:
        if chosen or analysis or architecture:
            raise typer.BadParameter(
                f"NAME is measured by itself: leave out {', '.join(questions)}, --analysis and --architecture"
            )
        _verify_skills(name, items=items)
        return
    if len(chosen) > 1:
        raise typer.BadParameter(f"{' and '.join(chosen)} are {len(chosen)} questions: ask one")
    if dictionaries and architecture:
        raise typer.BadParameter("planted features have no architecture: leave out --architecture")
    if not behaviour and not circuits and not dictionaries:
        check("analyses", analysis or (), called="analysis")
    target = None if out is None else table_target(out, force=force)
    from interp.results.files import write_table
    from interp.studies.scoreboard import markdown

    judge, board = _board("".join(chosen), analysis, architecture, seeds=seeds, jobs=jobs)
    if target is not None:
        write_table(board, target, force=force)
    table = judge.summary(board)
    sys.stdout.write((markdown(table) if as_markdown else table.to_string(index=False)) + "\n")
    if judge.failed(board):
        raise typer.Exit(1)


def _board(
    question: str, names: list[str] | None, architectures: list[str] | None, *, seeds: int, jobs: int
) -> tuple[Any, Any]:
    """The module that answers a question, by the flag it is asked with, and its rows."""
    from tqdm.auto import tqdm

    def progress(cases: Iterable[Any]) -> Iterable[Any]:
        return tqdm(list(cases), disable=None, file=unguarded(sys.stderr), leave=False)

    common: dict[str, Any] = {"seeds": seeds, "jobs": jobs, "progress": progress}
    if question == "--circuits":
        from circuits.evaluation import scoreboard as edges

        chosen = {"mechanisms": names or edges.MECHANISMS, "architectures": architectures or edges.ARCHITECTURES}
        return edges, edges.scoreboard(**chosen, **common)
    if question == "--behaviour":
        from interp.zoo.planted import behaviour

        return behaviour, behaviour.behaviour(architectures=architectures, mechanisms=names, **common)
    if question == "--dictionaries":
        from interp.dictionaries.training import planted

        return planted, planted.scoreboard(kinds=names, **common)
    from interp.studies import scoreboard

    return scoreboard, scoreboard.scoreboard(names=names, architectures=architectures, **common)


def _verify_skills(name: str, *, items: int) -> None:
    """Every skill of a checkpoint on held-out items; exit 1 where a promise is missed."""
    from typing import cast

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from interp import zoo
    from interp.loading.checkpoints import read
    from interp.zoo.trained.skills import report, vocabulary

    source = name if Path(name).is_dir() else f"zoo:{_bare(name)}"
    checkpoint = read(source, tokenizer=None, revision=None, dtype="float32", device=None, device_map=None)
    if checkpoint.tokenizer is None or checkpoint.tokenizer.get_vocab() != vocabulary.index():
        trained_names = [n for n in zoo.names() if zoo.entry(n).kind == "trained"]
        able = [f"zoo:{n}" for n in trained_names if zoo.load(n)[1].get_vocab() == vocabulary.index()]
        offer = ", ".join(able) or "no model of this package"
        raise typer.BadParameter(
            f"{name!r} was not taught the skills; what can be verified: {offer}, and folders "
            "that `python -m interp.zoo.trained.train` wrote. For the planted models, leave NAME out"
        )
    model, tokenizer = cast(LlamaForCausalLM, checkpoint.model), cast(PreTrainedTokenizerFast, checkpoint.tokenizer)
    scores = report.skill_scores(model, tokenizer, n=items)
    sys.stdout.write(report.skill_table(scores) + "\n")
    failures = report.failures(scores)
    for line in failures:
        sys.stdout.write(f"not kept: {line}\n")
    if failures:
        raise typer.Exit(1)


def _bare(name: str) -> str:
    return name.removeprefix("zoo:")
