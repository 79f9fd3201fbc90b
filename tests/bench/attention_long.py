"""Sink and distance statistics of long prompts on a CPU: four layers at 1k, 4k, 16k and 32k tokens.

python tests/bench/attention_long.py [--quick] [--sizes 1024 4096] [--rounds 5 3] [--threads 1] [--out FILE]

A Llama of 4 layers, 256 wide, 4 heads over 2 groups of keys, random weights, queries and keys sharpened, a vocabulary
of 1000: at these lengths attention is nearly all of the work. Every provider runs the whole forward pass, logits
included; `plain` is transformers' own with `sdpa`. Time is CPU time of the process, in turns, the ratio within each
round; memory is the highest resident memory of a pass above what was resident before it, the median over rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, peak_extra_mb, spread, versions

CASE = "attention_long"
SIZES = {1024: 9, 4096: 5, 16384: 2, 32768: 1}  # length -> rounds
WARM_UP = 256  # tokens of the pass before anything is measured
LAYERS, WIDTH, HEADS, GROUPS, VOCABULARY = 4, 256, 4, 2, 1000
PLAIN, OFFSETS, RECEIVED, ALL = "plain", "offsets and first token", "mass received", "all statistics"
BOUNDS = {OFFSETS: 1.1, ALL: 3.0}
DOUBLING = 2.2  # growth of memory over a doubling of length that still counts as linear
DISTANCES = (0, 1, 2, 4, 16, 64, 256)


def llama(attention: str = "sdpa"):
    """Four layers in float32, the same weights at every call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=max(SIZES),
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 8
            layer.self_attn.k_proj.weight *= 8
    return model


def questions(n: int) -> dict[str, dict]:
    """Statistics of each provider for a prompt of n tokens, thirds of the prompt read from its last tenth."""
    import torch

    from interp.attention import ByDistance, Distance, Entropy, KeyMass, Mean, Offset, Received, SumSquares

    position = torch.arange(n)[None]
    late = position >= n - n // 10
    few = {f"offset {d}": Mean(Offset(d)) for d in DISTANCES} | {"first token": Mean(KeyMass(position == 0))}
    received = {"received": Received()}
    thirds = {f"third {i}": Mean(KeyMass(position * 3 // n == i), late) for i in range(3)}
    rows = {"entropy": Entropy(), "distance": Distance(), "sum of squares": SumSquares(), "by distance": ByDistance()}
    return {PLAIN: {}, OFFSETS: few, RECEIVED: received, ALL: few | received | thirds | rows}


def passes(n: int) -> dict[str, Callable[[], object]]:
    """One run per provider."""
    import torch

    from interp.attention import Recorder, intercept

    tokens = torch.randint(VOCABULARY, (1, n), generator=torch.Generator().manual_seed(0))
    model = llama()

    def plain() -> None:
        with torch.no_grad():
            model(tokens, use_cache=False)

    def ours(asked: dict) -> Callable[[], object]:
        def run() -> object:
            recorder = Recorder(asked)
            with torch.no_grad(), intercept(model, recorder):
                model(tokens, use_cache=False)
            return recorder.answers

        return run

    return {name: ours(asked) if asked else plain for name, asked in questions(n).items()}


def measured(n: int, rounds: int, threads: int) -> dict[str, list[tuple[float, float]]]:
    """(CPU seconds, extra peak MB) per round, by provider; meant for a fresh process. Warmed up on a short prompt."""
    import torch

    torch.set_num_threads(threads)
    for run in passes(WARM_UP).values():
        run()
    runs = passes(n)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds):
        names = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for name in names:
            seconds: list[float] = []
            memory = peak_extra_mb(lambda run=runs[name], to=seconds: to.append(timed(run)))
            found[name].append((seconds[0], memory or float("nan")))
    return found


def timed(run: Callable[[], object]) -> float:
    """CPU seconds of this process in a run."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def bench_size(n: int, rounds: int, threads: int, stamp: str) -> list[Row]:
    """Rows of every provider at one length."""
    turns = fresh(measured, n, rounds, threads)
    plain, rows = [seconds for seconds, _ in turns[PLAIN]], []
    for name, each in turns.items():
        seconds, memory = zip(*each, strict=True)
        ratio = spread([a / b for a, b in zip(seconds, plain, strict=True)])[0]
        about = (None, rounds, cpu(), threads, versions(), stamp)
        rows.append(Row(CASE, name, n, *spread(list(seconds)), ratio, spread(list(memory))[0], *about))
        print(
            f"{n:>6} {name:<24} {rows[-1].median_s:>9.3f} s {ratio:>6.2f} {rows[-1].peak_extra_mb:>8,.0f} MB",
            flush=True,
        )
    return rows


def judge(rows: Sequence[Row]) -> list[str]:
    """Which targets are met, one line each."""
    at = {(r.provider, r.size): r for r in rows}
    lines = [
        f"{r.provider} at {r.size}: {r.ratio_to_plain:.2f} of plain, {_state(r.ratio_to_plain, BOUNDS[r.provider])}"
        for r in rows
        if r.provider in BOUNDS and r.ratio_to_plain is not None
    ]
    pairs = [(at.get((ALL, n // 2)), at.get((ALL, n))) for n in SIZES]
    growths = [(b.size, b.peak_extra_mb / a.peak_extra_mb) for a, b in pairs if a and b and a.peak_extra_mb]
    return lines + [f"memory over a doubling to {n}: {g:.2f}, {_state(g, DOUBLING)}" for n, g in growths]


def _state(value: float, bound: float) -> str:
    return f"{'met' if value <= bound else 'MISSED'} (<= {bound:g})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add to the record after every length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="1024 tokens, three rounds, no record unless --out is given"
    )
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, nargs="+", help="rounds at each length, or one number for all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given, stamp, rows = parser.parse_args(argv), now(), []
    sizes = given.sizes or ([1024] if given.quick else list(SIZES))
    rounds = given.rounds or [3 if given.quick else SIZES.get(n, 3) for n in sizes]
    rounds = rounds * len(sizes) if len(rounds) == 1 else rounds
    out = given.out or (None if given.quick else RESULTS / f"{CASE}.csv")
    for n, r in zip(sizes, rounds, strict=True):
        new = bench_size(n, r, given.threads, stamp)
        rows += new
        if out is not None:
            append(out, new)
    print("\n".join(judge(rows)))


if __name__ == "__main__":
    main()
