"""Head statistics of a whole GPT-2-small-shaped model on a CPU: ours against the plain pass, eager and the bridge.

python tests/bench/attention_cpu.py [--quick] [--sizes 512 2048 4096] [--rounds 5 3 3] [--out FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, peak_extra_mb, spread, take_turns, versions
from verdict import CASE, GROWTH, growth, ratios, targets

SIZES = {512: 5, 2048: 3, 4096: 3}  # length -> rounds
GROWTH_SIZES = (512, 1024, 2048, 3072, 4096)
NAMES = ("plain", "ours", "ours+logits", "ours+entropy", "output_attentions", "transformer_lens")
REFERENCE = "output_attentions"  # what everybody's scores are compared with: the patterns themselves
TOLERANCE = 1e-4
WARM_UP = 32  # tokens of the pass before memory is measured, so that what is allocated once does not count


def measure_time(names: Sequence[str], size: int, rounds: int, threads: int) -> tuple[dict, dict]:
    """Seconds per round and largest difference from the reference, by provider; meant for a fresh process."""
    import torch
    from providers import PROVIDERS, repeated_tokens

    torch.set_num_threads(threads)
    tokens = repeated_tokens(size)
    prepared = {name: PROVIDERS[name]() for name in names}
    scores: dict[str, torch.Tensor] = {}

    def after(name: str, turn: int, result: object) -> None:
        if turn == 0 and isinstance(result, torch.Tensor):
            scores[name] = result.double()
        prepared[name].release()

    runs = {name: lambda p=provider: p.run(tokens) for name, provider in prepared.items()}
    seconds = take_turns(runs, rounds=rounds, after=after)
    reference = scores.get(REFERENCE)
    if reference is None:
        return seconds, {}
    return seconds, {name: float((s - reference).abs().max()) for name, s in scores.items()}


def measure_memory(name: str, size: int, threads: int) -> float | None:
    """Extra peak memory of one pass, in MB; meant for a fresh process."""
    import torch
    from providers import PROVIDERS, repeated_tokens

    torch.set_num_threads(threads)
    provider = PROVIDERS[name]()
    provider.run(repeated_tokens(WARM_UP))
    provider.release()
    tokens = repeated_tokens(size)
    return peak_extra_mb(lambda: provider.run(tokens))


def bench_size(names: Sequence[str], size: int, rounds: int, threads: int, stamp: str) -> list[Row]:
    """Rows of every provider at one length, timed in turns in one process, memory in one process each.

    Raises:
        SystemExit: a provider's scores are not the reference's.
    """
    seconds, diffs = fresh(measure_time, names, size, rounds, threads)
    wrong = {name: diff for name, diff in diffs.items() if not diff <= TOLERANCE}
    if wrong:
        raise SystemExit(f"scores differ from {REFERENCE} by more than {TOLERANCE} at {size} tokens: {wrong}")
    rows = []
    for name in names:
        each = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)] if "plain" in seconds else None
        row = Row(
            CASE,
            name,
            size,
            *spread(seconds[name]),
            ratio_to_plain=spread(each)[0] if each else None,
            peak_extra_mb=fresh(measure_memory, name, size, threads),
            max_abs_diff=diffs.get(name),
            rounds=rounds,
            device=cpu(),
            threads=threads,
            versions=versions(),
            time_utc=stamp,
        )
        rows.append(row)
        print(line(row), flush=True)
    return rows


def bench_growth(sizes: Sequence[int], threads: int, stamp: str) -> list[Row]:
    """Extra memory of ours at more lengths."""
    about = (0, cpu(), threads, versions(), stamp)
    blank = (None,) * 4
    return [Row(GROWTH, "ours", n, *blank, fresh(measure_memory, "ours", n, threads), None, *about) for n in sizes]


HEADER = "tokens provider           median s      p20      p80    /plain   extra MB      diff"


def line(row: Row) -> str:
    """A row for people."""
    memory = "n/a" if row.peak_extra_mb is None else f"{row.peak_extra_mb:,.0f}"
    ratio = "n/a" if row.ratio_to_plain is None else f"{row.ratio_to_plain:.2f}"
    diff = "" if row.max_abs_diff is None else f"{row.max_abs_diff:.1e}"
    return (
        f"{row.size:>6} {row.provider:<18} {row.median_s:>8.2f} {row.p20_s:>8.2f} {row.p80_s:>8.2f}"
        f" {ratio:>9} {memory:>10} {diff:>9}"
    )


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command-line options; `out` is None for a quick run unless given, so that it leaves the record alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="512 tokens, two rounds, no record unless --out is given")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"prompt lengths, even; {list(SIZES)} unless given")
    parser.add_argument("--rounds", type=int, nargs="+", help="rounds at each length, or one number for all")
    parser.add_argument("--providers", nargs="+", choices=NAMES, default=NAMES, help="which to compare; all of them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    sizes = given.sizes or ([512] if given.quick else list(SIZES))
    rounds = given.rounds or [2 if given.quick else SIZES.get(n, 3) for n in sizes]
    rounds = rounds * len(sizes) if len(rounds) == 1 else rounds
    if len(rounds) != len(sizes) or any(n % 2 for n in sizes):
        parser.error(f"lengths must be even, with one number of rounds each; got {sizes} and {rounds}")
    given.plan = dict(zip(sizes, rounds, strict=True))
    if given.out is None and not given.quick:
        given.out = RESULTS / "attention_cpu.csv"
    return given


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add to the record after every length."""
    given, stamp, rows = options(argv), now(), []

    def keep(new: list[Row]) -> None:
        rows.extend(new)
        if given.out is not None:
            append(given.out, new)

    print(f"{cpu()}, {given.threads} threads; {versions()}")
    if REFERENCE not in given.providers:
        print(f"scores are not compared: {REFERENCE} is left out")
    print(HEADER)
    for size, rounds in given.plan.items():
        keep(bench_size(given.providers, size, rounds, given.threads, stamp))
        print(f"       {ratios(rows, size)}", flush=True)
    if not given.quick and "ours" in given.providers:
        keep(bench_growth([n for n in GROWTH_SIZES if n <= max(given.plan)], given.threads, stamp))
        print(f"extra memory of ours: {growth(rows) or 'too few lengths for a line'}")
    for target in targets(rows):
        print(target)


if __name__ == "__main__":
    main()
