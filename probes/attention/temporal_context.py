"""The temporal-context model of free recall, and its fit to lag profiles. Pure functions of numbers.

Items 1, 2, 3 ... are studied in order. A context vector drifts, t_i = rho t_{i-1} + beta f_i with rho^2 + beta^2 = 1,
and item i is stored with the context before it, t_{i-1}. When i is seen again it brings back f_i and, in the share
gamma, its stored context; what is brought back drifts as well, with a beta of its own, over the items recalled before.
The match of that context with the one stored for item i + lag is the tendency to recall there next. In an endless list
of orthonormal items, f_i . t_{i+lag-1} = beta rho^{lag-1} for lag >= 1 and t_{i-1} . t_{i+lag-1} = rho^|lag|, so that

    g(lag)   = (1 - gamma) beta rho^{lag-1} [lag >= 1] + gamma rho^|lag|
    CRP(lag) ~ sum_{k>=0} rho_rec^k g(lag + k)

A pure induction stripe (all mass at lag +1) is beta = beta_rec = 1, gamma = 0; attention to the earlier copy of the
token itself (lag 0) is gamma = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

BOUNDS = ((0.05, 1.0), (0.05, 1.0), (0.0, 1.0))  # beta_enc, beta_rec, gamma: at beta = 0 every curve is flat
GRID = (20, 20, 11)
POLISHED = 0.6  # grid distance above which a profile is not alike, and not worth a search


def crp(
    beta_enc: Float[np.ndarray, "*curve"],
    beta_rec: Float[np.ndarray, "*curve"],
    gamma: Float[np.ndarray, "*curve"],
    reach: int,
) -> Float[np.ndarray, "*curve lag"]:
    """CRP(lag) up to a factor, at lags -reach .. reach, in closed form (geometric series)."""
    lag = np.arange(-reach, reach + 1)
    be, br, g = (np.asarray(x, dtype=float)[..., None] for x in (beta_enc, beta_rec, gamma))
    rho, drift = np.sqrt(1 - be**2), np.sqrt(1 - br**2)
    # sum_{k >= max(0, 1 - lag)} drift^k rho^{lag - 1 + k}
    forward = np.where(lag >= 1, rho ** np.maximum(lag - 1, 0), drift ** np.maximum(1 - lag, 0)) / (1 - drift * rho)
    # sum_{k >= 0} drift^k rho^|lag + k|: below zero first towards it, then away from it
    steps = np.maximum(-lag, 0)
    away = np.where(lag >= 0, rho ** np.maximum(lag, 0), drift**steps) / (1 - drift * rho)
    return (1 - g) * be * forward + g * (away + _towards(rho, drift, steps))


def _towards(rho: np.ndarray, drift: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """sum_{k=0}^{n-1} drift^k rho^{n-k} for each n in `steps`."""
    k = np.arange(steps.max())
    terms = drift[..., None] ** k * rho[..., None] ** np.maximum(steps[:, None] - k, 0)
    return np.where(k < steps[:, None], terms, 0.0).sum(-1)


@dataclass(frozen=True)
class Fit:
    """Parameters of the closest curve of each profile, and how far off it is.

    `distance` is the share of the profile's variance over lags that the curve, scaled by a positive factor and
    shifted, leaves unexplained: 0 for a perfect fit, 1 for none; NaN for a flat profile.
    """

    beta_enc: Float[np.ndarray, " profile"]
    beta_rec: Float[np.ndarray, " profile"]
    gamma: Float[np.ndarray, " profile"]
    distance: Float[np.ndarray, " profile"]


def fit(profiles: Float[np.ndarray, "profile lag"], *, polish: bool = True) -> Fit:
    """Least squares over (beta_enc, beta_rec, gamma), scale and shift: best grid point, L-BFGS-B from there if close.

    The lags of a profile are -reach .. reach. Scale and shift are solved for exactly: what remains is one minus the
    squared correlation with the curve.
    """
    reach = profiles.shape[1] // 2
    settings, curves = _grid(reach)
    best = np.zeros((len(profiles), 3))
    distance = np.full(len(profiles), np.nan)
    for rows, unit in _standardised(profiles):
        correlation = unit @ curves.T
        best[rows] = settings[correlation.argmax(1)]
        distance[rows] = 1 - np.maximum(correlation.max(1), 0) ** 2
        close = distance[rows] < POLISHED if polish else np.zeros(len(rows), dtype=bool)
        for row, target in zip(rows[close], unit[close], strict=True):
            optimum = minimize(_loss, best[row], args=(target, reach), method="L-BFGS-B", bounds=BOUNDS)
            if optimum.fun < distance[row]:
                best[row], distance[row] = optimum.x, optimum.fun
    return Fit(best[:, 0], best[:, 1], best[:, 2], np.clip(distance, 0.0, 1.0))


def distance(profiles: Float[np.ndarray, "profile lag"]) -> Float[np.ndarray, " profile"]:
    """`Fit.distance` from the grid alone: fast, and at most 0.02 above the polished one."""
    return fit(profiles, polish=False).distance


@cache
def _grid(reach: int) -> tuple[np.ndarray, np.ndarray]:
    axes = [np.linspace(low, high, n) for (low, high), n in zip(BOUNDS, GRID, strict=True)]
    settings = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    curves = crp(settings[:, 0], settings[:, 1], settings[:, 2], reach)
    curves = curves - curves.mean(-1, keepdims=True)
    norm = np.linalg.norm(curves, axis=-1, keepdims=True)
    return settings, curves / np.where(norm > 1e-9, norm, np.inf)


def _standardised(profiles: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of profiles that are not flat, each with mean 0 and length 1, and their row numbers."""
    centred = profiles - profiles.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1)
    rows = np.flatnonzero(norm > 1e-9)  # NaN profiles are left out as well
    for start in range(0, len(rows), 1024):
        block = rows[start : start + 1024]
        yield block, centred[block] / norm[block, None]


def _loss(setting: np.ndarray, target: np.ndarray, reach: int) -> float:
    curve = crp(setting[:1], setting[1:2], setting[2:], reach)[0]
    curve = curve - curve.mean()
    norm = np.linalg.norm(curve)
    return 1.0 if norm < 1e-9 else float(1 - max(0.0, target @ curve / norm) ** 2)
