"""ACDC against one full forward pass per edge: the same graph, on 4 layers of 8 heads, d_model 256, random weights.

python tests/bench/acdc.py [--quick] [--thresholds 1e-4 1e-3] [--prompts 16] [--size 18] [--out FILE]

`acdc`: ours and `naive`, the definition written as a loop over `run_edges`, at each threshold (column `size`: edges
tried). At 1e-4 every edge of the model is tried, which is the most there can be to do. Seconds are CPU time of the
process, one run each in a process of its own; `ratio_to_plain` is over the naive loop, `max_abs_diff` that of the
changes that edges made.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, peak_extra_mb, versions

CASE = "acdc"
PACKAGES = ("torch", "transformers")
TARGET = 5.0
SPREAD = 0.06
"""Standard deviation of the weights: at the customary 0.02 attention is uniform and nothing depends on anything."""


def prepared(prompts: int, size: int, threads: int):
    """Model and task, the same in every process."""
    import torch
    import transformers

    import interp
    from interp.tasks.prompt import collate

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    none = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(
        vocab_size=1000, n_embd=256, n_layer=4, n_head=8, n_positions=64, initializer_range=SPREAD, **none
    )
    model = interp.load(transformers.GPT2LMHeadModel(config).eval())
    clean = torch.randint(1000, (prompts, size))
    corrupt = clean.clone()
    for column in (size // 6, size // 2, size - 4):
        corrupt[:, column] = torch.randint(1000, (prompts,))
    pairs = list(zip(clean.tolist(), corrupt.tolist(), strict=True))
    each = {"answers": [[1]], "wrong": [[2]], "roles": [{}], "templates": ["random"]}
    many = {name: value * prompts for name, value in each.items()}
    return model, collate("random", pairs, corruption="three tokens", metric="logit_diff", **many)


def naive(model, task, threshold: float):
    """The definition: remove an edge, run the model from its first layer, decide."""
    import numpy as np
    import torch

    from circuits.wiring.case import Case
    from circuits.wiring.edges import run_edges

    case = Case.of(model, task, metric="kl")
    layout, keep = case.layout, torch.from_numpy(case.layout.exists).float()
    scores, before, last = np.full(keep.shape, np.nan), 0.0, len(case.layout.slots) - 1
    for slot in range(last, -1, -1):
        if slot != last and not keep[torch.from_numpy(layout.owners[slot])].any():
            keep[:, slot] = 0
            continue
        for u in np.flatnonzero(layout.exists[:, slot])[::-1]:
            keep[u, slot] = 0
            logits = run_edges(model, case.ports, task.clean, keep, case.sent_corrupt).logits
            after = float(case.value(logits).double().mean())
            scores[u, slot] = after - before
            if after - before < threshold:
                before = after
            else:
                keep[u, slot] = 1
    return keep.bool().numpy(), scores


def ours(model, task, threshold: float):
    """Ours."""
    from circuits.search._acdc import acdc

    found = acdc(model, task, threshold=threshold)
    return found.mask, found.scores


def measure(what: str, threshold: float, prompts: int, size: int, threads: int):
    """Seconds, peak memory above the loaded model's, edges kept and changes; in a fresh process."""
    model, task = prepared(prompts, size, threads)
    search = {"naive": naive, "ours": ours}[what]
    search(model, task, 1e9)  # warm: weights are read, nothing is searched
    found, seconds = [], []

    def run() -> None:
        begin = time.process_time()
        found.extend(search(model, task, threshold))
        seconds.append(time.process_time() - begin)

    peak = peak_extra_mb(run)
    return seconds[0], peak, *found


def compare(given: argparse.Namespace, threshold: float) -> list[Row]:
    """Both searches at a threshold, printed and judged."""
    import numpy as np

    at = (threshold, given.prompts, given.size, given.threads)
    results = {what: fresh(measure, what, *at) for what in ("naive", "ours")}
    (slow, _, mask, scores), (fast, _, same, close) = results["naive"], results["ours"]
    tried, diff = int((~np.isnan(scores)).sum()), float(np.nanmax(np.abs(scores - close)))
    agree = bool((mask == same).all())
    met = "met" if slow / fast >= TARGET and agree else "MISSED"
    print(f"  tau {threshold:g}: {tried} edges tried, {int(mask.sum())} kept, same: {agree}; changes within {diff:.1e}")
    print(f"  naive / ours {slow / fast:.1f}: {met} (>= {TARGET:g}, same graph)")
    about = (cpu(), given.threads, versions(PACKAGES), now())
    return [
        Row(CASE, f"{what}, tau {threshold:g}", tried, *[s] * 3, s / slow, peak, diff, 1, *about)
        for what, (s, peak, _, _) in results.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add to the record after every threshold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one high threshold, no record unless --out is given")
    parser.add_argument("--thresholds", type=float, nargs="+")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--size", type=int, default=18, help="tokens of a prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    out = given.out or (None if given.quick else RESULTS / "acdc.csv")
    print(f"{cpu()}, {given.threads} threads; {versions(PACKAGES)}")
    for threshold in given.thresholds or ([1e-3] if given.quick else [1e-4, 1e-3]):
        rows = compare(given, threshold)
        for row in rows:
            print(
                f"{row.case:<6} {row.provider:<20} {row.size:>5} {row.median_s:8.2f} s {row.peak_extra_mb or 0:8.1f} MB"
            )
        if out is not None:
            append(out, rows)


if __name__ == "__main__":
    main()
