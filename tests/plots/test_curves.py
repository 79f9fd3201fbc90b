"""Lines over a dose: the control is dashed and behind, what does not fit is refused."""

from __future__ import annotations

import pytest
from numpy.testing import assert_allclose

from interp.errors import SchemaError
from interp.plots._curves import curves

TITLES = {"x_title": "share removed", "y_title": "probability"}


def test_the_control_is_dashed_and_drawn_first():
    control, line = curves([0, 1], {"heads": [1.0, 0.0], "random": [1.0, 0.9]}, control="random", **TITLES).data
    assert (control.name, control.line.dash, line.line.dash) == ("random", "dash", "solid")
    assert_allclose(line.y, [1.0, 0.0])


@pytest.mark.parametrize(
    ("lines", "control", "message"),
    [
        ({}, None, "no lines"),
        ({"a": [1.0]}, None, "the 2 points: {'a': 1}"),
        ({"a": [1.0, 2.0]}, "b", "no line 'b'"),
    ],
)
def test_refusals(lines, control, message):
    with pytest.raises(SchemaError, match=message):
        curves([0, 1], lines, control=control, **TITLES)
