"""One door to the implementations, and the check that what went in and came out are numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from interp.attention import fused, naive
from interp.attention.call import Call
from interp.attention.statistics import Statistic
from interp.errors import BackendError, nearest

METHODS = {"fused": fused.measure, "naive": naive.measure}


def measure(
    call: Call, questions: Mapping[str, Statistic], *, method: str = "auto"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output [batch, head, query, d_value] and the answer to each question.

    `method`: "fused" (O(n) memory; what "auto" picks), "naive" (dense, the oracle).

    Raises:
        BackendError: unknown method, or non-finite attention output on real tokens, counted.
    """
    method = "fused" if method == "auto" else method
    if method not in METHODS:
        raise BackendError(f"unknown attention method {method!r}; {nearest(method, METHODS)}")
    output, answers = METHODS[method](call, questions)
    bad = ~torch.isfinite(output).all(-1).all(1) & call.mask.real()
    if bad.any():
        count, row = int(bad.sum()), int(bad.nonzero()[0, 1])
        raise BackendError(
            f"attention output is not finite at {count} of {int(call.mask.real().sum())} tokens (first at "
            f"position {row}): NaN or infinite weights, or overflow in {str(call.query.dtype).removeprefix('torch.')}"
        )
    return output, answers
