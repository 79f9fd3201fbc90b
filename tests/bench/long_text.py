"""`interp detect --text` of one long text on a CPU: a GPT-2-small shape at 4k, 8k and 16k tokens, one process each.

python tests/bench/long_text.py [--quick] [--sizes 4096 16384] [--layers 2] [--out FILE]

A GPT-2 of 12 layers, 768 wide, 12 heads, random weights, 16,384 positions; one prompt of random tokens; every analysis
of heads that takes prompts of one's own and needs no spans. `detect` is the command's own call, chunks by its own rule;
`statistics` is one `Model.attention` of every statistic, run whole and in chunks. Seconds are CPU time of the process;
memory is the highest resident memory above what was resident before, weights excluded. `dense patterns` are
computed: those of all heads in float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, peak_extra_mb, versions

CASE = "long_text"
SIZES = (4096, 8192, 16384)
LAYERS, WIDTH, HEADS, VOCABULARY = 12, 768, 12, 50257
DETECT, WHOLE, CHUNKED = "detect", "statistics, whole", "statistics, in chunks"


def model(n: int, layers: int):
    """The model with room for n tokens."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import interp

    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=WIDTH, n_head=HEADS, vocab_size=VOCABULARY, n_positions=n)
    return interp.load(GPT2LMHeadModel(config).eval())


def measured(n: int, what: str, layers: int, analyses: Sequence[str]) -> tuple[float, float, list[str]]:
    """(CPU seconds, extra peak MB, analyses run) of one call, in a fresh process."""
    import torch

    from interp.attention import ByDistance, Distance, Entropy, Mean, Offset, Received
    from interp.measurement.registry import detect

    torch.set_num_threads(1)
    own, names = model(n, layers), []
    tokens = torch.randint(VOCABULARY, (1, n), generator=torch.Generator().manual_seed(0))
    asked = {"entropy": Mean(Entropy()), "distance": Mean(Distance()), "received": Received(), "last": Mean(Offset(1))}
    asked["by distance"] = ByDistance()
    own.attention(tokens[:, :256], asked)

    def run() -> None:
        if what == DETECT:
            names.extend(detect(own, list(analyses) or None, prompts=tokens).table["analysis"].unique())
        else:
            own.attention(tokens, asked, chunk=n if what == WHOLE else None)

    begin = time.process_time()
    memory = peak_extra_mb(run)
    return time.process_time() - begin, memory or float("nan"), names


def bench(n: int, whats: Sequence[str], layers: int, analyses: Sequence[str], stamp: str) -> list[Row]:
    """Rows of one length."""
    rows = []
    for what in whats:
        seconds, memory, names = fresh(measured, n, what, layers, analyses)
        rows.append(
            Row(
                CASE,
                f"{what}, {layers} layers",
                n,
                seconds,
                None,
                None,
                None,
                memory,
                None,
                1,
                cpu(),
                1,
                versions(),
                stamp,
            )
        )
        print(f"{n:>6} {what:<22} {seconds:>8.1f} CPU s {memory:>8,.0f} MB {' '.join(names)}", flush=True)
    for count in (1, layers):
        name, size = f"dense patterns, {count} layers", 4e-6 * count * HEADS * n * n
        rows.append(Row(CASE, name, n, None, None, None, None, size, None, 0, "computed", 0, "", stamp))
        print(f"{n:>6} {name:<34} {size:>12,.0f} MB, computed", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add to the record after every length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1024 tokens, no record unless --out is given")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--only", choices=(DETECT, WHOLE, CHUNKED), nargs="+", default=(DETECT, WHOLE, CHUNKED))
    parser.add_argument("--analyses", nargs="+", default=(), help="those that detect runs; else all that can")
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer make it quicker")
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given, stamp = parser.parse_args(argv), now()
    out = given.out or (None if given.quick else RESULTS / f"{CASE}.csv")
    for n in given.sizes or ([1024] if given.quick else SIZES):
        rows = bench(n, given.only, given.layers, given.analyses, stamp)
        if out is not None:
            append(out, rows)


if __name__ == "__main__":
    main()
