"""Where along the way from one run to the other gradients are taken, by method."""

from __future__ import annotations

import numpy as np

from interp.errors import TaskError, nearest

METHODS = ("eap", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted")
RULES = ("midpoint", "left", "right", "gauss")
Point = tuple[float, float]
"""Where along the path a gradient is taken, 0 its beginning and 1 its end, and its weight."""


def nodes(method: str, *, steps: int, rule: str) -> tuple[Point, ...]:
    """Points of a method, their weights summing to 1; only the integrated ones have steps and a rule.

    Raises:
        TaskError: an unknown method or rule, or no step.
    """
    if method not in METHODS:
        raise TaskError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    if rule not in RULES:
        raise TaskError(f"unknown rule {rule!r}; {nearest(rule, RULES)}")
    if steps < 1:
        raise TaskError(f"{steps} steps; at least one gradient is needed")
    fixed: dict[str, tuple[Point, ...]] = {"eap": ((0.0, 1.0),), "clean-corrupted": ((0.0, 0.5), (1.0, 0.5))}
    return fixed[method] if method in fixed else points(rule, steps)


def points(rule: str, steps: int) -> tuple[Point, ...]:
    """Nodes and weights on [0, 1] of a rule of quadrature."""
    if rule == "gauss":
        at, weights = np.polynomial.legendre.leggauss(steps)
        return tuple(zip(((at + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return tuple(((i + shift) / steps, 1 / steps) for i in range(steps))
