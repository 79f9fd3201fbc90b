"""Attention with its statistics on a GPU: correctness, then time and memory, in one command of under four minutes.

python tests/bench/gpu_attention.py [--quick] [--out FILE]     (needs CUDA, torch, transformers, triton, numpy)

A Llama of the shape of 8B (`LAYERS` of its 32 layers, 4096 wide, 32 heads of 128 over 8 groups, bfloat16, random
weights) reads one prompt of 4k, 32k and 128k tokens. `plain` is transformers' own with PyTorch's flash attention
(`sdpa`), the whole forward pass without logits; every provider is timed in turns with it, by CUDA events, the ratio
within each round; memory is the allocator's peak above the weights. Rows go to results/gpu_attention.csv with the
GPU's name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from harness import RESULTS, Row, append, now, spread, versions

CASE = "gpu_attention"
LAYERS = 4
SIZES = {4096: 7, 32768: 3, 131072: 1}  # length -> rounds
PLAIN, SINGLE, ALL, DENSE = "plain", "single-pass statistics", "with mass received", "dense patterns"
BOUNDS = {SINGLE: 1.15, ALL: 1.3}
BOUND_AT = 32768
DENSE_UP_TO = 4096
TOLERANCE = 2e-3
PACKAGES = ("torch", "transformers", "triton")


def llama():
    """The model on the GPU, the same weights at every call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=max(SIZES),
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()


def questions(n: int) -> dict[str, dict]:
    """Statistics of each provider for a prompt of n tokens."""
    import torch

    from interp.attention import Distance, Entropy, KeyMass, Mean, Offset, Received, SumSquares

    position = torch.arange(n, device="cuda")[None]
    thirds = {f"third {i}": Mean(KeyMass(position * 3 // n == i)) for i in range(3)}
    single = {
        **{f"offset {d}": Mean(Offset(d)) for d in (1, 2, 16)},
        "first token": Mean(KeyMass(position == 0)),
        "entropy": Mean(Entropy()),
        "distance": Mean(Distance()),
        "sum of squares": Mean(SumSquares()),
        **thirds,
    }
    return {PLAIN: {}, SINGLE: single, ALL: {**single, "received": Received()}}


def passes(model, n: int) -> dict[str, Callable[[], object]]:
    """One run per provider: the decoder's layers, no logits."""
    import torch

    from interp.attention import Recorder, intercept

    tokens = torch.randint(1000, (1, n), generator=torch.Generator().manual_seed(0)).cuda()

    def plain() -> None:
        with torch.no_grad():
            model.model(tokens, use_cache=False)

    def measured(asked: dict, method: str) -> Callable[[], object]:
        def run() -> dict:
            recorder = Recorder(asked, method=method)
            with torch.no_grad(), intercept(model, recorder):
                model.model(tokens, use_cache=False)
            return recorder.answers

        return run

    asked = questions(n)
    runs: dict[str, Callable[[], object]] = {PLAIN: plain}
    runs |= {name: measured(asked[name], "auto") for name in (SINGLE, ALL)}
    if n <= DENSE_UP_TO:
        runs[DENSE] = measured(asked[ALL], "naive")
    return runs


def seconds(run: Callable[[], object]) -> float:
    """Time of a run on the GPU."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_mb(run: Callable[[], object]) -> float:
    """Highest memory of a run above what was allocated before."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def largest_difference(model, n: int) -> float:
    """Between the statistics of the kernels on bfloat16 and the dense ones in float32 of the same queries and keys."""
    import torch

    from interp.attention import Recorder, intercept, measure

    worst, asked = 0.0, questions(n)[ALL]

    def compare(layer: int, call: object) -> None:
        nonlocal worst
        for name, value in measure(call, asked, method="triton")[1].items():
            dense = measure(call, {name: asked[name]}, method="naive")[1][name]
            size = max(1.0, float(dense.nan_to_num(0).abs().max()))
            worst = max(worst, float((value - dense).abs().nan_to_num(0).max()) / size)

    with torch.no_grad(), intercept(model, Recorder(watch=compare)):
        model.model(torch.randint(1000, (1, n)).cuda(), use_cache=False)
    return worst


def main(argv: list[str] | None = None) -> int:
    """Exit status: 1 where a bound is not met."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="4k tokens alone, and no record unless --out is given")
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    options = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA device\n")
        return 2
    device, model, missed, rows = torch.cuda.get_device_name(), llama(), [], []
    difference = largest_difference(model, 2048)
    sys.stdout.write(f"{device}: largest difference from dense float32 {difference:.1e} (<= {TOLERANCE})\n")
    missed += ["difference"] * (difference > TOLERANCE)
    for n, rounds in ({4096: 3} if options.quick else SIZES).items():
        runs = passes(model, n)
        for run in runs.values():
            run()  # kernels are compiled
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(seconds(run))
        for name, run in runs.items():
            ratios = [ours / plain for ours, plain in zip(times[name], times[PLAIN], strict=True)]
            median, low, high = spread(times[name])
            ratio, _, _ = spread(ratios)
            peak = peak_mb(run)
            sys.stdout.write(f"{n:7,} {name:24} {median:8.3f} s  {ratio:6.2f}  {peak:8,.0f} MB\n")
            exact = difference if name != PLAIN else None
            rows.append(
                Row(CASE, name, n, median, low, high, ratio, peak, exact, rounds, device, 1, versions(PACKAGES), now())
            )
            missed += [f"{name} at {n}"] * (n == BOUND_AT and ratio > BOUNDS.get(name, float("inf")))
    if options.out or not options.quick:
        append(options.out or RESULTS / f"{CASE}.csv", rows)
    sys.stdout.write(f"not met: {', '.join(missed)}\n" if missed else "all bounds met\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
