"""Maps of patching effects: one value per cell, zero in the middle, words of a checkpoint as text."""

from __future__ import annotations

import pandas as pd
import pytest
from numpy.testing import assert_allclose

from interp.errors import SchemaError
from interp.plots.patching import patch_map

ROWS = pd.DataFrame(
    {
        "layer": [0, 0, 1, 1],
        "role": ["IO", "<b>", "IO", "<b>"],
        "position": [pd.NA] * 4,
        "value": [1.0, 2.0, 3.0, 4.0],
        "normalised": [0.5, -0.25, 0.1, 0.0],
    }
)


def test_cells_are_layers_by_roles_in_the_order_asked_for():
    heat = patch_map(ROWS, order=["<b>", "S", "IO"]).data[0]
    assert_allclose(heat.z, [[-0.25, 0.5], [0.0, 0.1]])
    assert list(heat.x) == ["&lt;b&gt;", "IO"]
    assert (heat.zmin, heat.zmax) == (-0.5, 0.5)


def test_a_scale_without_negative_values_still_has_zero_in_the_middle():
    heat = patch_map(ROWS, value="value").data[0]
    assert (heat.zmin, heat.zmax) == (-4.0, 4.0)


def test_positions_stand_in_their_order():
    rows = ROWS.assign(role=pd.NA, position=[10, 2, 10, 2])
    assert list(patch_map(rows).data[0].x) == ["2", "10"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"value": "patched"}, "no column 'patched'"),
        ({"role": pd.NA}, {}, "no rows with a layer and a role"),
        ({"layer": 0}, {}, "one value per layer and role"),
        ({}, {"order": ["IO"]}, "order lacks '<b>'"),
    ],
)
def test_refusals(change, options, message):
    with pytest.raises(SchemaError, match=message):
        patch_map(ROWS.assign(**change), **options)
