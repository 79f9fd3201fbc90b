"""Which rows the figures of analyses draw."""

import pandas as pd

from interp.results.figures import INFLATED, dots_by_size, readable_dots

ROWS = pd.DataFrame(
    {
        "analysis": "a",
        "variant": "b",
        "component": [f"M0N{i}" for i in range(24)],
        "value": [float(i) for i in range(-12, 12)],
        "unit": "logit",
        "vif": [2.0 * i for i in range(24)],
    }
)


def drawn(figure):
    return list(figure.layout.yaxis.ticktext)


def test_dots_by_size_are_the_largest_of_either_sign():
    own = ROWS.assign(size=ROWS["value"].abs()).nlargest(10, "size").sort_values("value", ascending=False)
    assert drawn(dots_by_size(ROWS)) == own["component"].tolist()
    assert {"M0N0", "M0N23"} <= set(own["component"])


def test_coefficients_that_collinearity_leaves_open_are_not_drawn():
    assert drawn(readable_dots(ROWS)) == [f"M0N{i}" for i in range(int(INFLATED / 2), -1, -1)]
    assert len(drawn(readable_dots(ROWS.assign(vif=100.0)))) == 10
