"""What several commands share: the BOS policy, texts and their spans, errors of usage; on stderr what was left out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.names import BOS
from interp.cli.output import unguarded

if TYPE_CHECKING:
    from interp.batch import Batch
    from interp.measurement.registry import Analysis
    from interp.model import Model

Bos = Annotated[
    str | None,
    typer.Option(metavar="POLICY", help="Start random prompts with a BOS: default (as the tokenizer), forced, none."),
]

TextFiles = Annotated[
    list[Path] | None, typer.Option("--text", metavar="FILE", help="A file that is such a prompt; repeatable.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there and is no earlier output.")]
Quote = Annotated[bool, typer.Option("--quote", help="Quote cells of CSV that a spreadsheet would execute.")]


def table_target(path: Path, *, force: bool) -> Path:
    """The path of a table, once it is known that it can be written; its suffix is a matter of usage."""
    from interp.results.files import check_suffix, writable

    with usage():
        check_suffix(path)
    return writable(path, force=force)


def check_bos(policy: str | None) -> None:
    """Refuse an unknown policy as a usage error."""
    from interp.errors import nearest

    if policy is not None and policy not in BOS:
        raise typer.BadParameter(f"unknown BOS policy {policy!r}; {nearest(policy, BOS)}")


def say_left_out(reasons: Mapping[str, str]) -> None:
    """A line on stderr for each analysis that was not run, with the reason."""
    for name, reason in reasons.items():
        sys.stderr.write(f"left out: {name}: {' '.join(reason.split())}\n")


def progress(analyses: Sequence[Analysis]) -> Iterator[Analysis]:
    """A bar on stderr while analyses run, where that is a terminal."""
    from tqdm.auto import tqdm

    with tqdm(analyses, disable=None, file=unguarded(sys.stderr), leave=False) as bar:
        for spec in bar:
            bar.set_description(spec.name)
            yield spec


@contextmanager
def usage() -> Iterator[None]:
    """What goes wrong in here is a matter of how the command was typed: exit code 2."""
    from interp.errors import InterpError

    try:
        yield
    except InterpError as error:
        raise typer.BadParameter(str(error)) from error


def read_text(path: Path) -> str:
    """Text of a file or pipe.

    Raises:
        InterpError: it cannot be read, is too large, or is no UTF-8.
    """
    from interp.files import read_text as read

    return read(path.expanduser())


def read_spans(options: Sequence[str], texts: Sequence[str]) -> dict[str, list[Any]]:
    """`NAME=START:END` (characters; the end may be left out) or `NAME=words` as {name: one place for each text}.

    A name that comes twice is a span in several pieces.

    Raises:
        InterpError: no name, or no text to name a part of.
    """
    from interp.errors import InterpError

    spans: dict[str, list[Any]] = {}
    for option in options:
        name, equals, place = option.partition("=")
        if not texts:
            raise InterpError(f"--span {option}: a span is part of a text; give --prompt TEXT or --text FILE")
        if not equals or not name.strip() or not place:
            raise InterpError(f"--span {option}: spans are written NAME=START:END, in characters, or NAME=words")
        pieces = spans.setdefault(name.strip(), [[] for _ in texts])
        for own, text in zip(pieces, texts, strict=True):
            own.append(_place(place, text))
    return spans


def _place(place: str, text: str) -> tuple[int, int] | str:
    """A range of characters where it is written like one, else words."""
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d*)\s*", place)
    return place if match is None else (int(match[1]), int(match[2] or len(text)))


def own_prompts(model: Model, texts: Sequence[str], spans: Mapping[str, Any], *, bos: str | None) -> Batch | None:
    """Texts as a batch with their spans; None without any.

    Raises:
        InterpError: a model without a tokenizer, a text that is empty or too long, or a span that is not in it.
    """
    if not texts:
        return None
    from interp.batch import Batch

    keep_end = not model.info.causal
    return model.batch(
        Batch.of(list(texts), model.tokenizer, keep_end=keep_end, bos=bos or "default", spans=spans or None)
    )
