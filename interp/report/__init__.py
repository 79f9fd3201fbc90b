"""One self-contained HTML file about a model: which heads do what, how sure that is, and how it was found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from interp.results import Result, atomic_write, writable_file

if TYPE_CHECKING:
    from interp.model import Model

__all__ = ["report"]


def report(
    model: Model,
    *,
    results: Result | None = None,
    analyses: Sequence[str] | None = None,
    prompt: Any = None,
    seed: int = 0,
    path: str | Path = "report.html",
    command: str | None = None,
) -> Path:
    """Write a report on the attention heads of `model` and return its path.

    The file needs no network and no other file: plotly.js, style and data are inside. It appears whole or not at all.

    Args:
        model: any loaded model.
        results: what `interp.detect` or an analysis returned for this model; detected anew if not given.
        analyses: names of the analyses to run, or to show of `results`; all that suit if not given.
        prompt: text or token ids on which one head's attention is shown; a repeated random block if not given.
        seed: of the analyses and of the sample prompt.
        path: file to write.
        command: shell command that made the report, shown for copying.

    Raises:
        InterpError: the path cannot be written; found out before anything is computed.
        SchemaError: an unknown analysis, or results of another model.
        TaskError: a prompt the model cannot be run on.
    """
    target = writable_file(Path(path).expanduser())
    from interp.registry import detect
    from interp.report.page import render

    found = detect(model, analyses, seed=seed) if results is None else results
    page = render(model, found, analyses=analyses, prompt=prompt, seed=seed, command=command)
    atomic_write(target, lambda p: p.write_text(page, encoding="utf-8", errors="backslashreplace"))
    return target


class _Callable(ModuleType):
    """`interp.report` is the function until someone imports this package, which then takes its name: so be both."""

    def __call__(self, *args: Any, **options: Any) -> Path:
        return report(*args, **options)


sys.modules[__name__].__class__ = _Callable
