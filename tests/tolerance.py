"""A tolerance for one number reached by two routes, in units of what rounding does to it.

Float sums depend on their order, and the order on the vector width of the CPU, its BLAS kernels, the number of threads
and the shape of the batch. A tolerance that was read off one machine therefore fails on the next. Each addition is off
by at most eps / 2 of the running sum, and as often up as down: a sum of `depth` terms that stays within s is off by
about sqrt(depth) * eps * s (Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 2.6 and 4.2). That s
is the largest value of an activation, not each value's own size: what cancels to nearly 0 is off as much as the rest.
"""

from __future__ import annotations

import numpy as np
import torch

MARGIN = 4.0
"""Tensors have thousands of entries, and a forward pass chains a dozen sums; the tiny models use up a third of it."""
DEPTH = 64
"""The width of the tiny models."""
VACUOUS = 1e-2
"""A tolerance of this share of the values would let a wrong formula pass."""


def assert_equal_to_rounding(
    actual, expected, *, depth=DEPTH, scale=None, dtype=torch.float32, equal_nan=False, msg=""
):
    """Fail where two arrays differ by more than rounding: MARGIN * sqrt(depth) * eps(dtype) * scale.

    For values of the *same* quantity computed in another order. Not for the same computation done twice, whose bits are
    equal, nor for an approximation, which has an error of its own.

    Args:
        actual: tensor, array, table column or number; two tensors must have one shape and dtype.
        expected: likewise.
        depth: number of terms in the longest sum behind a value.
        scale: size of the terms; None: the largest finite |expected|. To be given where that is not their size, as for
            a difference of larger values or a sum that should be 0.
        dtype: what the values were computed in, which a table of float64 does not tell.
        equal_nan: take NaN for equal to NaN.
        msg: what is compared, for the message.
    """
    tolerance = rounding(expected, depth=depth, scale=scale, dtype=dtype)
    if isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor):
        named = (lambda text: f"{msg}: {text}") if msg else None
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, equal_nan=equal_nan, msg=named)
    else:
        np.testing.assert_allclose(
            _array(actual), _array(expected), atol=tolerance, rtol=0, equal_nan=equal_nan, err_msg=str(msg)
        )


def rounding(expected, *, depth=DEPTH, scale=None, dtype=torch.float32) -> float:
    """Largest difference that rounding explains; 0 where all that is expected is 0 and no scale is given."""
    if scale is None:
        finite = np.abs(_array(expected))
        finite = finite[np.isfinite(finite)]
        scale = float(finite.max()) if finite.size else 0.0
    share = MARGIN * depth**0.5 * torch.finfo(dtype).eps
    if share > VACUOUS:
        raise ValueError(f"{dtype} sums of {depth} terms may be off by {share:.1%}: a comparison would tell nothing")
    return share * scale


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double()
    return np.asarray(values, dtype=float)
