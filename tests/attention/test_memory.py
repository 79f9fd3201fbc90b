"""No n x n tensor is made, and memory grows with n."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    VARIANTS,
    make_call,
    padding,
)
from torch.utils._python_dispatch import TorchDispatchMode

from interp.attention import (
    ByDistance,
    Distance,
    Entropy,
    KeyMass,
    Mean,
    Offset,
    Pairs,
    Received,
    Rows,
    SumSquares,
    TopKeys,
    fused,
    measure,
)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside has produced."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                held = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, held)
        return out


def long_questions(n):
    i = torch.arange(1, n)
    indicator = torch.zeros(1, n, dtype=torch.bool)
    indicator[:, :3] = True
    half = (torch.arange(n) % 2)[None].float()
    rows = torch.arange(n - 8, n)[None]
    return {
        "offset": Offset(1),
        "pairs": Pairs(0 * i, i, i - 1),
        "few keys": KeyMass(indicator),
        "many keys": KeyMass(half),
        "distance": Distance(),
        "entropy": Entropy(),
        "squares": SumSquares(),
        "received": Received(),
        "by distance": ByDistance(),
        "rows": Rows(rows),
        "top": TopKeys(rows, k=2),
        "mean": Mean(Offset(3)),
    }


def largest(n, question, *, method, **variant):
    call = make_call(n, batch=1, heads=2, kv_heads=1, **variant)
    with Largest() as seen:
        measure(call, {"it": question}, method=method)
    return seen.elements


@pytest.mark.parametrize("variant", [*VARIANTS, "padded"])
@pytest.mark.parametrize("name", long_questions(16))
def test_no_square_tensor_is_made(name, variant):
    n = 3000
    options = VARIANTS.get(variant, {"real": padding(n, (n - 100,), "left")})
    assert largest(n, long_questions(n)[name], method="fused", **options) < max(n * n // 4, 2)


@pytest.mark.parametrize("name", long_questions(16))
def test_memory_is_linear(name):
    small, large = (largest(n, long_questions(n)[name], method="fused") for n in (3000, 6000))
    assert large <= 2.1 * small  # tiles begin at multiples of 256, so not exactly 2
    assert fused.PAIR_CHUNK < 3000**2


def test_the_measure_of_memory_sees_a_dense_pattern():
    assert largest(1000, Offset(1), method="naive") >= 1000**2
