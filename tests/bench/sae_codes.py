"""What scores of heads by discrete codes cost: ours against the published form, loops over prompts, heads and sets.

python tests/bench/sae_codes.py [--quick] [--rounds 3] [--out FILE]

500 prompts of 16 tokens, GPT-2-small shape, random weights; outputs are z (144 heads x 64), means over tokens; one
autoencoder of 200 features, trained before and the same for all, gives the codes. `codes_node`: node scores from codes
at hand; `codes_outputs`: from head outputs at hand, encoding included; `codes_edges`: node and edge scores from codes
at hand; `codes_forward`: node scores from tokens, forwards included, the loop one prompt at a time. CPU seconds of the
process; the ratio is to the loop.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, spread, take_turns, versions

PACKAGES = ("torch", "transformers")
PROMPTS, TOKENS, HEADS, WIDTH = 500, 16, 144, 64
LOOP, OURS = "published loop", "ours"
GOALS = {"codes_node": 20.0, "codes_outputs": 20.0, "codes_edges": 20.0, "codes_forward": 1.8}


def loop_nodes(codes, labels):
    """Unique codes of each head by sets, as published."""
    scores = []
    for head in range(codes.shape[1]):
        positive, negative = set(), set()
        for prompt in range(codes.shape[0]):
            (positive if labels[prompt] else negative).add(int(codes[prompt, head]))
        scores.append(len(positive - negative))
    return scores


def loop_pairs(codes, labels):
    """Unique pairs of codes by sets, as published: prompts, heads, heads."""
    n, heads = codes.shape
    positive, negative = ({(a, b): set() for a in range(heads) for b in range(a + 1, heads)} for _ in range(2))
    for prompt in range(n):
        seen, own = positive if labels[prompt] else negative, codes[prompt].tolist()
        for a in range(heads):
            for b in range(a + 1, heads):
                seen[a, b].add((own[a], own[b]))
    return [len(positive[pair] - negative[pair]) for pair in positive]


def ways(case: str) -> dict[str, Callable[[], object]]:
    """The loop and ours, of one case; both give the same integers."""
    import numpy as np
    import torch
    from providers import gpt2_small

    import interp
    from circuits.features.code_autoencoder import Training, codes, train_codes
    from circuits.features.code_scores import CodeTable, unique_codes
    from circuits.features.head_outputs import head_outputs
    from interp.tasks.prompt import collate

    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(50257, (PROMPTS // 2, TOKENS), generator=generator)
    corrupt = clean.clone()
    corrupt[:, [4, 9]] = torch.randint(50257, (PROMPTS // 2, 2), generator=generator)
    n = len(clean)
    task = collate(
        "random",
        list(zip(clean.tolist(), corrupt.tolist(), strict=True)),
        answers=[[1]] * n,
        wrong=[[2]] * n,
        roles=[{}] * n,
        templates=["random"] * n,
        corruption="two tokens",
        metric="logit_diff",
    )
    model = interp.load(gpt2_small(context=64))
    module = model.torch_module
    x, labels, _ = head_outputs(model, task, outputs="z", batch_size=64)
    (dictionary,) = train_codes(x, Training(epochs=100))
    own = codes(x, dictionary)

    def encode(outputs: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return np.stack([[int(dictionary.encode(h).argmax()) for h in prompt] for prompt in outputs])

    def forwards() -> torch.Tensor:
        kept, rows = {}, []
        hooks = [
            block.attn.c_proj.register_forward_pre_hook(lambda _, given, i=i: kept.__setitem__(i, given[0]))
            for i, block in enumerate(module.transformer.h)
        ]
        with torch.no_grad():
            for prompt in torch.cat([clean, corrupt]):
                module(prompt[None], use_cache=False)
                rows.append(torch.stack([kept[i][0].mean(0) for i in range(12)]).reshape(HEADS, WIDTH))
        for hook in hooks:
            hook.remove()
        return torch.stack(rows)

    def ours_forward() -> np.ndarray:
        outputs, _, _ = head_outputs(model, task, outputs="z", batch_size=64)
        return unique_codes(codes(outputs, dictionary), labels)

    def ours_edges() -> np.ndarray:
        table = CodeTable.of(own)
        return np.concatenate([table.unique(labels), table.unique_pairs(labels)[np.triu_indices(HEADS, 1)]])

    return {
        "codes_node": {
            LOOP: lambda: loop_nodes(own, labels),
            OURS: lambda: unique_codes(own, labels),
        },
        "codes_outputs": {
            LOOP: lambda: loop_nodes(encode(x), labels),
            OURS: lambda: unique_codes(codes(x, dictionary), labels),
        },
        "codes_edges": {
            LOOP: lambda: [*loop_nodes(own, labels), *loop_pairs(own, labels)],
            OURS: ours_edges,
        },
        "codes_forward": {
            LOOP: lambda: loop_nodes(encode(forwards()), labels),
            OURS: ours_forward,
        },
    }[case]


def measure(case: str, rounds: int, threads: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of both, and the largest difference of their scores; in a fresh process."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    found: dict[str, object] = {}
    seconds = take_turns(
        ways(case), rounds=rounds, after=lambda name, _, result: found.__setitem__(name, result), clock="cpu"
    )
    return seconds, float(np.abs(np.asarray(found[LOOP], dtype=float) - np.asarray(found[OURS], dtype=float)).max())


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, judge, and add to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, no record unless --out is given")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    rounds, out = given.rounds or (1 if given.quick else 3), given.out
    out = out or (None if given.quick else RESULTS / "sae_codes.csv")
    print(f"{cpu()}, {given.threads} threads; {versions(PACKAGES)}")
    for case, goal in GOALS.items():
        seconds, diff = fresh(measure, case, rounds, given.threads)
        ratio = spread([a / b for a, b in zip(seconds[LOOP], seconds[OURS], strict=True)])[0]
        print(
            f"{case:<14} loop {spread(seconds[LOOP])[0] * 1e3:9.1f} ms, ours {spread(seconds[OURS])[0] * 1e3:8.1f} ms: "
            f"{ratio:.1f} times faster: {'met' if ratio >= goal else 'MISSED'} (>= {goal:g}); differs by {diff:g}"
        )
        about = (cpu(), given.threads, versions(PACKAGES), now())
        rows = [
            Row(
                case,
                name,
                PROMPTS,
                *spread(each),
                spread([a / b for a, b in zip(each, seconds[LOOP], strict=True)])[0],
                None,
                diff if name == OURS else None,
                rounds,
                *about,
            )
            for name, each in seconds.items()
        ]
        if out is not None:
            append(out, rows)


if __name__ == "__main__":
    main()
