"""Markdown tables of the recorded runs: python tests/bench/table.py [--write].

Prints, or with --write puts between the markers of docs/benchmarks.md, the newest run at each length.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness import RESULTS, Row, read
from verdict import CASE, GROWTH, growth, saving, speedup, targets

DOC = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- attention_cpu: made by tests/bench/table.py -->", "<!-- end of attention_cpu -->"
OTHERS = {
    "attention_long": ("attention_long.csv",),
    "running": ("running.csv",),
    "circuits": ("circuits.csv", "path_patching.csv", "acdc.csv", "sae_codes.csv", "retrieval.csv"),
}
"""Part of the document -> the records it shows."""
SIZES = {
    "attention_long": ("tokens", "plain"),
    "run_overhead": ("tokens", "plain"),
    "run_start": ("layer", "whole run"),
    "run_batch": ("tokens", "plain"),
    "edge_attribution": ("tokens", "ours"),
    "path_patching": ("tokens", "one forward per head"),
    "acdc": ("edges tried", "naive"),
    **{f"codes_{case}": ("prompts", "published") for case in ("node", "edges", "outputs", "all", "forward")},
    "retrieval": ("tokens", "plain"),
}
"""Case -> what its size counts, and what times are compared with."""
PEAKS = {"edge_memory": "edge_attribution"}
"""Cases that hold nothing but the peak memory of another case's providers."""
OTHER_HEAD = """| case | {size} | provider | median ms | p20 - p80 | time / {base} | extra MB | differs by | rounds |
|---|---:|---|---:|---:|---:|---:|---:|---:|"""
HEAD = """| tokens | provider | median s | p20 - p80 s | time / plain | extra MB | scores differ by | rounds |
|---:|---|---:|---:|---:|---:|---:|---:|"""


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of each case and length, the rows of its last run: rows of different runs are never compared at one length."""
    last: dict[tuple[str, int], str] = {}
    for row in rows:
        key = row.case, row.size
        last[key] = max(last.get(key, ""), row.time_utc)
    return [row for row in rows if row.time_utc == last[row.case, row.size]]


def markdown(rows: Sequence[Row]) -> str:
    """Table of the rows, ratios at each length, growth of memory, targets, and what it was measured on."""
    timed = sorted((row for row in rows if row.case == CASE), key=lambda row: row.size)
    if not timed:
        raise SystemExit(f"no rows of case {CASE}; run python tests/bench/attention_cpu.py first")
    parts = ["\n".join([HEAD, *map(_line, timed)]), _ratios(timed)]
    straight = growth(rows)
    if straight is not None:
        parts.append(f"Extra memory of ours against length, least squares over {_sizes(rows, GROWTH)}: {straight}.")
    parts.append("\n".join(f"- {target}" for target in targets(rows)))
    about = sorted({f"{r.time_utc[:10]}; {r.device}, {r.threads} threads; {r.versions}" for r in timed})
    return "\n\n".join([*parts, "Measured on " + " and ".join(about) + "."])


def _line(row: Row) -> str:
    ratio, memory, diff = (_cell(v, f) for v, f in zip(_optional(row), (".2f", ",.0f", ".1e"), strict=True))
    return (
        f"| {row.size} | {row.provider} | {row.median_s:.2f} | {row.p20_s:.2f} - {row.p80_s:.2f} "
        f"| {ratio} | {memory} | {diff} | {row.rounds} |"
    )


def _optional(row: Row) -> tuple[float | None, ...]:
    return row.ratio_to_plain, row.peak_extra_mb, row.max_abs_diff


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ratios(rows: Sequence[Row]) -> str:
    lines = ["| tokens | peer | its time / ours | its extra memory / ours |", "|---:|---|---:|---:|"]
    for size in sorted({row.size for row in rows}):
        at = {row.provider: row for row in rows if row.size == size}
        for peer in ("plain", "output_attentions", "transformer_lens"):
            lines.append(f"| {size} | {peer} | {_cell(speedup(at, peer), '.2f')} | {_cell(saving(at, peer), '.1f')} |")
    return "\n".join(lines)


def _sizes(rows: Sequence[Row], case: str) -> str:
    return ", ".join(str(n) for n in sorted({row.size for row in rows if row.case == case}))


def others(rows: Sequence[Row]) -> str:
    """One table for each case timed in CPU seconds, and what it was measured on."""
    parts, peaks = [], {(PEAKS[r.case], r.provider): r.peak_extra_mb for r in rows if r.case in PEAKS}
    for case, (size, base) in SIZES.items():
        own = sorted((row for row in rows if row.case == case), key=lambda row: row.size)
        if own:
            memory = [peaks.get((case, row.provider), row.peak_extra_mb) for row in own]
            lines = [_other_line(row, peak) for row, peak in zip(own, memory, strict=True)]
            parts.append("\n".join([OTHER_HEAD.format(size=size, base=base), *lines]))
    about = sorted({f"{r.time_utc[:10]}; {r.device}, {r.threads} thread{'s' * (r.threads > 1)}" for r in rows})
    return "\n\n".join(
        [*parts, "Measured on " + " and ".join(about) + f"; {max((r.versions for r in rows), key=len)}."]
    )


def _other_line(row: Row, peak: float | None) -> str:
    ratio, _, diff = (_cell(v, f) for v, f in zip(_optional(row), (".4g", ",.0f", ".1e"), strict=True))
    assert row.median_s is not None and row.p20_s is not None and row.p80_s is not None  # only peaks have no time
    times = f"{1e3 * row.median_s:,.1f} | {1e3 * row.p20_s:,.1f} - {1e3 * row.p80_s:,.1f}"
    cells = (row.case, row.size, row.provider, times, ratio, _cell(peak, ",.0f"), diff, row.rounds)
    return f"| {' | '.join(map(str, cells))} |"


def write(text: str, *, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Put the tables between two markers of the document."""
    before, begin, rest = DOC.read_text().partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise SystemExit(f"docs/{DOC.name} has lost its markers {markers}")
    DOC.write_text(f"{before}{markers[0]}\n\n{text}\n\n{markers[1]}{after}")


def main() -> None:
    """Print the tables, or write them into the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md in place of the tables there")
    given = parser.parse_args()
    texts = {(BEGIN, END): markdown(newest(read(RESULTS / "attention_cpu.csv")))}
    for name, files in OTHERS.items():
        markers = f"<!-- {name}: made by tests/bench/table.py -->", f"<!-- end of {name} -->"
        texts[markers] = others([row for file in files for row in newest(read(RESULTS / file))])
    for markers, text in texts.items():
        if given.write:
            write(text, markers=markers)
        else:
            print(text, end="\n\n")


if __name__ == "__main__":
    main()
