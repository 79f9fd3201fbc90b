"""Where along the way from one run to the other gradients are taken: nodes and weights on [0, 1]."""

from __future__ import annotations

import numpy as np

from interp.errors import TaskError, nearest

RULES = ("midpoint", "left", "right", "gauss")
Point = tuple[float, float]
"""Where along the path a gradient is taken, 0 its beginning and 1 its end, and its weight."""


def points(rule: str, steps: int) -> tuple[Point, ...]:
    """Nodes and weights of a rule of quadrature; weights sum to 1.

    Raises:
        TaskError: an unknown rule, or no step.
    """
    if rule not in RULES:
        raise TaskError(f"unknown rule {rule!r}; {nearest(rule, RULES)}")
    if steps < 1:
        raise TaskError(f"{steps} steps; at least one gradient is needed")
    if rule == "gauss":
        at, weights = np.polynomial.legendre.leggauss(steps)
        return tuple(zip(((at + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return tuple(((i + shift) / steps, 1 / steps) for i in range(steps))
