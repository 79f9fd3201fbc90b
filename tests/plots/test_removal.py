import numpy as np
import pytest

from interp.errors import SchemaError
from interp.plots._removal import against, depth_grid, removal
from interp.plots.theme import GREY
from interp.results.results import frame


def interventions():
    rows = []
    for i, (edited, n) in enumerate([(0.1, 5), (0.9, 0)]):
        row = {"analysis": "a", "set_id": f"mean: L0H{i} <b>", "k": 1, "metric": "needle_accuracy", "clean": 1.0}
        control = {"control": "same layers" if n else "none", "n_random": n}
        random = {"random_mean": 0.95, "random_sd": 0.02} if n else {}
        rows.append({**row, **control, **random, "edited": edited})
    return frame(rows, interventions=True)


def heads(values, variant, **more):
    rows = [{"analysis": "a", "variant": variant, "component": f"L0H{i}", "value": v} for i, v in enumerate(values)]
    return frame([{"unit": "logit", **r, "layer": 0, "head": i, **more} for i, r in enumerate(rows)])


def test_a_line_per_set_with_its_controls_and_the_clean_value():
    random, edited, clean = removal(interventions(), "needle_accuracy").data
    assert list(edited.x) == [0.1, 0.9]
    assert list(random.x) == [0.95]
    assert list(random.y) == [0]  # the second set has no controls
    np.testing.assert_allclose(random.error_x.array, [0.02])
    assert set(clean.x) == {1.0}
    names = list(removal(interventions(), "needle_accuracy").layout.yaxis.ticktext)
    assert names == ["mean: L0H0 &lt;b&gt; (same layers)", "mean: L0H1 &lt;b&gt;"]
    with pytest.raises(SchemaError, match="did you mean 'needle_accuracy'"):
        removal(interventions(), "needle_acuracy")


def test_two_variants_meet_by_head_and_the_outermost_are_named():
    x, y = heads([0.0, 1.0, -3.0, 0.1], "mover"), heads([0.2, 0.1, 0.0, 9.0], "attention")
    (points,) = against(x, y.sample(frac=1, random_state=0), named=2).data
    assert list(points.customdata) == ["L0H0", "L0H1", "L0H2", "L0H3"]
    np.testing.assert_allclose(points.y, [0.2, 0.1, 0.0, 9.0])
    assert list(points.text) == ["", "", "L0H2", "L0H3"]
    crowded = against(heads([0.0, 1.0, 1.01, -0.9], "a"), heads([0.0, 1.0, 0.99, 0.0], "b")).data[0]
    assert list(crowded.text) == ["", "L0H1 L0H2", "", "L0H3"]  # one name for two that cover each other
    assert not against(x, y).layout.shapes
    up, across = against(x.assign(null=[0.1, 0.3, 0.1, 0.1]), y.assign(null=0.5)).layout.shapes
    assert (up.x0, up.x1, up.line.color) == (0.15, 0.15, GREY)  # the mean of the heads' nulls, upright
    assert (across.y0, across.y1, across.xref) == (0.5, 0.5, "x domain")
    assert against(x, y).layout.xaxis.title.text == "a: mover (logit)"
    flat = against(heads([0.01, 0.02], "a", unit="fraction"), heads([0.5, 0.4], "b"))
    assert flat.layout.xaxis.range[1] >= 0.1  # a fraction at chance does not fill the axis
    with pytest.raises(SchemaError, match="no head has both"):
        against(x, heads([0.1], "other").assign(component="L9H9"))
    with pytest.raises(SchemaError, match="one value per head"):
        against(x.loc[[0, 0]], y)


def test_the_grid_has_depths_down_and_lengths_across():
    rows = [(64, 0.0, 1.0), (64, 1.0, 0.5), (128, 0.0, 0.25), (128, 1.0, 0.0)]
    table = heads([r[2] for r in rows], "accuracy").assign(length=[r[0] for r in rows], depth=[r[1] for r in rows])
    heat, words = depth_grid(table.assign(unit="fraction")).data
    assert list(words.text) == ["1.00", "0.25", "0.50", "0.00"]
    np.testing.assert_allclose(heat.z, [[1.0, 0.25], [0.5, 0.0]])
    assert (list(heat.x), list(heat.y), heat.zmax) == (["64", "128"], ["0.00", "1.00"], 1.0)
    assert list(depth_grid(table[:3]).data[1].text) == ["1.00", "0.25", "0.50", ""]  # never "nan" in a cell
    with pytest.raises(SchemaError, match="one value per depth and length"):
        depth_grid(table.assign(length=64))
    with pytest.raises(SchemaError, match="no rows with a length"):
        depth_grid(table[:0])
