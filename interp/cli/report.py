"""`interp report`: the attribution report of a model, as one file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli import own, values
from interp.cli.detect import head_analyses
from interp.cli.names import LARGEST_SEED, check_run
from interp.cli.options import Bos, Force, check_bos, own_prompts, progress, read_text, say_left_out, usage
from interp.files import writable_file

Texts = own.Texts
OWN = 4
"""Pairs of one's own whose clean prompts are taken apart; the circuit is of all."""

MeasuredOn = Annotated[
    list[Path] | None, typer.Option("--text", metavar="FILE", help="A prompt that analyses measure on; repeatable.")
]
Wrong = Annotated[Texts, typer.Option(help="Token it is compared with, one for each prompt; '' for the mean of all.")]
OfGraphs = Annotated[
    str | None, typer.Option("--dictionary", "-d", metavar="D", help="Attribution graphs: folder, hub id, or neurons.")
]
Names = Annotated[
    Texts, typer.Option("--analysis", "-a", metavar="NAME", help="Run this one, not all that suit; repeatable.")
]


def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")],
    task: Annotated[Texts, typer.Option("--task", "-t", metavar="T", help="Find its circuit; repeatable.")] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="M", help="How it is found: one of those of `interp circuit`.")
    ] = "eap-ig",
    prompt: Annotated[Texts, typer.Option(help="Text whose answer is taken apart; repeatable.")] = None,
    answer: Annotated[Texts, typer.Option(help="Next token explained, one for each prompt; '' for likeliest.")] = None,
    wrong: Wrong = None,
    clean: own.Clean = None,
    corrupt: own.Corrupt = None,
    pairs: own.PairFile = None,
    answer_tokens: own.AnswerTokens = "one",
    dictionary: OfGraphs = None,
    analysis: Names = None,
    option: values.Options = None,
    text: MeasuredOn = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes.")] = Path("report.html"),
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of prompts, intervals and random controls.")
    ] = 0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    bos: Bos = None,
    force: Force = False,
) -> None:
    """Write what the parts of MODEL do as one HTML page: heads, circuits of tasks, your own prompts taken apart.

    With --clean, --corrupt and --answer the circuit of your own pair is found, and the clean prompt is taken apart.
    With --text the analyses measure on texts of your own, and those that cannot are left out; -o sets any of their
    options, as in interp detect.

    Example: interp report zoo:default --task ioi --out report.html
    """
    check_run(model, dtype=dtype, device=device, analyses=analysis, method=method, tasks=task)
    check_bos(bos)
    own.check_rule(answer_tokens, one_token=bool(answer) and not clean)
    if prompt and clean:
        raise typer.BadParameter("--answer would be of --prompt or of --clean; give --clean and --corrupt alone")
    typed = (clean or (), corrupt or (), answer or (), wrong or ()) if clean or corrupt else ((), (), (), ())
    given = own.own_pairs(*typed, pairs)
    questions = [] if clean else _questions(prompt or [], answer or [], wrong or [])
    if given is not None and answer_tokens != "all":
        questions += list(zip(given.clean, given.answer, given.wrong or [None] * len(given), strict=True))[:OWN]
    if dictionary is not None and not questions:
        raise typer.BadParameter("--dictionary makes attribution graphs of prompts; give --prompt")
    options = values.typed_options(option or [], analysis or head_analyses())
    check_run(model, tasks=values.task_names(options))
    target = writable_file(out, force=force)
    with usage():
        texts, options = [read_text(path) for path in text or ()], values.checked(options)
    from interp.loading.load import load
    from interp.reports import report as write

    checkpoint = load(model, revision=revision, dtype=dtype, device=device)
    tasks: list[Any] = list(task or ())
    if given is not None:
        tasks.append(given.tasks(checkpoint, answer_tokens=answer_tokens))
    path = write(
        checkpoint,
        analyses=analysis,
        tasks=tasks,
        method=method,
        prompts=own.first_tokens(questions, checkpoint.tokenizer) if answer_tokens == "first" else questions,
        dictionary=dictionary,
        seed=seed,
        path=target,
        force=force,
        command=shlex.join(["interp", *sys.argv[1:]]),
        bos=None if texts else bos,
        detecting={
            "prompts": own_prompts(checkpoint, texts, {}, bos=bos),
            "options": values.of_model(options, checkpoint, seed=seed),
        },
        progress=progress,
        left_out=say_left_out,
        told=lambda name: sys.stderr.write(f"circuit of {name} ...\n"),
    )
    sys.stdout.write(f"report: {path.resolve()}\n")


def _questions(prompts: Sequence[str], answers: Sequence[str], wrong: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Prompt, answer and wrong answer by the order they were typed in; a usage error where they do not match."""
    for name, options in (("--answer", answers), ("--wrong", wrong)):
        if options and len(options) != len(prompts):
            raise typer.BadParameter(
                f"{len(options)} {name} for {len(prompts)} --prompt; give one for each prompt, '' where there is none"
            )
    right = answers or [""] * len(prompts)
    against = wrong or [""] * len(prompts)
    return [(p, a or None, w or None) for p, a, w in zip(prompts, right, against, strict=True)]
