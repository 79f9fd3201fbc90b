"""Spectrum of vectors over a cycle of tokens, beside that of the same vectors in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.errors import SchemaError
from interp.results.stats import LEAST_P, benjamini_hochberg, bootstrap

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST = 3
"""Rows of the shortest cycle: two have one frequency alone."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Share of squared norm by frequency, and the waves themselves.

    Attributes:
        rows: one row per frequency, in order; what the columns are stands at `fourier_spectrum`.
        coefficients: of each wave of `basis`, constant first, then cosine and sine of each frequency.
        basis: the waves, orthonormal; rows = basis^T coefficients.
        orders: the shares in random orders.
        draws: the shares of resampled columns, behind the intervals.
    """

    rows: pd.DataFrame
    coefficients: Float[Tensor, "wave d"]
    basis: Float[Tensor, "wave token"]
    orders: Float[ndarray, "order frequency"]
    draws: Float[ndarray, "draw frequency"]

    def __repr__(self) -> str:
        """One line."""
        best = self.rows.nlargest(1, "value").iloc[0]
        return f"<Spectrum of {self.basis.shape[1]} tokens: frequency {best['frequency']}, share {best['value']:.3g}>"

    def table(self) -> pd.DataFrame:
        """One row per frequency."""
        return self.rows.copy()

    def directions(self, frequency: int) -> Float[Tensor, "wave d"]:
        """Vectors along which the rows turn with a frequency: those of its cosine and its sine (none at n / 2).

        Raises:
            SchemaError: no such frequency.
        """
        if frequency not in set(self.rows["frequency"]):
            raise SchemaError(f"frequency {frequency}: there are 1 to {int(self.rows['frequency'].max())}")
        return self.coefficients[2 * frequency - 1 : 2 * frequency + 1]

    def top(self, k: int) -> tuple[float, Float[ndarray, " draw"], Float[ndarray, " order"]]:
        """Share of the k strongest frequencies, its resamples, and that of each random order's own strongest."""
        best = np.argsort(-self.rows["value"].to_numpy(dtype=float))[:k]
        value = float(self.rows["value"].to_numpy(dtype=float)[best].sum())
        return value, self.draws[:, best].sum(1), np.sort(self.orders, axis=1)[:, -k:].sum(1)

    def plot(self) -> go.Figure:
        """Share of each frequency, and its mean in random orders (dashed)."""
        from interp.plots import curves
        from interp.plots.titles import null_text, titled

        lines: dict[str, Any] = {"share": self.rows["value"], "random order": self.rows["null"]}
        axes: dict[str, Any] = {"x_title": "frequency", "y_title": "share of squared norm"}
        figure = curves(self.rows["frequency"], lines, **axes, control="random order", unit="share")
        return titled(figure, [f"spectrum of {self.basis.shape[1]} tokens", null_text(self.rows)])


def fourier_basis(n: int) -> Float[Tensor, "wave token"]:
    """Orthonormal waves over a cycle of n: the constant, then cos(2 pi k t / n) and sin(2 pi k t / n), k = 1 to n // 2.

    For even n the last frequency has a cosine alone.

    >>> basis = fourier_basis(6)
    >>> bool(torch.allclose(basis @ basis.T, torch.eye(6), atol=1e-6))
    True
    """
    t = torch.arange(n, dtype=torch.float64)
    waves = [torch.ones(n, dtype=torch.float64)]
    for k in range(1, n // 2 + 1):
        angle = 2 * torch.pi * k * t / n
        waves += [angle.cos()] if 2 * k == n else [angle.cos(), angle.sin()]
    basis = torch.stack(waves)
    return (basis / basis.norm(dim=1, keepdim=True)).float()


def fourier_spectrum(
    rows: Float[Tensor, "token d"] | Float[Tensor, "token unit d"] | ndarray,
    *,
    n_shuffles: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Spectrum:
    """Share of squared norm at each frequency: |c_k|^2 + |s_k|^2 over the sum for all k > 0, c and s the coefficients.

    The rows are vectors of tokens that stand in a cycle, in order: embeddings of the numbers modulo p
    (`model.weights().w_e[ids]`), activations or logits, one row for each. The constant (their mean) is left out. The
    null is the same rows in random order: (n - 1) dimensions shared out evenly, whatever the rows are. A line of
    numbers that is no cycle has its share at low frequencies too: a peak there alone is no sign of a clock. Reference:
    Nanda et al. 2023 (arXiv 2301.05217); shares by frequency as in Gromov 2023 (arXiv 2301.02679).

    Args:
        rows: one vector per token, in the order of the cycle; numbers alone, [token], are vectors of one. [token unit
            d]: the interval is over units, each with all of its columns.
        n_shuffles: random orders.
        level: of the interval.
        seed: of the orders and of the bootstrap over the columns of `rows`.

    Returns:
        Rows with frequency, value (the share), ci_low and ci_high over columns, null and null_high (mean and 95 %
        quantile in random orders), p (one-sided, over the orders) and q.

    Raises:
        SchemaError: fewer than three rows, NaN, or rows that do not vary.

    >>> t = torch.arange(12) * 2 * torch.pi * 3 / 12
    >>> spectrum = fourier_spectrum(torch.stack([t.cos(), t.sin()], 1))
    >>> int(spectrum.rows["value"].idxmax()) + 1
    3
    """
    x = torch.as_tensor(rows).detach().cpu().double()
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim not in (2, 3) or len(x) < LEAST:
        raise SchemaError(f"rows of shape {tuple(x.shape)}: expected [token d] with {LEAST} tokens at least")
    n_units, x = x.shape[1], x.flatten(1)
    varied = x - x.mean(0)
    if not bool(x.isfinite().all()) or float(varied.norm()) <= 1e-9 * float(x.norm()):
        raise SchemaError("rows hold NaN, or are all the same: there is no spectrum")
    n, basis = len(x), fourier_basis(len(x)).double()
    power = _power(basis @ varied)
    share = power.sum(1) / power.sum()
    rng = np.random.default_rng(seed)
    orders = np.stack([_share(basis @ varied[rng.permutation(n)]) for _ in range(n_shuffles)])
    columns = power.unflatten(1, (n_units, -1)).sum(2).numpy()
    drawn = bootstrap(
        lambda w: (w @ columns.T) / np.maximum((w @ columns.sum(0))[:, None], 1e-300),
        columns.shape[1],
        seed=seed,
        level=level,
        around=share.numpy(),
    )
    p = np.maximum((1 + (orders >= share.numpy()).sum(0)) / (1 + n_shuffles), LEAST_P)
    table = pd.DataFrame(
        {
            "frequency": np.arange(1, len(share) + 1),
            "value": share.numpy(),
            "ci_low": drawn.low,
            "ci_high": drawn.high,
            "null": orders.mean(0),
            "null_high": np.quantile(orders, level, axis=0),
            "p": p,
            "q": benjamini_hochberg(p),
            "n": columns.shape[1],
            "unit": "fraction",
        }
    )
    return Spectrum(table, (basis @ x).float(), basis.float(), orders, drawn.draws)


def _power(coefficients: Float[Tensor, "wave d"]) -> Float[Tensor, "frequency d"]:
    """Squared coefficients, cosine and sine of a frequency together, the constant left out."""
    squares = coefficients[1:].pow(2)
    if len(squares) % 2:  # an even cycle: the last frequency has no sine
        squares = torch.cat([squares, torch.zeros_like(squares[:1])])
    return squares.unflatten(0, (-1, 2)).sum(1)


def _share(coefficients: Float[Tensor, "wave d"]) -> Float[ndarray, " frequency"]:
    power = _power(coefficients).sum(1)
    return (power / power.sum()).numpy()
