"""The type checker of the one pass that checks shapes, and the plugin that says what the pass has left out.

    PYTHONPATH=tests python -m pytest -p shape_check --jaxtyping-packages=interp,circuits,probes,shape_check.check ...

`test_shapes.py` runs that, on the tests that `shapes.txt` names.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray

ROOT = Path(__file__).parents[1]
PACKAGES = ("interp", "circuits", "probes")
CHECKED = 30
"""Calls of a function that are checked. Checking all of them takes several times as long and has found no more."""
NOT_CALLED: dict[str, str] = {}
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


def pytest_sessionfinish(session, exitstatus):
    """A function that was never called makes the pass fail, and so does a reason that no longer holds."""
    if exitstatus:
        return
    for name in modules():
        importlib.import_module(name)
    problems = [f"no test of tests/shapes.txt calls {name}" for name in sorted(with_shapes - called - set(NOT_CALLED))]
    problems += [f"{name} is called, or has no shapes: not for NOT_CALLED" for name in sorted(called & set(NOT_CALLED))]
    problems += [f"no function {name}: not for NOT_CALLED" for name in sorted(set(NOT_CALLED) - with_shapes)]
    print(f"\n{len(with_shapes)} functions with shapes, {len(called)} called", *problems, sep="\n")
    if problems:
        session.exitstatus = 1
