"""What looking costs: `Model.run` against the plain pass and two peers; partial runs; batched edits.

python tests/bench/running.py [--quick] [--cases overhead start batch] [--size 32] [--rounds 15] [--out FILE]

`run_overhead`: plain Hugging Face forward, ours, TransformerLens `run_with_cache` and nnsight tracing, all residuals or
all z; `run_start`: `start=` at layer l (size: l), `ratio_to_plain` its time over the whole run's; `run_batch`: 64 head
edits in one forward of 64 rows against 64 forwards. Seconds are CPU time of the process: other work on the machine
does not count, only what it does to the caches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, spread, take_turns, versions

OVERHEAD, START, BATCH = "run_overhead", "run_start", "run_batch"
CASES = {"overhead": OVERHEAD, "start": START, "batch": BATCH}
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight")
WHAT = ("resid_post", "z")
PEERS = ("transformer_lens", "nnsight")
LAYERS = (0, 3, 6, 9, 11)
EDITS = 64
TARGETS = {"overhead": 1.15, "logits": 1e-6, "batch": 1e-5}


def measure_overhead(size: int, rounds: int, threads: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds per round, and the largest difference of what was captured from the plain pass's; in a fresh process."""
    import looking
    import torch

    torch.set_num_threads(threads)
    tokens = looking.tokens(size)
    runs: dict[str, Callable[[], object]] = {"plain": looking.plain(tokens)}
    for kind in WHAT:
        runs[f"ours {kind}"] = looking.ours(tokens, kind)
        runs[f"transformer_lens {kind}"] = looking.transformer_lens(tokens, kind)
        runs[f"nnsight {kind}"] = looking.nnsight(tokens, kind)
    first: dict[str, torch.Tensor] = {}

    def after(name: str, turn: int, result: object) -> None:
        if turn == 0 and isinstance(result, torch.Tensor):
            first[name] = result.clone()

    seconds = take_turns(runs, rounds=rounds, after=after, clock="cpu")
    diffs = {name: float((x - first[f"ours {name.split()[-1]}"]).abs().max()) for name, x in first.items()}
    return seconds, diffs


def measure_start(size: int, rounds: int, threads: int) -> tuple[dict[int, list[float]], dict[int, float]]:
    """Seconds of a run from each layer on (-1: the whole run), and the largest difference of its logits."""
    import looking
    import torch

    torch.set_num_threads(threads)
    tokens, model = looking.tokens(size), looking.model()
    whole = model.run(tokens, capture=["resid_pre"])
    starts = {layer: (layer, whole[f"L{layer}.resid_pre"]) for layer in LAYERS}
    runs: dict[str, Callable[[], object]] = {"-1": lambda: model.run(tokens)}
    runs |= {str(layer): lambda s=given: model.run(tokens, start=s) for layer, given in starts.items()}
    diffs: dict[int, float] = {}

    def after(name: str, turn: int, result: object) -> None:
        if turn == 0:
            diffs[int(name)] = float((result.logits - whole.logits).abs().max())

    seconds = take_turns(runs, rounds=rounds, after=after, clock="cpu")
    return {int(name): each for name, each in seconds.items()}, diffs


def measure_batch(size: int, rounds: int, threads: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of 64 edited forwards, one by one and as one batch, and the largest difference of their logits."""
    import looking
    import torch

    from interp.edits import Ablate

    torch.set_num_threads(threads)
    tokens, model = looking.tokens(size), looking.model()
    heads = [(i * 7 % 12, i * 5 % 12) for i in range(EDITS)]
    rows = [Ablate(f"L{layer}H{head}.z", rows=row) for row, (layer, head) in enumerate(heads)]
    single = [Ablate(f"L{layer}H{head}.z") for layer, head in heads]
    runs: dict[str, Callable[[], object]] = {
        "plain": lambda: model.run(tokens.expand(EDITS, -1)).logits[:, -1],
        "64 in one": lambda: model.run(tokens.expand(EDITS, -1), edits=rows).logits[:, -1],
        "64 alone": lambda: torch.cat([model.run(tokens, edits=[e]).logits[:, -1] for e in single]),
    }
    first: dict[str, torch.Tensor] = {}

    def after(name: str, turn: int, result: object) -> None:
        if turn == 0:
            first[name] = result

    seconds = take_turns(runs, rounds=rounds, after=after, clock="cpu")
    return seconds, {"64 in one": float((first["64 in one"] - first["64 alone"]).abs().max())}


def against(name: str, other: str, seconds: Mapping[str, list[float]]) -> float:
    """Median over rounds of one's time over another's in the same round."""
    return spread([a / b for a, b in zip(seconds[name], seconds[other], strict=True)])[0]


def rows_of(
    case: str,
    seconds: Mapping[str, list[float]],
    diffs: Mapping[str, float],
    sizes: Mapping[str, int],
    threads: int,
) -> list[Row]:
    """Rows of a case; the ratio is to the provider `plain`, round by round."""
    about = (cpu(), threads, versions(PACKAGES), now())
    return [
        Row(
            case,
            name,
            sizes[name],
            *spread(each),
            against(name, "plain", seconds),
            None,
            diffs.get(name),
            len(each),
            *about,
        )
        for name, each in seconds.items()
    ]


def run_overhead(given: argparse.Namespace) -> list[Row]:
    """Time, print and judge the overhead of capturing."""
    seconds, diffs = fresh(measure_overhead, given.size, given.rounds, given.threads)
    for kind in WHAT:
        ratio = against(f"ours {kind}", "plain", seconds)
        print(f"  ours {kind} / plain {ratio:.3f}: {_met(ratio <= TARGETS['overhead'])} (<= {TARGETS['overhead']})")
        for peer in PEERS:
            ratio = against(f"{peer} {kind}", f"ours {kind}", seconds)
            print(f"  {peer} {kind} / ours {ratio:.2f}: {_met(ratio > 1)} (> 1)")
    return rows_of(OVERHEAD, seconds, diffs, dict.fromkeys(seconds, given.size), given.threads)


def run_start(given: argparse.Namespace) -> list[Row]:
    """Time, print and judge runs from a layer on: at most their share of layers, plus what stands outside them."""
    seconds, diffs = fresh(measure_start, given.size, given.rounds, given.threads)
    named = {("plain" if layer < 0 else f"start {layer}"): each for layer, each in seconds.items()}
    whole, last = 1.0, against("start 11", "plain", named)
    outside = max(0.0, (12 * last - whole) / 11)  # from t(l) = outside + (12 - l) / 12 * (1 - outside)
    for layer in LAYERS:
        ratio, share = against(f"start {layer}", "plain", named), outside + (12 - layer) / 12 * (1 - outside)
        print(f"  start {layer} / whole {ratio:.3f}; its layers' share {share:.3f}, logits within {diffs[layer]:.1e}")
    print(f"  outside the layers {outside:.3f}; logits {_met(max(diffs.values()) <= TARGETS['logits'])}")
    sizes = {name: max(0, layer) for name, layer in zip(named, seconds, strict=True)}
    return rows_of(START, named, {f"start {k}": v for k, v in diffs.items()}, sizes, given.threads)


def run_batch(given: argparse.Namespace) -> list[Row]:
    """Time, print and judge 64 edits in one forward."""
    seconds, diffs = fresh(measure_batch, given.short, max(1, given.rounds // 3), given.threads)
    print(f"  64 alone / 64 in one {against('64 alone', '64 in one', seconds):.2f}", end="; ")
    print(f"64 in one / the same batch unedited {against('64 in one', 'plain', seconds):.3f}", end="; ")
    print(f"logits within {diffs['64 in one']:.1e}: {_met(diffs['64 in one'] <= TARGETS['batch'])}")
    return rows_of(BATCH, seconds, diffs, dict.fromkeys(seconds, given.short), given.threads)


def _met(true: bool) -> str:
    return "met" if true else "MISSED"


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add to the record after every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, no record unless --out is given")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--size", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--short", type=int, default=32, help="tokens of the prompt of the batched edits")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    given.rounds = given.rounds or (3 if given.quick else 15)
    out = given.out or (None if given.quick else RESULTS / "running.csv")
    print(f"{cpu()}, {given.threads} threads; {versions(PACKAGES)}")
    for name in given.cases:
        rows = {"overhead": run_overhead, "start": run_start, "batch": run_batch}[name](given)
        for row in rows:
            print(f"{row.case:<13} {row.provider:<28} {row.size:>4} {row.median_s:8.4f} s {row.ratio_to_plain:7.3f}")
        if out is not None:
            append(out, rows)


if __name__ == "__main__":
    main()
