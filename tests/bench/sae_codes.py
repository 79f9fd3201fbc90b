"""What scores of heads by discrete codes cost: ours against the published form.

python tests/bench/sae_codes.py [--quick] [--rounds 5] [--case NAME] [--out FILE]

500 prompts of 16 tokens, GPT-2-small shape, random weights; outputs of heads are z W_O (144 heads x 768), means over
tokens; where they are at hand z and W_O are normal random numbers; one autoencoder of 200 features, trained before and
the same for all, gives the codes. The published form, in
our own writing (github.com/charlieoneill11/sae-circuits, 10fd2e7): prompts go through the model one at a time, logits
and z W_O of every token included; the whole autoencoder, decoder included, is applied to all outputs at once; codes
are NumPy's argmax; then sets, head by head. Pairs of codes are counted prompt by prompt and head by head, here in sets,
where the published code fills 144^2 x 200^2 numbers twice, 13 GB.

`codes_node`: node scores from codes at hand; `codes_edges`: node and edge scores from codes at hand; `codes_outputs`
and `codes_all`: the same two from what a forward cached, encoding included: z W_O, 768 wide, for the published form;
z, 64 wide, for ours, which folds W_O into the encoder within its time, while the published form has z W_O for nothing;
`same_input` is ours from the published form's z W_O. `codes_forward`: node scores from tokens, forwards included, of 32
prompts, since each costs the same. The published forwards run in TransformerLens with every
activation cached; here it is the plain model with hooks, which is faster. CPU seconds of the process; the ratio is to
the published form.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import RESULTS, Row, append, cpu, fresh, now, spread, take_turns, versions

PACKAGES = ("torch", "transformers")
PROMPTS, TOKENS, LAYERS, HEADS, D_HEAD = 500, 16, 12, 144, 64
SIZES = {"codes_forward": 32}
"""Case -> prompts of a round, where it is not all."""
LOOP, OURS, SAME = "published", "ours", "same_input"
GOALS = {"codes_node": 20.0, "codes_edges": 20.0, "codes_outputs": 20.0, "codes_all": 20.0, "codes_forward": 1.8}


def loop_nodes(codes, labels):
    """Unique codes of each head by sets, as published."""
    positive, negative = codes[labels], codes[~labels]
    return [len(set(positive[:, h].tolist()) - set(negative[:, h].tolist())) for h in range(codes.shape[1])]


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


def random_task(n: int):
    """Pairs of random prompts, two tokens of which differ."""
    import torch

    from interp.tasks.prompt import collate

    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(50257, (n // 2, TOKENS), generator=generator)
    corrupt = clean.clone()
    corrupt[:, [4, 9]] = torch.randint(50257, (n // 2, 2), generator=generator)
    pairs = list(zip(clean.tolist(), corrupt.tolist(), strict=True))
    columns = {"answers": [[1]], "wrong": [[2]], "roles": [{}], "templates": ["random"]}
    many = {name: column * (n // 2) for name, column in columns.items()}
    return collate("random", pairs, **many, corruption="two tokens", metric="logit_diff")


def published_outputs(module, prompts):
    """Head outputs, a prompt at a time: a whole forward, z W_O of all heads and tokens, the mean over tokens."""
    import torch

    blocks, kept, rows = module.transformer.h, {}, []
    hooks = [
        block.attn.c_proj.register_forward_pre_hook(lambda _, given, i=i: kept.__setitem__(i, given[0]))
        for i, block in enumerate(blocks)
    ]
    w_o = [block.attn.c_proj.weight.detach().view(HEADS // LAYERS, D_HEAD, -1) for block in blocks]
    with torch.no_grad():
        for prompt in prompts:
            module(prompt[None], use_cache=False)
            z = [kept[i][0].view(len(prompt), HEADS // LAYERS, D_HEAD) for i in range(LAYERS)]
            results = [torch.einsum("thd,hdm->thm", one, w) for one, w in zip(z, w_o, strict=True)]
            rows.append(torch.cat(results, 1).mean(0))
    for hook in hooks:
        hook.remove()
    return torch.stack(rows)


def published_codes(dictionary, outputs):
    """The whole autoencoder on all outputs at once, and the largest feature."""
    import torch

    with torch.no_grad():
        features = dictionary.encode(outputs)
        dictionary.decode(features)
    return features.numpy().argmax(2)


def ways(case: str) -> dict[str, Callable[[], object]]:
    """The published form and ours, of one case; all give the same integers."""
    import numpy as np
    import torch
    from providers import gpt2_small

    import interp
    from circuits.features.code_autoencoder import Training, codes, train_codes
    from circuits.features.code_scores import CodeTable, unique_codes
    from circuits.features.head_outputs import head_outputs

    labels = np.arange(n := SIZES.get(case, PROMPTS)) < n // 2
    if case == "codes_forward":
        task, model = random_task(n), interp.load(gpt2_small(context=64))
        prompts = torch.cat([task.clean.ids, task.corrupt.ids])
        x = published_outputs(model.torch_module, prompts[:: n // 10])
    else:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(n, HEADS, D_HEAD, generator=generator)
        w_o = torch.randn(HEADS, D_HEAD, HEADS // LAYERS * D_HEAD, generator=generator) / D_HEAD**0.5
        x = torch.einsum("phd,hdm->phm", z, w_o)
    (dictionary,) = train_codes(x, Training(epochs=20))
    own = codes(x, dictionary)

    def loops(found):
        return [*loop_nodes(found, labels), *loop_pairs(found, labels)]

    def ours(found):
        table = CodeTable.of(found)
        return np.concatenate([table.unique(labels), table.unique_pairs(labels)[np.triu_indices(HEADS, 1)]])

    def ours_forward():
        outputs, _, _ = head_outputs(model, task, batch_size=64)
        return unique_codes(codes(outputs, dictionary), labels)

    def published_forward():
        return loop_nodes(published_codes(dictionary, published_outputs(model.torch_module, prompts)), labels)

    return {
        "codes_node": {LOOP: lambda: loop_nodes(own, labels), OURS: lambda: unique_codes(own, labels)},
        "codes_edges": {LOOP: lambda: loops(own), OURS: lambda: ours(own)},
        "codes_outputs": {
            LOOP: lambda: loop_nodes(published_codes(dictionary, x), labels),
            OURS: lambda: unique_codes(codes(z, dictionary, w_o=w_o), labels),
            SAME: lambda: unique_codes(codes(x, dictionary), labels),
        },
        "codes_all": {
            LOOP: lambda: loops(published_codes(dictionary, x)),
            OURS: lambda: ours(codes(z, dictionary, w_o=w_o)),
            SAME: lambda: ours(codes(x, dictionary)),
        },
        "codes_forward": {LOOP: published_forward, OURS: ours_forward},
    }[case]


def measure(case: str, rounds: int, threads: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each, and the largest difference of its scores to the published ones; in a fresh process."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    found: dict[str, object] = {}
    seconds = take_turns(
        ways(case), rounds=rounds, after=lambda name, _, result: found.__setitem__(name, result), clock="cpu"
    )
    scores = {name: np.asarray(each, dtype=float) for name, each in found.items()}
    return seconds, {name: float(np.abs(each - scores[LOOP]).max()) for name, each in scores.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, judge, and add to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, no record unless --out is given")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--case", action="append", choices=tuple(GOALS), help="repeatable; all unless given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    given = parser.parse_args(argv)
    rounds, out = given.rounds or (1 if given.quick else 5), given.out
    out = out or (None if given.quick else RESULTS / "sae_codes.csv")
    print(f"{cpu()}, {given.threads} threads; {versions(PACKAGES)}")
    for case in given.case or GOALS:
        goal = GOALS[case]
        seconds, diffs = fresh(measure, case, rounds, given.threads)
        ratio = spread([a / b for a, b in zip(seconds[LOOP], seconds[OURS], strict=True)])[0]
        print(
            f"{case:<14} published {spread(seconds[LOOP])[0] * 1e3:9.1f} ms, ours "
            f"{spread(seconds[OURS])[0] * 1e3:8.1f} ms: {ratio:.1f} times faster: "
            f"{'met' if ratio >= goal else 'MISSED'} (>= {goal:g}); differs by {diffs[OURS]:g}"
        )
        if SAME in seconds:
            print(f"{'':<14} from the published form's outputs {spread(seconds[SAME])[0] * 1e3:8.1f} ms")
        about = (cpu(), given.threads, versions(PACKAGES), now())
        rows = [
            Row(
                case,
                name,
                SIZES.get(case, PROMPTS),
                *spread(each),
                spread([a / b for a, b in zip(each, seconds[LOOP], strict=True)])[0],
                None,
                None if name == LOOP else diffs[name],
                rounds,
                *about,
            )
            for name, each in seconds.items()
        ]
        if out is not None:
            append(out, rows)


if __name__ == "__main__":
    main()
