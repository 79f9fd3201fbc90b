"""Where gradients are taken along a path: the rules integrate what they are known to integrate."""

from __future__ import annotations

import pytest

from interp.patching.quadrature import points

EXACT = {"midpoint": 1, "left": 0, "right": 0, "gauss": 5}
"""Degree up to which three points integrate a polynomial over [0, 1] exactly."""


def integral(rule, degree):
    return sum(weight * at**degree for at, weight in points(rule, 3))


@pytest.mark.parametrize("rule", EXACT)
def test_a_rule_is_exact_up_to_its_degree_and_no_further(rule):
    exact = [integral(rule, degree) == pytest.approx(1 / (degree + 1), rel=1e-9) for degree in range(7)]
    assert exact == [degree <= EXACT[rule] for degree in range(7)]


def test_left_and_right_lie_on_their_sides():
    assert integral("left", 1) == pytest.approx(1 / 3)
    assert integral("right", 1) == pytest.approx(2 / 3)
