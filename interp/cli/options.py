"""What several commands share: the BOS policy, and on stderr progress and what was left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from interp.measurement.registry import Analysis

Bos = Annotated[
    str | None,
    typer.Option(metavar="POLICY", help="Start random prompts with a BOS: default (as the tokenizer), forced, none."),
]


def check_bos(policy: str | None) -> None:
    """Refuse an unknown policy as a usage error."""
    from interp.errors import nearest
    from interp.tasks.synthetic import BOS_POLICIES

    if policy is not None and policy not in BOS_POLICIES:
        raise typer.BadParameter(f"unknown BOS policy {policy!r}; {nearest(policy, BOS_POLICIES)}")


def say_left_out(reasons: Mapping[str, str]) -> None:
    """A line on stderr for each analysis that was not run, with the reason."""
    for name, reason in reasons.items():
        sys.stderr.write(f"left out: {name}: {' '.join(reason.split())}\n")


def progress(analyses: Sequence[Analysis]) -> Iterator[Analysis]:
    """A bar on stderr while analyses run, where that is a terminal."""
    from tqdm.auto import tqdm

    with tqdm(analyses, disable=None, file=sys.stderr, leave=False) as bar:
        for spec in bar:
            bar.set_description(spec.name)
            yield spec
