import math

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest

from interp.errors import SchemaError
from interp.plots.heads import head_map, template, top_heads
from interp.plots.rows import largest, leading, scores
from interp.results.results import Result, frame


def table(n_layers=3, n_heads=8, *, unit="probability", sign=1.0, **columns):
    """One variant of one analysis with values 0, 1, 2 ... (scaled to at most 0.9), top two heads labelled."""
    layer, head = (a.ravel() for a in np.meshgrid(range(n_layers), range(n_heads), indexing="ij"))
    value = np.linspace(0, 0.9, n_layers * n_heads) * sign
    rows = {
        "analysis": "induction",
        "variant": "prefix_matching",
        "layer": layer,
        "head": head,
        "component": [f"L{a}H{b}" for a, b in zip(layer, head, strict=True)],
        "value": value,
        "ci_low": value - 0.01,
        "ci_high": value + 0.02,
        "null": 0.02,
        "q": 0.001,
        "unit": unit,
        "label": value > 0.85,
    }
    return frame(pd.DataFrame(rows | columns), extra={"label": "boolean"})


def test_a_map_holds_every_value_less_its_null_at_its_layer_and_head():
    rows = table()
    heat = head_map(rows.sample(frac=1, random_state=0)).data[0]
    np.testing.assert_allclose(heat.z, rows["value"].to_numpy().reshape(3, 8) - 0.02)
    assert heat.text[2][7].startswith("<b>L2H7</b><br>0.9 probability<br>95 % interval 0.89 to 0.92<br>null 0.02")


def test_labelled_heads_are_outlined_and_no_others():
    outline = head_map(table()).data[1]
    centres = {
        (np.nanmean(y).round(), np.nanmean(x).round())
        for x, y in zip(outline.x.reshape(-1, 6)[:, :4], outline.y.reshape(-1, 6)[:, :4], strict=True)
    }
    assert centres == {(2, 6), (2, 7)}
    assert len(head_map(table(label=False)).data) == 1


@pytest.mark.parametrize(
    ("unit", "values", "limits"),
    [
        ("probability", [0.0, 0.03], (0, 1)),
        ("probability", [0.0, 0.7], (0, 1)),
        ("fraction", [0.2, 1.8], (0, 2)),
        ("fraction", [-0.1, 0.2], (-1, 1)),
        ("nats", [0.0, 3.0], (0, 5)),
        ("nats", [-4.0, 3.0], (-5, 5)),
        ("nats", [0.0, 0.0], (0, 1)),
        ("nats", [math.nan, math.nan], (0, 1)),
    ],
)
def test_the_scale_is_anchored_at_zero_and_never_filled_by_noise(unit, values, limits):
    heat = head_map(table(1, 2, unit=unit, value=values, null=0.0, ci_low=None, ci_high=None)).data[0]
    assert (heat.zmin, heat.zmax) == limits


def test_signed_values_get_the_diverging_scale():
    assert head_map(table(sign=-1.0)).data[0].colorscale == head_map(table(sign=-0.3, unit="nats")).data[0].colorscale
    assert head_map(table(sign=-1.0)).data[0].colorscale != head_map(table()).data[0].colorscale


@pytest.mark.parametrize(
    ("shape", "step"), [((3, 8), (1, 1)), ((32, 32), (4, 4)), ((80, 64), (8, 8)), ((12, 16), (1, 2))]
)
def test_ticks_thin_out(shape, step):
    figure = head_map(table(*shape))
    assert (figure.layout.yaxis.dtick, figure.layout.xaxis.dtick) == step
    assert figure.layout.height < 900


def test_layers_without_attention_stay_empty():
    rows = table()
    heat = head_map(rows[rows["layer"] != 1]).data[0]
    assert np.isnan(heat.z[1]).all()
    assert not np.isnan(heat.z[[0, 2]]).any()


def test_dots_carry_values_intervals_and_the_null():
    rows = table()
    labelled, rest, null = top_heads(rows, 5).data
    best = rows.nlargest(5, "value")
    np.testing.assert_array_equal([*labelled.x, *rest.x], best["value"])
    np.testing.assert_allclose([*labelled.error_x.array, *rest.error_x.array], 0.02)
    np.testing.assert_allclose([*labelled.error_x.arrayminus, *rest.error_x.arrayminus], 0.01)
    assert [*labelled.y, *rest.y] == [0, 1, 2, 3, 4]
    assert (labelled.name, rest.name) == ("labelled", "not labelled")
    assert list(null.x) == [0.02, 0.02]
    assert null.line.dash == "dash"
    assert list(top_heads(rows, 5).layout.yaxis.ticktext) == list(best["component"])


def test_a_null_that_differs_between_heads_is_a_tick_per_head():
    rows = table(1, 3, null=[0.1, 0.2, None])
    null = top_heads(rows).data[-1]
    assert list(null.x) == [0.2, 0.1]
    assert list(null.y) == [1, 2]
    assert null.mode == "markers"


def test_rows_without_interval_null_or_label_are_drawn():
    rows = frame([{"analysis": "a", "variant": "v", "layer": 0, "head": h, "value": h, "unit": "nats"} for h in (0, 1)])
    (dots,) = top_heads(rows).data
    assert list(dots.x) == [1, 0]
    assert list(top_heads(rows).layout.yaxis.ticktext) == ["L0H1", "L0H0"]
    assert head_map(rows).data[0].text[0][1] == "<b>L0H1</b><br>1 nats"


def test_names_are_text_not_markup():
    rows = table(1, 1, component="<b>x</b> & <script>", unit="<i>p</i>")
    for text in (head_map(rows).data[0].text[0][0], top_heads(rows).layout.yaxis.ticktext[0]):
        assert "&lt;b&gt;x&lt;/b&gt; &amp; &lt;script&gt;" in text
    assert head_map(rows).data[0].colorbar.title.text == "&lt;i&gt;p&lt;/i&gt;<br>above null"
    assert top_heads(rows).layout.xaxis.title.text == "&lt;i&gt;p&lt;/i&gt;"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table()[:0], "no rows"),
        (pd.concat([table(), table()]), "one value per head"),
        (table(1, 2, head=[0, None]), "a layer and a head"),
    ],
    ids=["empty", "twice", "not heads"],
)
def test_what_is_no_map_is_refused(rows, message):
    with pytest.raises(SchemaError, match=message):
        head_map(rows)


def test_dots_without_values_are_refused():
    with pytest.raises(SchemaError, match="no rows with a value"):
        top_heads(table(value=None, ci_low=None, ci_high=None))


def test_largest_keeps_the_order_of_equal_values_and_drops_missing_ones():
    rows = scores(table(1, 4, value=[0.5, None, 0.7, 0.5], ci_low=None, ci_high=None))
    assert [s.component for s in largest(rows, 3)] == ["L0H2", "L0H0", "L0H3"]


def test_labelled_rows_are_shown_however_low_they_are_and_the_rest_by_value():
    values = [0.5, -0.9, 0.7, 0.1, 0.6]
    rows = scores(table(1, 5, value=values, label=[False, True, False, True, False], ci_low=None, ci_high=None))
    assert [s.component for s in leading(rows, 3)] == ["L0H2", "L0H3", "L0H1"]
    assert [s.component for s in leading(rows, 1)] == ["L0H1"]


def test_the_template_is_registered_but_not_the_default():
    default = pio.templates.default
    assert template() in pio.templates
    assert pio.templates.default == default != "interp"


def test_result_plot_is_the_map_of_the_headline_variant():
    rows = table()
    np.testing.assert_allclose(Result(rows, {}).plot().data[0].z, rows["value"].to_numpy().reshape(3, 8) - 0.02)


def test_the_title_of_a_colour_bar_ends_with_its_map():
    """Beside two layers one line of it was longer than the map and lay over the figure's title."""
    rows = {"layer": [0, 1], "head": 0, "component": ["L0H0", "L1H0"], "value": 0.5, "null": 0.1, "unit": "probability"}
    figure = head_map(frame(pd.DataFrame(rows)))
    longest = max(map(len, figure.data[0].colorbar.title.text.split("<br>")))
    assert longest * 8 <= figure.layout.height - 76
