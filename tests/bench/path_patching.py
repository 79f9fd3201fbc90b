"""What head-to-logits path patching costs: all heads from two runs against one forward per head.

python tests/bench/path_patching.py [--quick] [--rounds 5] [--out FILE]

GPT-2-small shape, random weights, 16 pairs of 18 tokens that differ in three. `path_patching`: "ours" is the public
call, table and intervals included; "ours first" the same on a model it has not seen, with all that is read of weights
once; "ours live" with MLPs between sender and logits recomputed; "forward per head" adds the head's difference to the
last stream of the clean run, `Model.run` once for each of 144 heads, its activations at hand before. CPU seconds of the
process; the ratio is to "forward per head". Peak memory of each in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, peak_extra_mb, spread, take_turns, versions

CASE = "path_patching"
PACKAGES = ("torch", "transformers")
NAIVE, OURS, FIRST, LIVE = "forward per head", "ours", "ours first", "ours live"
PROMPTS, TOKENS, CONTEXT = 16, 18, 1024
DIFFERENT = (4, 9, 13)
LEAST, CLOSE = 80.0, 1e-5


def runs() -> dict[str, Callable[[], object]]:
    """Each way, on one model; every one gives the effects in order of layer and head."""
    import torch
    from providers import gpt2_small

    import interp
    from circuits.patching.paths import path_patching
    from circuits.wiring.edges import sent
    from circuits.wiring.ports import CACHE, ports
    from interp.edits import Add
    from interp.tasks.prompt import collate

    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(50257, (PROMPTS, TOKENS), generator=generator)
    corrupt = clean.clone()
    corrupt[:, DIFFERENT] = torch.randint(50257, (PROMPTS, len(DIFFERENT)), generator=generator)
    answers = torch.randint(50257, (PROMPTS, 2), generator=generator).tolist()
    task = collate(
        "random",
        list(zip(clean.tolist(), corrupt.tolist(), strict=True)),
        answers=[[a] for a, _ in answers],
        wrong=[[b] for _, b in answers],
        roles=[{} for _ in answers],
        templates=["random"] * PROMPTS,
        corruption="three tokens",
        metric="logit_diff",
    )
    module = gpt2_small(context=CONTEXT)
    model, known = interp.load(module), dict[str, torch.Tensor]()

    def effects(model: interp.Model, mlps: str) -> torch.Tensor:
        return torch.tensor(path_patching(model, task, mlps=mlps).table["value"].to_numpy(copy=True))

    def first() -> torch.Tensor:
        CACHE.pop(model, None)
        return effects(model, "frozen")

    def naive() -> torch.Tensor:
        layout, found = ports(model).layout, []
        base, last = task.value(model.run(task.clean).logits), f"L{model.info.n_layers - 1}.resid_post"
        for i, name in enumerate(layout.senders):
            if name.startswith("L"):
                patched = model.run(task.clean, edits=[Add(last, known["gap"][i])]).logits
                found.append((task.value(patched) - base).mean())
        return torch.stack(found)

    def prepared() -> torch.Tensor:
        if "gap" not in known:
            one, other = (sent(model, ports(model), side) for side in (task.clean, task.corrupt))
            known["gap"] = other - one
        return known["gap"]

    return {
        "prepare": prepared,
        NAIVE: naive,
        OURS: lambda: effects(model, "frozen"),
        FIRST: first,
        LIVE: lambda: effects(model, "live"),
    }


def measure(names: Sequence[str], rounds: int, threads: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each way in turns, and how far its effects are from those of one forward per head."""
    import torch

    torch.set_num_threads(threads)
    ways = runs()
    ways.pop("prepare")()
    found: dict[str, torch.Tensor] = {}

    def after(name: str, turn: int, result: object) -> None:
        assert isinstance(result, torch.Tensor)
        found[name] = result.double()

    seconds = take_turns({name: ways[name] for name in names}, rounds=rounds, after=after, clock="cpu")
    return seconds, {n: float((x - found[NAIVE]).abs().max()) for n, x in found.items() if n in (OURS, FIRST)}


def peak(name: str, threads: int) -> float | None:
    """Peak memory of one way, in a fresh process."""
    import torch

    torch.set_num_threads(threads)
    ways = runs()
    if name == NAIVE:
        ways["prepare"]()
    return peak_extra_mb(ways[name])


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, judge, and add to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, no record unless --out is given")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    rounds, out = given.rounds or (1 if given.quick else 5), given.out
    out = out or (None if given.quick else RESULTS / "path_patching.csv")
    names = (NAIVE, OURS, FIRST, LIVE)
    print(f"{cpu()}, {given.threads} threads; {versions(PACKAGES)}")
    seconds, diffs = fresh(measure, names, rounds, given.threads)
    peaks = {name: fresh(peak, name, given.threads) for name in names}
    rows = []
    for name in names:
        ratio = spread([a / b for a, b in zip(seconds[name], seconds[NAIVE], strict=True)])[0]
        times = spread(seconds[name])
        about = (cpu(), given.threads, versions(PACKAGES), now())
        rows.append(Row(CASE, name, TOKENS, *times, ratio, peaks[name], diffs.get(name), rounds, *about))
        memory = "unknown" if peaks[name] is None else f"{peaks[name]:.0f} MB"
        print(f"{name:<18} {times[0]:8.3f} s, 1/{1 / ratio:6.1f}, peak {memory}, differs by {diffs.get(name)}")
    faster = 1 / next(row.ratio_to_plain for row in rows if row.provider == OURS)
    same = max(diffs.values()) <= CLOSE
    print(f"{faster:.1f} times faster: {'met' if faster >= LEAST else 'MISSED'} (>= {LEAST:.0f})")
    print(f"same values: {'met' if same else 'MISSED'} (<= {CLOSE})")
    if out is not None:
        append(out, rows)


if __name__ == "__main__":
    main()
