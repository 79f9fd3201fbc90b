"""Arrays of numbers as figures take them: of a stated shape, or as rows of a table of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from interp.components import head_name
from interp.errors import SchemaError


def array_of(values: Any, shapes: Sequence[tuple[str, ...]], what: str) -> np.ndarray:
    """Numbers of a tensor, array or nested list as float64, in one of some shapes said by the names of their axes.

    Raises:
        SchemaError: other shapes, what is no array of numbers, or none at all.
    """
    expected = " or ".join(f"[{' '.join(axes)}]" for axes in shapes)
    try:
        data = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{what}: expected numbers {expected}; got {type(values).__name__} {values!r:.40}") from error
    if data.ndim not in {len(axes) for axes in shapes} or not data.size:
        raise SchemaError(f"{what}: expected numbers {expected}; got shape {data.shape}")
    return data


def head_table(values: Any, *, unit: str = "") -> pd.DataFrame:
    """Rows of a table of heads from numbers [layer head]: a tensor, an array or nested lists.

    Raises:
        SchemaError: another shape.
    """
    data = array_of(values, [("layer", "head")], "a map of heads")
    layer, head = (x.ravel() for x in np.indices(data.shape))
    names = [head_name(*place) for place in zip(layer.tolist(), head.tolist(), strict=True)]
    return pd.DataFrame({"layer": layer, "head": head, "component": names, "value": data.ravel(), "unit": unit})
