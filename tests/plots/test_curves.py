"""Lines over a dose: the control is dashed and behind, what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from interp.errors import SchemaError
from interp.plots._curves import curves, whole_step
from interp.plots.theme import GREY

TITLES = {"x_title": "share removed", "y_title": "probability"}


def test_the_control_is_dashed_and_drawn_first():
    control, line = curves([0, 1], {"heads": [1.0, 0.0], "random": [1.0, 0.9]}, control="random", **TITLES).data
    assert (control.name, control.line.dash, line.line.dash) == ("random", "dash", "solid")
    assert_allclose(line.y, [1.0, 0.0])


def test_controls_alone_are_grey_and_twelve_lines_are_told_apart():
    lines = {"null": [0.1, 0.1], **{f"line {i}": [i, i] for i in range(12)}, "other null": [0.2, 0.2]}
    figure = curves([0, 1], lines, control=["null", "other null"], unit="nats", **TITLES)
    looks = {trace.name: (trace.line.color, trace.line.dash) for trace in figure.data}
    assert len(set(looks.values())) == 14
    assert [name for name, (colour, _) in looks.items() if colour == GREY] == ["null", "other null"]


def test_intervals_are_drawn_and_the_axis_holds_them():
    figure = curves([0, 1], {"a": [0.2, 0.3]}, intervals={"a": ([0.1, np.nan], [0.4, np.nan])}, unit="nats", **TITLES)
    error = figure.data[0].error_y
    assert_allclose(error.array, [0.2, 0])
    assert_allclose(error.arrayminus, [0.1, 0])
    low, high = figure.layout.yaxis.range
    assert low <= 0
    assert high >= 0.4


def test_a_line_that_is_next_to_nothing_stays_on_the_floor():
    figure = curves([0, 1], {"a": [0.001, 0.002]}, unit="probability", **TITLES)
    assert figure.layout.yaxis.range[1] >= 0.1


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


def test_few_whole_numbers_are_marked_one_by_one_and_nothing_else():
    assert curves([0, 1, 2], {"a": [1.0, 0.5, 0.2]}, **TITLES).layout.xaxis.dtick == 1
    assert [whole_step(x) for x in ([0, 6], [0, 0.5, 1], [0, 7], [0, np.nan], [])] == [1, None, None, None, None]
