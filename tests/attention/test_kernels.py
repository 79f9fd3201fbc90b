"""Kernels of Triton, interpreted on a CPU, and FlexAttention, against the dense pattern in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import questions, tiny
from torch.testing import assert_close

import interp
from interp.attention import (
    Call,
    CausalMask,
    Distance,
    Entropy,
    KeyMass,
    Mean,
    Offset,
    Received,
    Rows,
    SumSquares,
    TopKeys,
    Window,
    WindowMask,
    measure,
    methods_used,
    naive,
)
from interp.attention.masks import ApartMask, causal, everything
from interp.batch import Batch
from interp.errors import BackendError

triton = pytest.importorskip("triton", reason="Triton is for Linux")
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here: tests/gpu")
pytestmark = [
    interpreted,
    pytest.mark.filterwarnings("ignore:.*encountered in (exp|divide|subtract):RuntimeWarning"),  # of blocks' far ends
]
FEW = ("offset 1", "pairs", "first token", "entropy", "received", "by distance", "mean of entropy")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-3}


def windowed(size):
    return lambda batch, head, query, key: (key <= query) & (key > query - size)


def chunked(size):
    return lambda batch, head, query, key: (key <= query) & (key // size == query // size)


def a_call(n, *, group=1, predicate=causal, cap=None, slot=False, side=None, window=None, offset=0, width=16, **more):
    """Two prompts, the second padded on a side."""
    generator = torch.Generator().manual_seed(n)
    heads, n_query = max(4, 2 * group), n - offset
    query, key, value = (
        torch.randn(2, h, m, d, generator=generator).to(more.get("dtype", torch.float32))
        for h, m, d in (
            (heads, n_query, width),
            (heads // group, n, width),
            (heads // group, n, more.get("v_width", width)),
        )
    )
    padding = torch.ones(2, n, dtype=torch.bool)
    if side is not None:
        padding[1, slice(0, n // 3) if side == "left" else slice(n - n // 3, n)] = False
    mask = CausalMask(2, n_query, n, predicate=predicate, padding=padding, offset=offset)
    mask = mask if window is None else WindowMask(mask, window)
    return Call(query, key, value, width**-0.5, mask, cap, torch.linspace(-1, 1, heads) if slot else None)


def every_question(call):
    n_query, n_key = call.mask.n_query, call.mask.n_key
    generator = torch.Generator().manual_seed(1)
    keys = torch.rand(2, n_key, generator=generator)
    rows = torch.tensor([[n_query - 1, n_query // 2, -1]] * 2)
    return {
        "offset 0": Offset(0),
        "offset 7": Offset(7),
        "mean of offset 1": Mean(Offset(1)),
        "set": KeyMass(keys < 0.3),
        "read-out": KeyMass(keys),
        "entropy": Entropy(),
        "distance": Distance(),
        "squares": SumSquares(),
        "received": Received(torch.rand(2, n_query, generator=generator)),
        "best": TopKeys(rows),
        "top 3": TopKeys(rows, k=3),
        "rows": Rows(rows),
    }


def assert_dense(call, method, monkeypatch):
    """Every answer is that of the dense pattern in float64, however room was left by others."""
    asked, tolerance = every_question(call), TOLERANCE[call.query.dtype]
    expected, truth = naive.answer_all(call.to(torch.float64), asked)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", dirty(torch.empty))
        output, answers = measure(call, asked, method=method)
    real = call.mask.real()[:, None, :, None]
    assert_close(output.double() * real, expected * real, atol=4 * tolerance, rtol=1e-2)  # of the inputs' own spacing
    for name, value in truth.items():
        size = max(1.0, float(value.nan_to_num(0).abs().max())) if name in ("distance", "received") else 1.0
        close = {"atol": tolerance, "rtol": 0, "equal_nan": True}
        assert_close(answers[name].double() / size, value / size, **close, msg=lambda text, n=name: f"{n}: {text}")


def dirty(empty):
    """torch.empty whose memory is NaN."""

    def filled(*size, **options):
        room = empty(*size, **options)
        return room.fill_(torch.nan) if room.is_floating_point() else room.fill_(-7)

    return filled


CASES = {
    "one token": {"n": 1},
    "causal": {"n": 15, "group": 4, "side": "left"},
    "a block": {"n": 16, "side": "right", "slot": True},
    "beyond a block": {"n": 70, "group": 4},
    "window": {"n": 70, "group": 4, "predicate": windowed(9), "side": "left"},
    "window and slot": {"n": 63, "predicate": windowed(17), "slot": True, "side": "right"},
    "chunks": {"n": 50, "predicate": chunked(20), "group": 8},
    "soft-cap": {"n": 63, "cap": 5.0, "side": "left", "slot": True},
    "both ways": {"n": 40, "predicate": everything, "side": "right", "group": 4},
    "sinks and width": {"n": 130, "window": Window(3, 20), "side": "left"},
    "after a cache": {"n": 40, "offset": 33},
    "widths": {"n": 20, "width": 40, "v_width": 24},
    "bfloat16": {"n": 40, "width": 64, "dtype": torch.bfloat16, "slot": True, "side": "left", "group": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_the_dense_pattern(case, monkeypatch):
    assert_dense(a_call(**CASES[case]), "triton", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize(
    ("predicate", "cap", "slot"),
    [(causal, None, False), (windowed(17), None, True), (causal, 5.0, False), (everything, None, True)],
    ids=["causal", "window", "soft-cap", "both ways"],
)
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("n", [1, 15, 16, 63, 128, 500])
def test_kernels_agree_over_a_grid(n, group, predicate, cap, slot, side, dtype, monkeypatch):
    call = a_call(n, group=group, predicate=predicate, cap=cap, slot=slot, side=side, dtype=dtype)
    assert_dense(call, "triton", monkeypatch)


@pytest.mark.parametrize("case", ["causal", "window and slot", "soft-cap", "both ways", "sinks and width"])
def test_flex_agrees_with_the_dense_pattern(case, monkeypatch):
    assert_dense(a_call(**CASES[case]), "flex", monkeypatch)


@pytest.mark.parametrize("method", ["triton", "flex"])
@pytest.mark.parametrize("name", ["gpt_oss"])
def test_a_model_gives_the_same_answers(name, method):
    model, batch = tiny(name), Batch.of(torch.arange(9)[None])
    asked = {name: question for name, question in questions(batch).items() if name in FEW}
    with methods_used() as used:
        ours = model.attention(batch, asked, method=method)
    dense = model.attention(batch, asked, method="naive")
    assert used == {method}
    for question in asked:
        assert_close(ours[question], dense[question], atol=1e-4, rtol=1e-5, equal_nan=True)


@pytest.mark.slow
def test_the_shipped_models_head_table_is_the_same_by_every_method():
    model = interp.load("zoo:default")
    ids = torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    asked = {"previous": Mean(Offset(1)), "entropy": Mean(Entropy()), "received": Received(), "far": Mean(Distance())}
    tables = {m: model.attention(ids, asked, method=m) for m in ("naive", "fused", "flex", "triton")}
    for method, table in tables.items():
        for name in asked:
            assert_close(table[name], tables["naive"][name], atol=2e-5, rtol=1e-5, msg=f"{method}: {name}")


def test_the_compiler_knows_the_operators_shapes():
    from interp.attention.triton.answers import _one_pass, _Plan
    from interp.attention.triton.op import attend, received
    from interp.attention.triton.runs import visible_runs

    call = a_call(20, side="left")
    runs = visible_runs(call.mask)
    output, lse, *_ = _one_pass(call, runs, _Plan((1,), (KeyMass(torch.ones(2, 20)),), True, True, True, True))
    none = torch.zeros(2, 0, 20)
    at = torch.tensor([1], dtype=torch.int32)
    seen = (runs.low, runs.high, runs.start)
    flags = (True, False, True, True)
    words = (call.query, call.key, call.value, *seen, None, none, at, call.scale, None, 0, 0, *flags)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(attend, words, test_utils=tests)
    torch.library.opcheck(
        received, (call.query, call.key, *seen, lse, torch.ones(2, 20), 0.25, None, 0, 0), test_utils=tests
    )
    assert output.shape == call.value.shape


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (a_call(8).to(torch.float64), "float64"),
        (a_call(8, width=272), "at most 256"),
        (a_call(8, window=Window(1, 2, compensate=True)), "the mean of what it drops"),
        (a_call(8, predicate=lambda b, h, q, k: (k < 5) | (k <= q)), "not all of them alike"),
    ],
)
def test_what_kernels_cannot_do_is_refused_with_the_reason(call, why):
    with pytest.raises(BackendError, match=why):
        measure(call, {"entropy": Entropy()}, method="triton")


def test_a_gradient_is_refused():
    call = a_call(8)
    call.query.requires_grad_()
    with pytest.raises(BackendError, match="gradient"):
        measure(call, {}, method="triton")


def test_without_a_gpu_kernels_say_how_to_be_interpreted(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(BackendError, match="TRITON_INTERPRET=1"):
        measure(a_call(8), {"entropy": Entropy()}, method="triton")


def test_on_a_cpu_auto_takes_tiles():
    with methods_used() as used:
        measure(a_call(8), {"entropy": Entropy()})
    assert used == {"fused"}


@pytest.mark.slow
def test_kernels_are_compiled_without_spilling():
    """For an H200, which need not be there: tests/gpu/compiled.py fails where one of up to 128 wide spills."""
    path = Path(__file__).parents[1] / "gpu" / "compiled.py"
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run(
        [sys.executable, str(path), "--least"], env=clean, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]


def test_runs_of_a_source_with_padding_are_its_real_keys():
    from interp.attention.triton.runs import visible_runs

    padding = torch.tensor([[True, True, True], [True, True, False]])
    mask = ApartMask(CausalMask(2, 2, 3, predicate=everything, padding=padding))
    assert visible_runs(mask).high.tolist() == [[3, 3], [2, 2]]
