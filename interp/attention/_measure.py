"""`measure`: attention output and statistics by either implementation, checked to be finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from interp.attention import fused, naive
from interp.attention.call import Call
from interp.attention.statistics import Distance, Entropy, KeyMass, Mean, Received, Statistic, SumSquares
from interp.attention.windowed import by_window
from interp.errors import BackendError, NotApplicable, NotFinite, nearest

Answers = tuple[Tensor, dict[str, Tensor]]
AnswerAll = Callable[[Call, Mapping[str, Statistic]], Answers]


def _flex(call: Call, questions: Mapping[str, Statistic]) -> Answers:
    from interp.attention import flex

    return flex.answer_all(call, questions)


def _triton(call: Call, questions: Mapping[str, Statistic]) -> Answers:
    try:
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BackendError('method="triton" needs the package triton: pip install "interp-toolkit[gpu]"') from error
    from interp.attention.triton.answers import answer_all

    return answer_all(call, questions)


METHODS: dict[str, AnswerAll] = {
    "fused": fused.answer_all,
    "naive": naive.answer_all,
    "flex": _flex,
    "triton": _triton,
}
SUMS = (Entropy, Distance, SumSquares, KeyMass, Received)
SOFTMAX_ALONE = ("fused", "flex", "triton")
"""Methods that know no other weights, and no bias of scores."""
_used: ContextVar[set[str] | None] = ContextVar("interp_attention_methods", default=None)


@contextmanager
def methods_used() -> Iterator[set[str]]:
    """Names of the methods that answer questions inside the block, filled as they do."""
    outer, inner = _used.get(), set[str]()
    token = _used.set(inner)
    try:
        yield inner
    finally:
        _used.reset(token)
        if outer is not None:
            outer |= inner


def measure(
    call: Call, questions: Mapping[str, Statistic], *, method: str = "auto"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output [batch, head, query, d_value] and the answer to each question.

    `method`: "fused" (O(n) memory, any device), "triton" (one pass of a kernel, on a GPU), "flex" (FlexAttention's
    log-sum-exp), "naive" (dense, the oracle, and the only one where attention is not all softmax, or scores have a
    bias: that is as large as the pattern itself). "auto" picks, see `choice`.

    Raises:
        TaskError: a question that does not fit the prompts.
        NotApplicable: an entropy where attention is not all softmax.
        BackendError: unknown method; NotFinite: queries, keys, values or output at real tokens are not, counted.
    """
    if call.windows:
        return by_window(call, questions, partial(measure, method=method))
    method = choice(call, questions) if method == "auto" else method
    if method not in METHODS:
        raise BackendError(f"unknown attention method {method!r}; {nearest(method, METHODS)}")
    if call.softmax_share != 1.0:
        _check_share(call, questions, method)
    if call.bias is not None and method in SOFTMAX_ALONE:
        raise BackendError('a bias is added to every attention score, which no fused kernel does; use method="auto"')
    call.mask.check()
    for question in questions.values():
        question.check(batch=call.mask.batch, n_query=call.mask.n_query, n_key=call.mask.n_key)
    used = _used.get()
    if used is not None and questions:
        used.add(method)
    output, answers = METHODS[method](call, questions)
    for name, tensor in (("queries", call.query), ("keys", call.key), ("values", call.value), ("output", output)):
        if not bool(torch.isfinite(tensor.sum((1, 3), dtype=torch.float32)).all()):  # cheap screen for the exact check
            _require_finite(name, tensor, call)
    return output, answers


def choice(call: Call, questions: Mapping[str, Statistic]) -> str:
    """The method that "auto" picks.

    "naive" where attention is not all softmax or scores have a bias. On a GPU "triton", where the package is there, the
    kernels can do the call, and a question is one of those that one pass over keys answers; for single pairs and rows
    "fused" does as well. Elsewhere "fused".
    """
    if call.softmax_share != 1.0 or call.bias is not None:
        return "naive"
    if not call.query.is_cuda or find_spec("triton") is None:
        return "fused"
    from interp.attention.triton.answers import refusal

    return "triton" if any(map(_is_sum, questions.values())) and refusal(call) is None else "fused"


def _is_sum(question: Statistic) -> bool:
    """Whether a question is a sum over all scores of a row or of a key."""
    return isinstance(question.of if isinstance(question, Mean) else question, SUMS)


def _check_share(call: Call, questions: Mapping[str, Statistic], method: str) -> None:
    """Refuse what weights that do not sum to one have no answer to, and kernels that know softmax alone."""
    weights = (
        "attention weights are the ReLU of scores"
        if call.relu
        else f"a constant {1 - call.share:g} is added to every attention weight"
    )
    if method in SOFTMAX_ALONE:
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
