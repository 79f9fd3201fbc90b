"""Prompts of one's own on the command line: `--clean`, `--corrupt`, `--answer`, `--wrong`, or a file of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.options import usage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp.tasks.files import Pairs

Texts = list[str] | None
Clean = Annotated[Texts, typer.Option(metavar="TEXT", help="A prompt of your own; with --corrupt and --answer.")]
Corrupt = Annotated[Texts, typer.Option(metavar="TEXT", help="Its twin, of as many tokens, with another answer.")]
PairFile = Annotated[
    Path | None,
    typer.Option("--pairs", metavar="FILE", help="Pairs: .jsonl, .json or .csv with clean, corrupt, answer (, wrong)."),
]
AnswerTokens = Annotated[
    str,
    typer.Option(metavar="RULE", help="Answers of several tokens: one (refuse), first (its first), all (fed in)."),
]


def own_pairs(
    clean: Sequence[str], corrupt: Sequence[str], answer: Sequence[str], wrong: Sequence[str], file: Path | None
) -> Pairs | None:
    """Pairs that were typed or that a file has; None where there are none. A usage error where they do not match."""
    from interp.tasks.files import pairs_of, read_pairs

    if file is not None:
        if clean or corrupt:
            raise typer.BadParameter("--pairs is a file of all pairs; leave --clean and --corrupt out")
        with usage():
            return read_pairs(file)
    if not (clean or corrupt):
        return None
    for name, given in (("--corrupt", corrupt), ("--answer", answer), *((("--wrong", wrong),) if wrong else ())):
        if len(given) != len(clean):
            raise typer.BadParameter(f"{len(given)} {name} for {len(clean)} --clean; give one for each")
    against = list(wrong) or [None] * len(clean)
    columns = zip(clean, corrupt, answer, against, strict=True)
    with usage():
        return pairs_of(
            [dict(zip(("clean", "corrupt", "answer", "wrong"), row, strict=True)) for row in columns], "the prompts"
        )


def pairs_instead(task: str | None, typed: Sequence[Texts], file: Path | None, rule: str) -> Pairs | None:
    """`own_pairs` where no task is named; exactly one of both is asked for. `typed`: clean, corrupt, answer, wrong."""
    check_rule(rule)
    clean, corrupt, answer, wrong = (texts or () for texts in typed)
    given = own_pairs(clean, corrupt, answer, wrong, file)
    if (task is None) == (given is None):
        raise typer.BadParameter(
            "name a task (--task), or give prompts of your own (--clean and --corrupt, or --pairs)"
        )
    if given is None and (answer or wrong):
        raise typer.BadParameter("--answer and --wrong are of prompts of your own; give --clean and --corrupt")
    return given


def first_tokens(
    questions: Sequence[tuple[Any, str | None, str | None]], tokenizer: PreTrainedTokenizerBase | None
) -> list[tuple[Any, int | None, int | None]]:
    """Prompts whose answer and wrong answer are their first tokens."""
    from interp.tokens.texts import bare_ids

    def first(text: str | None) -> int | None:
        ids = [] if text is None else bare_ids(text, tokenizer)
        return ids[0] if ids else None

    return [(prompt, first(answer), first(wrong)) for prompt, answer, wrong in questions]


def check_rule(rule: str, *, one_token: bool = False) -> None:
    """Refuse an unknown rule for answers of several tokens, and one that feeds them in where one token is explained."""
    from interp.errors import nearest
    from interp.tasks.own import RULES

    if rule not in RULES:
        raise typer.BadParameter(f"unknown rule {rule!r} for --answer-tokens; {nearest(rule, RULES)}")
    if one_token and rule == "all":
        raise typer.BadParameter("one token's logit is taken apart: --answer-tokens first takes the answer's first")
