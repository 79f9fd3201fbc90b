"""Retrieval scores of one model: one teacher-forced pass against greedy decoding, and whether they rank heads alike.

python tests/bench/retrieval.py [--quick] [--model zoo:default] [--rounds 3] [--out FILE]

Providers: `plain`, the forward pass over all prompts; `teacher_forced`; `decoding`, `Model.run` once per token, as
`interp.analyze(model, "retrieval", decoding=True)` does it; `generate+cache`, transformers' own greedy generation with
its key-value cache, scores not counted: a lower bound on what any decoding score costs. `ratio_to_plain` of each;
`max_abs_diff` holds 1 - Spearman of the heads' ranks against teacher forcing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, spread, take_turns, versions

CASE = "retrieval"
TARGETS = {"time of decoding": 0.1, "Spearman": 0.9}


def measure(source: str, n_prompts: int, rounds: int, threads: int) -> tuple[dict[str, list[float]], float, int]:
    """Seconds per round by provider, Spearman between the two scores, tokens per prompt; for a fresh process."""
    import torch
    from scipy.stats import spearmanr

    import interp
    from interp.batch import Batch
    from interp.tasks import needles
    from probes.heads import needle_hits as measured

    torch.set_num_threads(threads)
    model = interp.load(source)
    hidden = needles.hide(model, n=n_prompts)
    asked = Batch.of([measured._question_prompt(hidden, a) for a in hidden.answers], side="left")
    steps = 4 + max(len(a.keys) for a in hidden.answers)
    scores: dict[str, torch.Tensor] = {}

    def generate() -> object:
        inputs = {"input_ids": asked.ids, "attention_mask": asked.mask.long()}
        with torch.no_grad():
            return model.torch_module.generate(**inputs, max_new_tokens=steps, do_sample=False, eos_token_id=None)

    def after(name: str, turn: int, result: object) -> None:
        if isinstance(result, measured.Forced):
            scores[name] = torch.tensor(result.hits).mean(0).flatten()
        elif isinstance(result, measured.Decoded):
            scores[name] = torch.tensor(result.hits[result.found]).mean(0).flatten()

    runs = {
        "plain": lambda: model.run(hidden.batch),
        "teacher_forced": lambda: measured.teacher_forced(model, hidden),
        "decoding": lambda: measured.decode(model, hidden),
        "generate+cache": generate,
    }
    seconds = take_turns(runs, rounds=rounds, after=after)
    alike = float(spearmanr(scores["teacher_forced"], scores["decoding"]).statistic)
    return seconds, alike, int(hidden.batch.mask.sum(1).max())


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="6 prompts, one round, no record unless --out is given")
    parser.add_argument("--model", default="zoo:default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    n_prompts, rounds = (6, 1) if given.quick else (24, given.rounds)
    out = given.out or (None if given.quick else RESULTS / "retrieval.csv")
    seconds, alike, length = fresh(measure, given.model, n_prompts, rounds, given.threads)
    about = (rounds, cpu(), given.threads, versions(), now())
    rows = []
    for name, each in seconds.items():
        ratio = spread([a / b for a, b in zip(each, seconds["plain"], strict=True)])[0]
        unlike = 1 - alike if name == "decoding" else None
        rows.append(Row(CASE, name, length, *spread(each), ratio, None, unlike, *about))
        print(f"{name:<16} {spread(each)[0]:8.2f} s  {ratio:6.2f} x plain", flush=True)
    share = {n: spread([a / b for a, b in zip(seconds["teacher_forced"], seconds[n], strict=True)])[0] for n in seconds}
    met = share["decoding"] <= TARGETS["time of decoding"] and alike >= TARGETS["Spearman"]
    print(f"teacher-forced / decoding {share['decoding']:.3f}, / cached generation {share['generate+cache']:.3f}")
    print(f"Spearman {alike:.3f}: {'met' if met else 'MISSED'} {TARGETS}")
    if out is not None:
        append(out, rows)


if __name__ == "__main__":
    main()
