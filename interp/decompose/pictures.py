"""The figure of an attribution: what each component wrote, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.decompose.terms import Term
from interp.errors import SchemaError
from interp.plots.components import component_map
from interp.plots.titles import titled

if TYPE_CHECKING:
    import plotly.graph_objects as go


def attribution_figure(
    terms: Sequence[Term],
    values: Float[Tensor, "component batch *pos"],
    mask: Bool[Tensor, "batch *pos"],
    *,
    model: str,
    unit: str,
    prompt: int | None,
) -> go.Figure:
    """Layers by heads, MLP and the rest, of one prompt or the mean over all (and over positions).

    Raises:
        SchemaError: no such prompt.
    """
    if prompt is not None and not 0 <= prompt < len(mask):
        raise SchemaError(f"prompt {prompt}: there are 0 to {len(mask) - 1}")
    at = mask.clone()
    if prompt is not None:
        at[torch.arange(len(at)) != prompt] = False
    mean = values[:, at].double().mean(1)
    rows = pd.DataFrame([{**c.as_dict(), "value": float(v)} for c, v in zip(terms, mean, strict=True)])
    of = f"{int(at.sum())} places" if prompt is None else f"prompt {prompt}"
    what = "direct attribution" + ("" if unit == "logit" else " (along a direction)")
    return titled(component_map(rows, unit=unit), [model, what, of, "no null"])
