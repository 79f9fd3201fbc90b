"""Where along the way from one run to the other gradients are taken, by method of edge attribution."""

from __future__ import annotations

from interp.errors import TaskError, nearest
from interp.patching.quadrature import Point, points

METHODS = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted")


def nodes(method: str, *, steps: int, rule: str) -> tuple[Point, ...]:
    """Points of a method, their weights summing to 1; only the integrated ones have steps and a rule.

    Raises:
        TaskError: an unknown method or rule, or no step.
    """
    if method not in METHODS:
        raise TaskError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    along = points(rule, steps)
    fixed: dict[str, tuple[Point, ...]] = {"eap": ((0.0, 1.0),), "clean-corrupted": ((0.0, 0.5), (1.0, 0.5))}
    return fixed.get(method, along)
