"""The type checker of the one pass that checks shapes, and the plugin that says what the pass has left out.

    PYTHONPATH=tests python -m pytest -p shape_check --jaxtyping-packages=interp,circuits,probes,shape_check.check ...

`test_shapes.py` runs that, on the tests that `shapes.txt` names.
"""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray

ROOT = Path(__file__).parents[1]
PACKAGES = ("interp", "circuits", "probes")
CHECKED = 30
"""Calls of a function that are checked. Checking all of them takes several times as long and has found no more."""
DEAR = "tests that reach it are outside the pass, which wants a short one of its own"
KERNEL = "its source is read by a compiler, which knows nothing of functions that this check has put in their place"
NOT_CALLED = {
    "interp.zoo.planted.behaviour._standing_share": "within a sweep that takes eight seconds",
    "circuits.patching.path_runs.Reach._base": DEAR,
    "interp.edits.attend.Tile.dense": DEAR,
    "interp.attention.streamed.Total.part": "abstract",
    "interp.attention.streamed.Total.slot": "abstract",
    "interp.attention.flex.attend": KERNEL,
    "interp.attention.triton.answers._has_key": KERNEL,
    "interp.attention.triton.runs.Runs.sees": KERNEL,
    "interp.zoo.trained.paragraphs.unseen": "called when a trained model is published",
}
"""Function with shapes in its signature that no test of the pass calls -> why not."""

with_shapes: set[str] = set()
called: set[str] = set()


def has_shape(annotation) -> bool:
    """Whether an array type of jaxtyping stands anywhere in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    inner = get_args(annotation)
    return any(has_shape(part) for part in (*inner, *(p for part in inner if isinstance(part, list) for p in part)))


def check(function):
    """`beartype` for the first calls of a function; what is defined inside another is not checked, nor slowed down."""
    name = f"{function.__module__}.{function.__qualname__}"
    if "<locals>" in name:
        return function
    checked, left = beartype(function), CHECKED
    shaped = any(map(has_shape, function.__annotations__.values()))
    if shaped:
        with_shapes.add(name)

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal left
        if left:
            left -= 1
            if shaped:
                called.add(name)
            checked(*args, **kwargs)

    return call


def modules():
    """Every module of the packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__main__":
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_interface(name: str) -> bool:
    """Whether a function is never run itself: of a protocol, or the constructor of a class that others extend."""
    parts = name.split(".")
    module = next(".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in sys.modules)
    *owners, last = parts[module.count(".") + 1 :]
    owner = functools.reduce(getattr, owners, sys.modules[module])
    return getattr(owner, "_is_protocol", False) or (last == "__init__" and bool(owner.__subclasses__()))


def pytest_sessionfinish(session, exitstatus):
    """A function that was never called makes the pass fail, and so does a reason that no longer holds."""
    if exitstatus:
        return
    for name in modules():
        importlib.import_module(name)
    lacking = {name for name in with_shapes - called if not is_interface(name)}
    problems = [f"no test of tests/shapes.txt calls {name}" for name in sorted(lacking - NOT_CALLED.keys())]
    problems += [f"{name} need not stand in NOT_CALLED" for name in sorted(NOT_CALLED.keys() - lacking)]
    lines = "\n".join([f"{len(with_shapes)} functions with shapes, {len(called)} called", *problems])
    session.config.get_terminal_writer().line(f"\n{lines}")
    if problems:
        session.exitstatus = 1
