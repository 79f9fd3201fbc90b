"""Maps of patching effects: one value per cell, zero in the middle, words of a checkpoint as text."""

from __future__ import annotations

import pandas as pd
import pytest
from numpy.testing import assert_allclose

from interp.errors import SchemaError
from interp.plots.patching import effect_figure, patch_map

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
    assert (heat.zmin, heat.zmax) == (-1.0, 1.0)


def test_a_scale_without_negative_values_still_has_zero_in_the_middle():
    heat = patch_map(ROWS, value="value").data[0]
    assert (heat.zmin, heat.zmax) == (-5.0, 5.0)


def test_positions_stand_in_their_order():
    rows = ROWS.assign(role=pd.NA, position=[10, 2, 10, 2])
    assert list(patch_map(rows).data[0].x) == ["2", "10"]


def test_columns_of_positions_show_their_tokens():
    rows = ROWS.assign(role=pd.NA, position=[10, 2, 10, 2], token=[None, "<b>", None, "<b>"])
    axis = patch_map(rows).layout.xaxis
    assert (list(axis.tickvals), list(axis.ticktext)) == (["2", "10"], ["&lt;b&gt;", "10"])
    assert list(patch_map(rows, tokens=["a", "c"]).layout.xaxis.ticktext) == ["a", "c"]
    with pytest.raises(SchemaError, match="1 tokens for 2 columns"):
        patch_map(rows, tokens=["a"])


def test_several_heads_of_a_layer_are_lines_of_their_own():
    rows = ROWS.assign(layer=0, component=["L0H1", "L0H1", "L0H0", "L0H0"])
    heat = patch_map(rows).data[0]
    assert list(heat.y) == ["L0H1", "L0H0"]
    assert_allclose(heat.z, [[0.5, -0.25], [0.1, 0.0]])


def test_each_kind_of_node_has_the_figure_that_suits_it():
    places = pd.DataFrame(
        {"layer": [0, 1], "head": pd.NA, "component": ["M0", "M1"], "position": pd.NA, "unit": "logit"}
    )
    shares = {
        "value": [1.0, 2.0],
        "normalised": [0.1, 0.2],
        "normalised_low": [0.0, 0.1],
        "normalised_high": [0.2, 0.4],
    }
    mlps = places.assign(site=["L0.mlp_out", "L1.mlp_out"], **shares)
    heads = mlps.assign(site=["L0H0.z", "L1H0.z"], head=[0, 0], component=["L0H0", "L1H0"])
    (bars,) = effect_figure(mlps).data
    assert (bars.type, list(bars.y), list(bars.error_y.array)) == ("bar", [0.1, 0.2], pytest.approx([0.1, 0.2]))
    both = effect_figure(pd.concat([heads, mlps], ignore_index=True).iloc[::-1])
    assert [trace.type for trace in both.data] == ["heatmap", "bar"]
    assert_allclose(both.data[0].z, [[0.1], [0.2]])
    assert [note.text for note in both.layout.annotations] == ["heads", "MLP"]
    with pytest.raises(SchemaError, match="no rows"):
        effect_figure(mlps[:0])


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
