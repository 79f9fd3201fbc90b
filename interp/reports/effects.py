"""What a method without a circuit says of a task, as the page shows it: the components with the largest effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interp.reports.cells import Cell, cell, interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.results.results import Result

ROWS = 20  # listed


@dataclass(frozen=True)
class Effect:
    """A line of the table."""

    component: str
    variant: str
    value: Cell
    interval: Cell


@dataclass(frozen=True)
class TaskEffects:
    """Everything the template needs of one table; numbers are written out."""

    task: str
    method: str
    title: str
    means: str
    misleads: str
    unit: str
    n: int
    more: int
    rows: list[Effect]
    figures: dict[str, go.Figure] = field(default_factory=dict)


def task_effects(result: Result) -> TaskEffects:
    """A method's table in the form of the page, largest effects first."""
    from circuits.methods import find

    provenance, table = result.provenance, result.table
    method = find(str(provenance["method"]))
    rows: Any = table.sort_values("value", key=lambda v: -v.abs(), kind="stable").head(ROWS)
    return TaskEffects(
        task=str(provenance["data"]["task"]).replace("_", " "),
        method=method.name,
        title=method.title,
        means=method.means,
        misleads=method.misleads,
        unit=str(table["unit"].iloc[0]).replace("_", " ") if len(table) else "",
        n=int(provenance["data"]["n_prompts"]),
        more=len(table) - len(rows),
        rows=[
            Effect(
                str(row["component"]),
                str(row["variant"]),
                cell(row["value"]),
                interval(row["ci_low"], row["ci_high"]),
            )
            for row in rows.to_dict("records")
        ],
    )
