"""Figure of pruning: what a model keeps as more and more of its heads are removed, least important first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import SchemaError
from interp.results.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

CURVE = "pruned_by_"


def pruning_curve(result: Result) -> go.Figure:
    """Metric against number of heads removed, a line per order with its interval, and the mean of random orders.

    Raises:
        SchemaError: the result holds no pruning (`interp.analyze(model, "importance", pruning=True)` makes it).
    """
    from interp.plots.titles import heading, titled
    from interp.results.figures import over

    rows = result.table[(result.table["analysis"] == "importance") & result.table["variant"].str.startswith(CURVE)]
    if not len(rows):
        raise SchemaError("no pruning curve in this result; run the analysis 'importance' with pruning=True")
    rows = rows.assign(order=rows["variant"].str.removeprefix(CURVE))
    figure = over(rows, "pruned", title="heads removed", by="order", null="random order")
    figure.update_yaxes(title_text=f"{result.provenance['data']['metric']} ({rows['unit'].iloc[0]})")
    return titled(figure, heading(rows, result.provenance, of="importance (pruning)"))
