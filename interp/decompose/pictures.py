"""The figure of an attribution: what each component wrote, by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch

from interp.errors import SchemaError
from interp.plots.components import component_map
from interp.plots.titles import titled

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.decompose.attribution import Attribution


def attribution_figure(found: Attribution, prompt: int | None) -> go.Figure:
    """Layers by heads, MLP and the rest, of one prompt or the mean over all (and over positions).

    Raises:
        SchemaError: no such prompt.
    """
    if prompt is not None and not 0 <= prompt < len(found.mask):
        raise SchemaError(f"prompt {prompt}: there are 0 to {len(found.mask) - 1}")
    at = found.mask.clone()
    if prompt is not None:
        at[torch.arange(len(at)) != prompt] = False
    mean = found.values[:, at].double().mean(1)
    rows = pd.DataFrame([{**c.as_dict(), "value": float(v)} for c, v in zip(found.terms, mean, strict=True)])
    of = f"{int(at.sum())} places" if prompt is None else f"prompt {prompt}"
    what = "direct attribution" + ("" if found.unit == "logit" else " (along a direction)")
    return titled(component_map(rows, unit=found.unit), [found.model, what, of, "no null"])
