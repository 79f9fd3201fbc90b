"""Every method on CUDA against the naive oracle on the same device. Needs torch, transformers and triton alone."""

import pytest
import torch

from interp.attention import (
    Call,
    CausalMask,
    Distance,
    Entropy,
    KeyMass,
    Offset,
    Received,
    Rows,
    SumSquares,
    TopKeys,
    measure,
)

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-3, torch.float16: 2e-3}


def window(size):
    return lambda batch, head, query, key: (key <= query) & (key > query - size)


def a_call(*, dtype, n, predicate, softcap, sinks, padded):
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(2, h, n, 64, device="cuda", generator=generator, dtype=torch.float32).to(dtype) for h in (8, 2, 2)
    )
    padding = torch.ones(2, n, dtype=torch.bool, device="cuda")
    if padded:
        padding[1, : n // 3] = False
    options = {} if predicate is None else {"predicate": predicate}
    mask = CausalMask(2, n, n, padding=padding, device="cuda", **options)
    slot = torch.linspace(-1, 1, 8, device="cuda").to(dtype) if sinks else None
    return Call(q, k, v, 64**-0.5, mask, softcap, slot)


@pytest.mark.parametrize("method", ["fused", "triton", "flex"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left-padded"])
@pytest.mark.parametrize(
    ("predicate", "softcap", "sinks"),
    [(None, None, False), (window(70), None, False), (None, 20.0, False), (None, None, True)],
    ids=["plain", "window", "softcap", "sinks"],
)
@pytest.mark.parametrize("n", [77, 515])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_agrees_with_naive_on_cuda(dtype, n, predicate, softcap, sinks, padded, method):
    call = a_call(dtype=dtype, n=n, predicate=predicate, softcap=softcap, sinks=sinks, padded=padded)
    rows = torch.tensor([[n - 1, 5, -1], [n - 1, n // 2, n // 3]], device="cuda")
    first = torch.zeros(2, n, dtype=torch.bool, device="cuda")
    first[0, 0] = first[1, n // 3] = True
    half = torch.rand(2, n, device="cuda") < 0.5
    questions = {
        "previous": Offset(1),
        "first": KeyMass(first),
        "half": KeyMass(half),
        "entropy": Entropy(),
        "received share": Received(torch.full((2, n), 1 / n, device="cuda")),
        "squares": SumSquares(),
        "rows": Rows(rows),
        "top": TopKeys(rows, k=1),
        "relative distance": Distance(),
    }
    _, ours = measure(call, questions, method=method)
    _, naive = measure(call, questions, method="naive")
    for name, expected in naive.items():
        scale = n if name == "relative distance" else 1
        close = {"atol": TOLERANCE[dtype], "rtol": 0, "equal_nan": True}
        torch.testing.assert_close(ours[name] / scale, expected / scale, **close, msg=lambda m, n=name: f"{n}: {m}")


def test_auto_takes_the_kernels_for_sums_over_scores():
    from interp.attention import methods_used

    call = a_call(dtype=torch.bfloat16, n=77, predicate=None, softcap=None, sinks=False, padded=False)
    with methods_used() as used:
        measure(call, {"entropy": Entropy()})
        measure(call, {"previous": Offset(1)})
    assert used == {"triton", "fused"}
