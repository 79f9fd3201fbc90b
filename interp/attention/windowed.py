"""Calls whose heads have windows: cut by window, each part with a mask of its own, and put together again.

What a window drops may come back as one key and one value, their means: `with_dropped`. All of it in O(n) memory, and
O(n (sinks + width)) time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from interp.attention.call import Call
from interp.attention.masks import BLOCK
from interp.attention.statistics import Statistic
from interp.attention.windows import WindowMask
from interp.shapes import Bool, Float, Int

Measured = tuple[Tensor, dict[str, Tensor]]
Measure = Callable[[Call, Mapping[str, Statistic]], Measured]


def by_window(call: Call, questions: Mapping[str, Statistic], measure: Measure) -> Measured:
    """Output and answers of a call whose heads have windows: those of one window together, each head's put in place."""
    plain = torch.ones(call.query.shape[:2], dtype=torch.bool, device=call.query.device)
    for _, hits in call.windows:
        plain = plain & ~hits
    result: Measured | None = None
    for window, hits in ((None, plain), *call.windows):
        heads = hits.any(0).nonzero()[:, 0]
        if not len(heads):
            continue
        part = of_heads(call, heads)
        if window is not None:
            part = replace(part, mask=WindowMask(call.mask, window))
        result = _put(result, measure(part, questions), heads, hits)
    assert result is not None  # every head has a window or none
    return result


def of_heads(call: Call, heads: Int[Tensor, " chosen"]) -> Call:
    """A call of some of its heads, without windows; keys are copied where a group is not whole."""
    if len(heads) == call.query.shape[1]:
        return replace(call, windows=())
    groups = heads // call.group
    bias = call.bias if call.bias is None or call.bias.shape[1] == 1 else call.bias[:, heads]
    return replace(
        call,
        query=call.query[:, heads],
        key=call.key[:, groups],
        value=call.value[:, groups],
        sinks=None if call.sinks is None else call.sinks[heads],
        bias=bias,
        windows=(),
    )


def _put(result: Measured | None, part: Measured, heads: Tensor, hits: Bool[Tensor, "batch head"]) -> Measured:
    """What some heads gave, [batch chosen ...], in the place of those of them that are meant."""
    here, (output, answers) = hits[:, heads], part
    before = (None, dict.fromkeys(answers)) if result is None else result
    joined = {name: _one(before[1][name], x, heads, here, hits.shape[1]) for name, x in answers.items()}
    return _one(before[0], output, heads, here, hits.shape[1]), joined


def _one(old: Tensor | None, new: Tensor, heads: Tensor, here: Tensor, n_heads: int) -> Tensor:
    if old is None and len(heads) == n_heads:
        return new
    old = new.new_zeros(len(new), n_heads, *new.shape[2:]) if old is None else old
    where = here.view(*here.shape, *(1,) * (new.ndim - 2))
    return old.index_copy(1, heads, torch.where(where, new, old[:, heads]))


def with_dropped(
    call: Call,
    value: Float[Tensor, "batch kv_head key d_value"],
    output: Float[Tensor, "batch head query d_value"],
    lse: Float[Tensor, "batch head query"],
) -> tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]:
    """Output and log-sum-exp of a window with one more key: the mean of those dropped, counted as often as they are.

    s = scale * q_i . mean k_j + log n_i and v = mean v_j over the n_i keys that query i does not see:
    L' = logaddexp(L, s), z' = z exp(L - L') + v exp(s - L'). Means come of running sums, so that this is O(n).
    """
    mask = call.mask
    assert isinstance(mask, WindowMask)
    output, lse = output.clone(), lse.clone()
    for segment in mask.whole.segments:
        first = segment.start + mask.window.sinks
        span = slice(first, segment.stop)
        if first + mask.window.width >= segment.stop:
            continue
        keys, values = (x[segment.rows, :, span].double().cumsum(2) for x in (call.key, value))
        for a in range(first + mask.window.width, segment.stop, BLOCK):
            tile = slice(a, min(a + BLOCK, segment.stop))
            count = torch.arange(tile.start, tile.stop, device=keys.device) - mask.window.width + 1 - first
            mean_key, mean_value = (
                (x[:, :, count - 1] / count[:, None]).repeat_interleave(call.group, 1) for x in (keys, values)
            )
            query, old = call.query[segment.rows, :, tile].double(), lse[segment.rows, :, tile].double()
            score = call.scale * (query * mean_key).sum(-1) + count.log()
            new = torch.logaddexp(old, score)
            z = output[segment.rows, :, tile].double() * (old - new).exp()[..., None]
            output[segment.rows, :, tile] = (z + mean_value * (score - new).exp()[..., None]).to(output.dtype)
            lse[segment.rows, :, tile] = new.to(lse.dtype)
    return output, lse
