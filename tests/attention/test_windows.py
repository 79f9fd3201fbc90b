"""Windows of first and last keys: dense attention with the same keys left out, in linear memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import VARIANTS, make_call, padding
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from interp.attention import Distance, Entropy, KeyMass, Offset, Pairs, Received, Window, WindowMask, measure
from interp.attention.naive import dense_pattern

N = 300
"""Two tiles of queries."""
ONE_WAY = [name for name in VARIANTS if not name.startswith("both")]


def kept(n, window, start=0):
    i, j = torch.arange(n)[:, None], torch.arange(n)
    return (j <= i) & (j >= start) & ((i - j < window.width) | (j < start + window.sinks))


def limited(call, window):
    return replace(call, windows=((window, torch.ones(call.query.shape[:2], dtype=torch.bool)),))


@pytest.mark.parametrize(
    ("variant", "window"), [*((v, Window(3, 40)) for v in ONE_WAY), ("plain", Window(0, 1)), ("sinks", Window(150, 7))]
)
def test_output_and_statistics_are_those_of_the_keys_that_are_left(variant, window):
    call = make_call(N, batch=1, **VARIANTS[variant])
    asked = {
        "offset": Offset(2),
        "entropy": Entropy(),
        "distance": Distance(),
        "received": Received(),
        "first": KeyMass(torch.arange(N)[None] < 2),
        "pairs": Pairs(torch.zeros(2, dtype=torch.long), torch.tensor([200, 280]), torch.tensor([1, 279])),
    }
    fast, answers = measure(limited(call, window), asked, method="fused")
    dense, oracle = measure(limited(call, window), asked, method="naive")
    assert_close(fast, dense, rtol=0, atol=1e-5)
    for name in asked:
        assert_close(answers[name], oracle[name], rtol=1e-4, atol=1e-4, equal_nan=True, msg=name)
    pattern = dense_pattern(replace(call, mask=WindowMask(call.mask, window)))[0]
    whole = dense_pattern(call)[0].masked_fill(~kept(N, window), 0.0)
    if call.sinks is None:
        assert_close(pattern, whole / whole.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert not pattern.masked_select(~kept(N, window)).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_keys_are_those_of_the_prompt(side):
    window, real = Window(2, 5), padding(N, (N, 150), side)
    padded = limited(make_call(N, real=real), window)
    output = measure(padded, {})[0]
    for row, start in enumerate((0, N - 150 if side == "left" else 0)):
        stop = start + int(real[row].sum())
        whole = dense_pattern(replace(padded, windows=()))[0][row, :, start:stop, start:stop]
        left = whole.masked_fill(~kept(stop - start, window), 0.0)
        z = (left / left.sum(-1, keepdim=True)) @ padded.shared(padded.value)[row, :, start:stop]
        assert_close(output[row, :, start:stop], z, rtol=0, atol=1e-5)


def test_a_prompt_that_fits_is_attended_to_as_without_a_window():
    call = make_call(50)
    assert torch.equal(measure(limited(call, Window(4, 46)), {})[0], measure(call, {})[0])
    assert not torch.equal(measure(limited(call, Window(4, 45)), {})[0], measure(call, {})[0])


def test_each_head_of_each_prompt_has_its_own():
    call, windows = make_call(300), (Window(1, 9), Window(0, 30))
    hits = [torch.zeros(2, 4, dtype=torch.bool) for _ in windows]
    hits[0][0, 1], hits[1][0, 2], hits[1][1, 1] = True, True, True
    asked = {"received": Received(), "offset": Offset(1)}
    output, answers = measure(replace(call, windows=tuple(zip(windows, hits, strict=True))), asked)
    plain = measure(call, asked)
    alone = [measure(limited(call, window), asked) for window in windows]
    for row in range(2):
        for head in range(4):
            own = next((a for a, h in zip(alone, hits, strict=True) if h[row, head]), plain)
            assert_close(output[row, head], own[0][row, head], rtol=0, atol=1e-6)
            for name in asked:
                assert_close(answers[name][row, head], own[1][name][row, head], rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("variant", ["plain", "sinks"])
def test_equal_keys_that_are_dropped_and_come_back_as_their_mean_change_nothing(variant):
    """P04: if all dropped keys are equal, the compensated output is that of full attention; and it is not without."""
    call = make_call(N, **VARIANTS[variant], dtype=torch.float64)
    key, value = call.key.clone(), call.value.clone()
    key[:, :, 3:], value[:, :, 3:] = key[:, :, 3:4], value[:, :, 3:4]
    call = replace(call, key=key, value=value)
    full = measure(call, {})[0]
    assert_close(measure(limited(call, Window(3, 20, compensate=True)), {})[0], full, rtol=0, atol=1e-6)
    assert (measure(limited(call, Window(3, 20)), {})[0] - full).abs().max() > 0.1


def test_dropped_keys_have_the_mean_of_their_scores():
    call, window = make_call(N, real=padding(N, (N, 200), "left")), Window(3, 20, compensate=True)
    output = measure(limited(call, window), {})[0]
    for row, start in ((0, 0), (1, N - 200)):
        score = call.scale * call.query[row] @ call.shared(call.key)[row].mT
        causal = torch.ones(N, N).tril().bool() & (torch.arange(N) >= start)
        dropped = causal & ~kept(N, window, start)
        mean = score.masked_fill(~dropped, 0.0).sum(-1, keepdim=True) / dropped.sum(-1, keepdim=True).clamp(min=1)
        p = torch.where(dropped, mean, score).masked_fill(~causal, -torch.inf)[:, start:].softmax(-1)
        assert_close(output[row, :, start:], p @ call.shared(call.value)[row], rtol=0, atol=1e-5)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside has produced."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(x.numel() for x in tensors)])
        return out


@pytest.mark.slow
@pytest.mark.parametrize("compensate", [False, True])
def test_sixteen_thousand_tokens_in_linear_memory(compensate):
    """The largest tensor grows with n, not with n^2: 2k, 16k tokens, and what a pattern would take."""

    sizes = {}
    for n in (2048, 16384):
        call = limited(make_call(n, batch=1, heads=2, kv_heads=1), Window(4, 512, compensate))
        with Largest() as largest, torch.no_grad():
            measure(call, {"received": Received(), "entropy": Entropy()} if not compensate else {})
        sizes[n] = largest.elements
    assert sizes[16384] <= 9 * sizes[2048] < 16384**2 / 8
