"""One scale for each unit: what is at chance, and what is noise, is pale; both ends are legible on any page."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from interp.plots import head_map
from interp.plots.scales import (
    NEGATIVE,
    POSITIVE,
    UNITS,
    above_null,
    axis_range,
    cell_text,
    colour_scale,
    has_null,
    scale_end,
    signed_stops,
    stops,
)
from interp.plots.theme import GREY, LINES, Figure

PAGES = ("#ffffff", "#111111", "#1e1e1e")


def rgb(colour):
    """Red, green, blue (and opacity) of "#rrggbb" or "rgba(...)"."""
    if colour.startswith("#"):
        return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return [float(x) for x in re.findall(r"[\d.]+", colour)]


def seen(colour, page):
    """A colour with opacity, as it looks on a page."""
    *own, opacity = rgb(colour)
    mixed = [round(opacity * a + (1 - opacity) * b) for a, b in zip(own, rgb(page), strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mixed)


def ratio(a, b):
    """From 1, no contrast, to 21."""
    low, high = sorted(_luminance(c) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour):
    parts = [c / 255 for c in rgb(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def colour(z, scale):
    """What plotly draws of a number: rgba, interpolated."""
    at = (z - scale["zmin"]) / (scale["zmax"] - scale["zmin"])
    points = [(p, [float(x) for x in re.findall(r"[\d.]+", c)]) for p, c in scale["colorscale"]]
    return [float(np.interp(at, [p for p, _ in points], [c[i] for _, c in points])) for i in range(4)]


def heads(values, unit, null=None):
    columns = {"layer": 0, "head": range(len(values)), "component": [f"L0H{i}" for i in range(len(values))]}
    return pd.DataFrame({**columns, "value": values, "null": null, "unit": unit})


def test_a_score_at_chance_is_pale_beside_one_of_98():
    echo, induction = (head_map(heads([v], "probability", 0.02)).data[0] for v in (0.021, 0.98))
    assert (echo.zmin, echo.zmax) == (induction.zmin, induction.zmax) == (0, 1)
    scale = {"zmin": 0, "zmax": 1, "colorscale": echo.colorscale}
    assert colour(echo.z[0][0], scale)[3] < 0.12
    assert colour(induction.z[0][0], scale)[3] > 0.95


@pytest.mark.parametrize("unit", ["logit", "logits", "nats", "logit_diff"])
def test_noise_of_two_hundredths_is_pale(unit):
    scale = colour_scale(np.array([0.02, -0.02]), unit)
    assert scale["zmax"] == 1
    assert colour(0.02, scale)[3] < 0.15


@pytest.mark.parametrize(
    ("unit", "values", "end"),
    [
        ("probability", [0.0, 0.03], 1),
        ("probability", [0.9], 1),
        ("correlation", [-1.0], 1),
        ("degrees", [12.0], 90),
        ("fraction", [1.8], 2),
        ("nats", [1.1], 2),
        ("nats", [3.0], 5),
        ("logit", [16.9], 20),
        ("logit", [5.0], 5),
        ("ratio", [3.0], 4),
        ("", [0.03], 0.05),
        ("", [7.0], 10),
        ("", [0.0], 1),
        ("nats", [np.nan], 1),
    ],
)
def test_a_scale_ends_at_its_unit_or_the_next_step(unit, values, end):
    assert scale_end(np.array(values), unit) == pytest.approx(end)


def test_a_larger_column_moves_no_smaller_one_to_another_colour():
    small, large = (colour_scale(np.array(v), "nats") for v in ([0.3], [0.3, 0.9]))
    assert colour(0.3, small) == colour(0.3, large)


def test_the_signed_scale_reaches_as_far_on_both_sides_and_above_is_the_unsigned_one():
    signed, unsigned = colour_scale(np.array([-0.4, 0.2]), "nats"), colour_scale(np.array([0.2]), "nats")
    assert (signed["zmin"], signed["zmax"], unsigned["zmin"]) == (-1, 1, 0)
    assert colour(0.6, signed) == pytest.approx(colour(0.6, unsigned))
    assert colour(-1.0, signed)[:3] == [float(x) for x in NEGATIVE.split(",")]
    assert colour(1.0, signed)[:3] == [float(x) for x in POSITIVE.split(",")]
    assert colour(-0.6, signed)[3] == pytest.approx(colour(0.6, signed)[3])
    assert colour_scale(np.array([0.2]), "nats", signed=True)["zmin"] == -1
    assert colour_scale(np.array([0.9, -0.04]), "nats")["zmin"] == 0  # as pale as zero: nothing to tell apart
    assert colour_scale(np.array([0.9, -0.06]), "nats")["zmin"] == -1


def test_what_is_drawn_is_the_value_less_its_null():
    rows = heads([0.5, 0.5, -0.2], "fraction", [0.1, np.nan, 0.3])
    np.testing.assert_allclose(above_null(rows), [0.4, 0.5, -0.5])
    assert has_null(rows)
    assert not has_null(rows.assign(null=np.nan))
    assert not has_null(rows.drop(columns="null"))
    heat = head_map(rows).data[0]
    np.testing.assert_allclose(heat.z, [[0.4, 0.5, -0.5]])
    assert heat.colorbar.title.text == "fraction<br>above null"
    assert head_map(rows.assign(null=0.0)).data[0].colorbar.title.text == "fraction"


def test_strength_grows_from_nothing_on_every_page():
    for page in PAGES:
        for scale in (
            stops(),
            signed_stops()[len(signed_stops()) // 2 :],
            signed_stops()[len(signed_stops()) // 2 :: -1],
        ):
            apart = [ratio(seen(colour, page), page) for _, colour in scale]
            assert apart[0] < 1.3
            assert apart == sorted(apart)
            assert apart[-1] > 3.3
    assert POSITIVE != NEGATIVE


def test_lines_are_legible_on_every_page_and_text_on_white():
    assert min(ratio(c, page) for c in LINES for page in PAGES) > 3
    assert ratio(GREY, "#ffffff") > 4.5
    assert min(ratio(GREY, page) for page in PAGES) > 3.5


def test_an_axis_of_values_is_never_filled_by_noise():
    low, high = axis_range(np.array([0.001, 0.004]), "probability")
    assert low <= 0
    assert high >= 0.1
    low, high = axis_range(np.array([-0.00002, 0.00001]), "nats")
    assert low <= -0.04
    assert high >= 0.04
    assert axis_range(np.array([2.0, 8.0]), "nats", pad=0.0)[0] == 0
    assert axis_range(np.array([-3.0, np.nan, -1.0]), "nats", pad=0.0) == [-3.0, -1.0]


def test_units_that_end_somewhere_are_in_the_table():
    for unit in ("probability", "fraction", "correlation", "cosine", "logit", "nats"):
        assert UNITS[unit] == 1


def test_words_in_strong_cells_are_white_and_in_pale_ones_follow_the_page():
    figure = Figure()
    cell_text(figure, np.array([["a", "b", "c"]], dtype=object), np.array([[0.1, 0.9, -0.9]]), 1.0)
    (words,) = figure.data
    assert list(words.textfont.color) == [GREY, "#ffffff", "#ffffff"]
    assert [family.startswith("interp-ink") for family in words.textfont.family] == [True, False, False]
