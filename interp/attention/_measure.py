"""`measure`: attention output and statistics by either implementation, checked to be finite."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from interp.attention import fused, naive
from interp.attention.call import Call
from interp.attention.statistics import Entropy, Mean, Statistic
from interp.attention.windowed import by_window
from interp.errors import BackendError, NotApplicable, NotFinite, nearest

METHODS = {"fused": fused.answer_all, "naive": naive.answer_all}


def measure(
    call: Call, questions: Mapping[str, Statistic], *, method: str = "auto"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output [batch, head, query, d_value] and the answer to each question.

    `method`: "fused" (O(n) memory; what "auto" picks), "naive" (dense, the oracle, and the only one where attention is
    not all softmax, or scores have a bias: that is as large as the pattern itself).

    Raises:
        TaskError: a question that does not fit the prompts.
        NotApplicable: an entropy where attention is not all softmax.
        BackendError: unknown method; NotFinite: queries, keys, values or output at real tokens are not, counted.
    """
    if call.windows:
        return by_window(call, questions, partial(measure, method=method))
    plain = call.softmax_share == 1.0 and call.bias is None
    method = ("fused" if plain else "naive") if method == "auto" else method
    if method not in METHODS:
        raise BackendError(f"unknown attention method {method!r}; {nearest(method, METHODS)}")
    if call.softmax_share != 1.0:
        _check_share(call, questions, method)
    if call.bias is not None and method == "fused":
        raise BackendError('a bias is added to every attention score, which no fused kernel does; use method="auto"')
    call.mask.check()
    for question in questions.values():
        question.check(batch=call.mask.batch, n_query=call.mask.n_query, n_key=call.mask.n_key)
    output, answers = METHODS[method](call, questions)
    for name, tensor in (("queries", call.query), ("keys", call.key), ("values", call.value), ("output", output)):
        if not bool(torch.isfinite(tensor.sum((1, 3), dtype=torch.float32)).all()):  # cheap screen for the exact check
            _require_finite(name, tensor, call)
    return output, answers


def _check_share(call: Call, questions: Mapping[str, Statistic], method: str) -> None:
    """Refuse what weights that do not sum to one have no answer to, and kernels that know softmax alone."""
    weights = (
        "attention weights are the ReLU of scores"
        if call.relu
        else f"a constant {1 - call.share:g} is added to every attention weight"
    )
    if method == "fused":
        raise BackendError(f'{weights}, which no fused kernel does; use method="auto"')
    for question in questions.values():
        if isinstance(question.of if isinstance(question, Mean) else question, Entropy):
            raise NotApplicable(f"{weights}, so that rows do not sum to one and have no entropy")


def _require_finite(name: str, tensor: Tensor, call: Call) -> None:
    """Queries, keys and output are checked each: some kernels turn a NaN score into a zero."""
    real = call.mask.real() if tensor.shape[2] == call.mask.n_query else call.mask.keys()
    bad = ~torch.isfinite(tensor).all(-1).all(1) & real
    if bad.any():
        count, row = int(bad.sum()), int(bad.nonzero()[0, 1])
        raise NotFinite(
            f"attention {name} not finite at {count} of {int(real.sum())} tokens (first at position {row}): "
            f"NaN or infinite weights, or overflow in {str(tensor.dtype).removeprefix('torch.')}"
        )
