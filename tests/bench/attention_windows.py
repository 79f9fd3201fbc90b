"""Time and memory of a window of first and last keys against full attention: `python tests/bench/attention_windows.py`.

One layer of 8 heads of 64 on one thread of a CPU, float32; largest tensor made, in elements, and peak memory of the
process beyond that before the call.
"""

from __future__ import annotations

import resource
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interp.attention import Call, CausalMask, Window, measure

LENGTHS = (1024, 4096, 16384, 32768)
HEADS, KV_HEADS, D_HEAD, SINKS, WIDTH = 8, 2, 64, 4, 512


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside has produced."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def call(n: int, window: Window | None) -> Call:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, D_HEAD, generator=generator) for h in (HEADS, KV_HEADS, KV_HEADS))
    plain = Call(q, k, v, D_HEAD**-0.5, CausalMask(1, n, n))
    every = torch.ones(1, HEADS, dtype=torch.bool)
    return plain if window is None else Call(q, k, v, D_HEAD**-0.5, CausalMask(1, n, n), windows=((window, every),))


def peak() -> float:
    """MiB that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """One line a length and kind."""
    torch.set_num_threads(1)
    kinds = {
        "window and sinks": Window(SINKS, WIDTH),
        "with the mean": Window(SINKS, WIDTH, compensate=True),
        "full": None,
    }
    for name, window in kinds.items():
        for n in LENGTHS:
            given, before = call(n, window), peak()
            with torch.no_grad(), Largest() as largest:
                measure(given, {})
            with torch.no_grad():
                start = time.perf_counter()
                measure(given, {})
                seconds = time.perf_counter() - start
            print(
                f"{name:18} {n:6} tokens  {seconds:7.3f} s  largest {largest.elements:12,}  +{peak() - before:.0f} MiB"
            )


if __name__ == "__main__":
    main()
