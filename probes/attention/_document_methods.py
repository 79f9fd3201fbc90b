"""Documents in a prompt, asked as they are and by a method: calibration of places, sorting, rotary bases together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.measurement.scoring import interval_columns
from interp.results import stats

LEAST = 3  # prompts, for a test over them


def gain_row(
    gain: Float[np.ndarray, " prompt"], controls: Sequence[Float[np.ndarray, " prompt"]], *, seed: int
) -> dict[str, Any]:
    """Row of `gain`: the fall of the loss on held-out prompts, beside that of random controls.

    p is one-sided over prompts, of the gain less the mean of the controls'; a single hypothesis, so that q = p.
    """
    control = np.mean(controls, axis=0)
    p = float(stats.p_above(gain - control))
    return {
        "variant": "gain",
        "unit": "nats",
        **interval_columns(stats.bootstrap_mean(gain, seed=seed)),
        "null": float(control.mean()),
        "p": p,
        "q": p,
    }


def value_row(
    variant: str, unit: str, values: Float[np.ndarray, " prompt"], *, seed: int, **more: Any
) -> dict[str, Any]:
    """A row of a mean over prompts, with its interval."""
    return {"variant": variant, "unit": unit, **interval_columns(stats.bootstrap_mean(values, seed=seed)), **more}
