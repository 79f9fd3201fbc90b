"""What scoring every neuron costs: all 36,864 of a GPT-2-small shape, and the exact removal of the best 256.

python tests/bench/neuron_effects.py [--quick] [--rounds 3] [--threads 1] [--out FILE]

`neuron_effects`: random weights, 16 prompts of 16 tokens. `ratio_to_plain`: time over one forward pass of all prompts.
`first order and direct` are of all neurons, `removal of the best` of the first by size of the first order, to their
means; `max_abs_diff` is how far first order is from removal there, over the largest. Seconds are CPU time of the
process. A quick run removes 32.
"""

from __future__ import annotations

import beartype  # noqa: F401  (before nnsight)

# isort: split
import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from harness import RESULTS, Row, append, cpu, now, spread, take_turns, versions

CASE = "neuron_effects"
FORWARD, SCORES, REMOVAL = "forward", "first order and direct", "removal of the best"
PROMPTS, TOKENS, BEST, QUICK = 16, 16, 256, 32
TARGETS = {SCORES: 6.0, REMOVAL: 200.0}


def prepared() -> tuple[dict[str, Callable[[], object]], Callable[[int], np.ndarray]]:
    """Runs by name, and a function that gives first order and removal of the best few, [two neuron]."""
    from attributing import gpt2_small, task

    import interp
    from interp.measurement.neuron_effects import NeuronEffects
    from interp.patching.case import Case

    model, given = interp.load(gpt2_small()), task(PROMPTS, TOKENS)

    def scores() -> np.ndarray:
        effects = NeuronEffects.of(Case.of(model, given))
        return np.stack([effects.first_order("mean").mean(0), effects.direct().mean(0)])

    effects = NeuronEffects.of(Case.of(model, given))
    first = effects.first_order("mean").mean(0)
    order = np.argsort(-np.abs(first), kind="stable")

    def removal(best: int) -> np.ndarray:
        neurons = [effects.names[i] for i in order[:best]]
        return np.stack([first[order[:best]], effects.removal(neurons, "mean").mean(0)])

    return {FORWARD: lambda: model.run(given.clean), SCORES: scores}, removal


def run(rounds: int, threads: int, best: int) -> list[Row]:
    """Time, print and judge."""
    import torch

    from interp.results.stats import spearman

    torch.set_num_threads(threads)
    runs, removal = prepared()
    seconds = take_turns(runs, rounds=rounds, after=lambda *_: None, clock="cpu")
    plain = spread(seconds[FORWARD])[0]
    begin = time.process_time()
    pairs = removal(best)
    seconds[f"{REMOVAL} {best}"] = [time.process_time() - begin]
    for name, each in seconds.items():
        target = next((t for start, t in TARGETS.items() if name.startswith(start)), None)
        if target is not None:
            ratio = spread(each)[0] / plain
            print(f"  {name}: {ratio:.1f} forwards: {'met' if ratio <= target else 'MISSED'} (<= {target:g})")
    print(f"  rank correlation of first order and removal {spearman(*pairs).rho:.4f}, of {best} neurons")
    difference = float(np.abs(pairs[0] - pairs[1]).max() / np.abs(pairs[1]).max())
    about = cpu(), threads, versions(), now()
    return [
        Row(CASE, name, TOKENS, *spread(each), spread(each)[0] / plain, None, diff, len(each), *about)
        for name, each in seconds.items()
        for diff in [difference if name.startswith(REMOVAL) else None]
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, few neurons, no record unless --out is given")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    out = given.out or (None if given.quick else RESULTS / "neuron_effects.csv")
    rows = run(given.rounds or (1 if given.quick else 3), given.threads, QUICK if given.quick else BEST)
    for row in rows:
        print(f"{row.case:<17} {row.provider:<24} {row.median_s:8.3f} s {row.ratio_to_plain:7.2f}")
    if out is not None:
        append(out, rows)


if __name__ == "__main__":
    main()
