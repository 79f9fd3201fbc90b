"""What patching changes, as rows of a table: means over prompts with their intervals, in two scales."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from interp.errors import SchemaError, nearest
from interp.results.stats import bootstrap

Mode = Literal["noising", "denoising"]
MODES: tuple[Mode, ...] = ("noising", "denoising")
COLUMNS = {
    "mode": "str",
    "site": "str",
    "role": "str",
    "receivers": "str",
    "patched": "float64",
    "base": "float64",
    "other": "float64",
    "normalised": "float64",
    "normalised_low": "float64",
    "normalised_high": "float64",
}
"""Beside the common ones: means of the metric in the patched run, in the run that is patched, and in the one that
activations come from."""
LEAST = 1e-9
"""A change of the metric from one run to the other below this is none, and nothing can be said relative to it."""


def checked(mode: str) -> Mode:
    """The mode, if there is one of that name."""
    if mode not in MODES:
        raise SchemaError(f"unknown mode {mode!r}; {nearest(mode, MODES)}")
    return "noising" if mode == MODES[0] else "denoising"


def effects(
    patched: Float[ndarray, "node prompt"],
    base: Float[ndarray, " prompt"],
    other: Float[ndarray, " prompt"],
    *,
    seed: int,
    level: float = 0.95,
) -> list[dict[str, float | int]]:
    """value = mean(m_patched - m_base), normalised = value / mean(m_other - m_base): a ratio of means.

    Base is the clean run when noising and the corrupted one when denoising, so that normalised is
    (m_clean - m_patched) / (m_clean - m_corrupt) when noising and (m_patched - m_corrupt) / (m_clean - m_corrupt) when
    denoising: 0 where nothing happens and 1 where the run becomes the other. Intervals are percentile bootstraps over
    prompts, numerator and denominator resampled together. A prompt with NaN (it lacks the position) is left out of that
    node, the denominator included.
    """
    rows: list[dict[str, float | int]] = [{} for _ in patched]
    present = ~np.isnan(patched)
    for pattern, members in groups(present).items():
        mask = np.array(pattern, dtype=bool)
        n = int(mask.sum())
        if n == 0:
            for i in members:
                rows[i] = {"value": np.nan, "n": 0}
            continue
        span = (other - base)[mask]
        change = patched[members][:, mask] - base[mask]
        low, high, _ = bootstrap(lambda w: w @ change.T, n, seed=seed, level=level)  # noqa: B023  (used at once)
        whole = float(span.mean())
        spans = np.abs(whole) > LEAST
        with np.errstate(divide="ignore", invalid="ignore"):
            share_low, share_high, _ = bootstrap(
                lambda w: (w @ change.T) / (w @ span)[:, None],  # noqa: B023  (used at once)
                n,
                seed=seed,
                level=level,
            )
        se = change.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(members), np.nan)
        for k, i in enumerate(members):
            mean = float(change[k].mean())
            rows[i] = {
                "value": mean,
                "se": float(se[k]),
                "ci_low": float(low[k]),
                "ci_high": float(high[k]),
                "n": n,
                "patched": float(patched[i, mask].mean()),
                "base": float(base[mask].mean()),
                "other": float(other[mask].mean()),
                "normalised": mean / whole if spans else np.nan,
                "normalised_low": float(share_low[k]) if spans else np.nan,
                "normalised_high": float(share_high[k]) if spans else np.nan,
            }
    return rows


def groups(present: ndarray) -> dict[tuple[bool, ...], list[int]]:
    """Nodes by which prompts have them."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for i, row in enumerate(present):
        groups.setdefault(tuple(row.tolist()), []).append(i)
    return groups
