"""What edge attribution costs: all 32,491 edges of a GPT-2-small shape, ours and TransformerLens's.

python tests/bench/edge_attribution.py [--quick] [--cases edges memory] [--rounds 5] [--out FILE]

`edge_attribution`: random weights, 16 prompts of 18 tokens, gradients at the corrupted prompt as the peer takes them
(`direction="denoising"`); the peer's scores are summed over positions; `eap-ig` with five midpoints beside one
gradient; `first call` reads the weights of attention as well. `ratio_to_plain`: time over ours with one gradient, in
the same round. Seconds are CPU time of the process. `edge_memory`: peak resident memory above the loaded models, each
in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, peak_extra_mb, spread, take_turns, versions

EDGES, MEMORY = "edge_attribution", "edge_memory"
CASES = {"edges": EDGES, "memory": MEMORY}
PEER, OURS, FIRST, PATH = "transformer_lens", "ours", "ours first call", "ours five points"
PROMPTS, TOKENS = 16, 18
TARGETS = {"speed": 10.0, "agreement": 1e-5, "points": 5.5}


def prepared(name: str) -> Callable[[], object]:
    """A way to the scores [sender slot], its models loaded."""
    import attributing

    return {
        PEER: attributing.transformer_lens,
        OURS: attributing.ours,
        FIRST: attributing.first,
        PATH: attributing.points,
    }[name](PROMPTS, TOKENS)


def measure_edges(rounds: int, threads: int) -> tuple[dict[str, list[float]], float]:
    """Seconds per round, and the largest difference from the peer's scores over the largest score."""
    import torch

    torch.set_num_threads(threads)
    runs = {name: prepared(name) for name in (OURS, FIRST, PATH, PEER)}
    first: dict[str, object] = {}

    def after(name: str, turn: int, result: object) -> None:
        if turn == 0:
            first[name] = result

    seconds = take_turns(runs, rounds=rounds, after=after, clock="cpu")
    ours, peer = first[OURS], first[PEER]
    return seconds, float(abs(ours - peer).max() / abs(peer).max())  # type: ignore[operator]  # arrays of scores


def measure_memory(name: str, threads: int) -> float | None:
    """Peak of a second call above what the loaded model takes, in MB; in a fresh process."""
    import torch

    torch.set_num_threads(threads)
    run = prepared(name)
    if name in (OURS, PATH):
        run()  # so that ours holds the weights it has read, as in any later call
    return peak_extra_mb(run)


def run_edges(given: argparse.Namespace) -> list[Row]:
    """Time, print and judge edge scores."""
    seconds, difference = fresh(measure_edges, given.rounds, given.threads)
    ratio = {name: _against(name, OURS, seconds) for name in seconds}
    print(f"  peer / ours {ratio[PEER]:.2f}: {_met(ratio[PEER] >= TARGETS['speed'])} (>= {TARGETS['speed']:g})")
    print(f"  peer / ours, weights read anew {_against(PEER, FIRST, seconds):.2f}")
    print(f"  five points / one {ratio[PATH]:.2f}: {_met(ratio[PATH] <= TARGETS['points'])} (<= {TARGETS['points']:g})")
    print(f"  scores within {difference:.1e} of the largest: {_met(difference <= TARGETS['agreement'])}")
    diffs = {OURS: difference}
    return [
        Row(EDGES, name, TOKENS, *spread(each), ratio[name], None, diffs.get(name), len(each), *_about(given.threads))
        for name, each in seconds.items()
    ]


def run_memory(given: argparse.Namespace) -> list[Row]:
    """Peak memory of each, one process after another."""
    peaks = {name: fresh(measure_memory, name, given.threads) for name in (OURS, FIRST, PATH, PEER)}
    for name, peak in peaks.items():
        print(f"  {name}: {'not measured' if peak is None else f'{peak:.0f} MB'}")
    empty = (None, None, None, None)
    return [Row(MEMORY, name, TOKENS, *empty, peak, None, 1, *_about(given.threads)) for name, peak in peaks.items()]


def _about(threads: int) -> tuple[str, int, str, str]:
    return cpu(), threads, versions(), now()


def _against(name: str, other: str, seconds: dict[str, list[float]]) -> float:
    return spread([a / b for a, b in zip(seconds[name], seconds[other], strict=True)])[0]


def _met(true: bool) -> str:
    return "met" if true else "MISSED"


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add to the record after every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, no record unless --out is given")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    given.rounds = given.rounds or (1 if given.quick else 5)
    out = given.out or (None if given.quick else RESULTS / "circuits.csv")
    print(f"{cpu()}, {given.threads} threads; {versions()}")
    for name in given.cases:
        rows = {"edges": run_edges, "memory": run_memory}[name](given)
        for row in rows:
            seconds = "" if row.median_s is None else f"{row.median_s:8.3f} s {row.ratio_to_plain:7.3f}"
            print(f"{row.case:<17} {row.provider:<18} {seconds}")
        if out is not None:
            append(out, rows)


if __name__ == "__main__":
    main()
