"""Figure of pruning: what a model keeps as more and more of its heads are removed, least important first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import SchemaError
from interp.plots.heads import GREY, template
from interp.results.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

CURVE = "pruned_by_"


def pruning_curve(result: Result) -> go.Figure:
    """Metric against number of heads removed, a line per order with its interval, and the mean of random orders.

    Raises:
        SchemaError: the result holds no pruning (`interp.analyze(model, "importance", pruning=True)` makes it).
    """
    import plotly.graph_objects as go

    rows = result.table[(result.table["analysis"] == "importance") & result.table["variant"].str.startswith(CURVE)]
    if not len(rows):
        raise SchemaError("no pruning curve in this result; run the analysis 'importance' with pruning=True")
    figure = go.Figure(layout={"template": template(), "height": 360})
    for variant, curve in rows.groupby("variant", sort=False):
        n_removed, value = curve["pruned"].to_numpy(dtype=float), curve["value"].to_numpy(dtype=float)
        above, below = (curve[c].to_numpy(dtype=float) for c in ("ci_high", "ci_low"))
        arms = {"array": above - value, "arrayminus": value - below, "thickness": 1, "width": 0}
        name = str(variant).removeprefix(CURVE)
        figure.add_scatter(x=n_removed, y=value, mode="lines+markers", name=name, error_y={"symmetric": False, **arms})
    first = rows[rows["variant"] == rows["variant"].iloc[0]]
    random = {"x": first["pruned"].to_numpy(dtype=float), "y": first["null"].to_numpy(dtype=float)}
    figure.add_scatter(**random, mode="lines", name="random order", line={"color": GREY, "dash": "dash"})
    figure.update_xaxes(title="heads removed")
    figure.update_yaxes(title=f"{result.provenance['data']['metric']} ({rows['unit'].iloc[0]})")
    return figure
