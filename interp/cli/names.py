"""Names and option types, refused as errors of usage before anything slow is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from interp.cli import index
from interp.errors import InterpError, nearest

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
BOS = ("default", "forced", "none")
"""As in `interp.tasks.synthetic`, which imports torch."""
DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "xla", "mlu")
"""Kinds of devices that models run on; which of them this machine has is seen when the model is put there."""
LARGEST_SEED = 2**32 - 1
LARGEST = 2**31 - 1
"""Of whatever is counted on the command line."""
_KINDS: Mapping[str, tuple[type, ...]] = {
    "true or false": (bool,),
    "integer": (int,),
    "number": (int, float),
    "text": (str,),
    "list": (list, str),
    "integers": (list,),
    "numbers": (list,),
    "texts": (list, str),
}


def check(kind: str, names: Iterable[str], *, called: str) -> None:
    """Refuse what is no name of one of `index.KINDS`; `called` it is in the error."""
    known = index.entries(kind)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"unknown {called} {name!r}; {nearest(name, known)}")


def check_run(
    model: str | None = None,
    *,
    dtype: str = "float32",
    device: str | None = None,
    analyses: Iterable[str] | None = None,
    method: str | None = None,
    tasks: Iterable[str] | None = None,
) -> None:
    """Refuse names that most commands take: of a zoo model, a dtype, a kind of device, analyses, a method, tasks."""
    check("analyses", analyses or (), called="analysis")
    check("methods", () if method is None else (method,), called="method")
    if model is not None:
        _check_model(model)
        _check_tasks(model, tasks or ())
    if dtype not in DTYPES:
        raise typer.BadParameter(f"unknown dtype {dtype!r}; {nearest(dtype, DTYPES)}")
    if device is not None and (not re.fullmatch(r"[a-z]+(:\d{1,4})?", device) or device.split(":")[0] not in DEVICES):
        raise typer.BadParameter(f"unknown device {device!r}; use cpu, cuda, cuda:1 or one of {', '.join(DEVICES)}")


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a circuit method does not have, and values of another kind than their defaults."""
    known = index.entries("methods")[method]["options"]
    for name, value in options.items():
        if name not in known:
            hint = nearest(name, known) if known else "it has none of its own"
            raise typer.BadParameter(f"{method!r} has no option {name!r}; {hint}")
        kind = known[name]
        fits = (
            kind not in _KINDS
            or isinstance(value, _KINDS[kind])
            and (isinstance(value, bool) == (kind == "true or false"))
        )
        if isinstance(value, int) and abs(value) > LARGEST:
            raise typer.BadParameter(f"{method!r}: {name} is {value:.3g}; expected at most {LARGEST}")
        if not fits:
            raise typer.BadParameter(f"{method!r}: {name} is {value!r:.60}; expected {_article(kind)}")


def _article(kind: str) -> str:
    return {"integer": "an integer", "number": "a number", "list": "a list, such as [1, 2]"}.get(kind, kind)


def _check_model(model: str) -> None:
    from interp import zoo

    if model.startswith("zoo:"):
        try:
            zoo.entry(model.removeprefix("zoo:"))
        except InterpError as error:
            raise typer.BadParameter(str(error)) from error


def _check_tasks(model: str, tasks: Iterable[str]) -> None:
    """Tasks of a checkpoint of one's own stand in its folder, and are looked for once it is loaded."""
    if model.startswith("zoo:") or not (Path(model).expanduser() / "tasks.json").is_file():
        check("tasks", [name.replace("-", "_") for name in tasks], called="task")
