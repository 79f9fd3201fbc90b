"""Dictionaries of zoo:default: `python -m interp.dictionaries.training.shipped` makes them and their card.

Activations of rows of the model's own curriculum are stored once and all dictionaries trained on them. The same command
goes on with what was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch

from interp.dictionaries._hygiene import hygiene
from interp.dictionaries._load import load as load_dictionary
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.training.files import write
from interp.dictionaries.training.run import train
from interp.files import atomic_write
from interp.loading.load import load
from interp.model import Model
from interp.results.results import Result
from interp.storage import Store, capture_to
from interp.zoo.trained.skills import SKILLS, skill_items
from interp.zoo.trained.skills.plan import STAGES
from interp.zoo.trained.skills.rows import batch

SHIPPED: dict[str, dict[str, Any]] = {
    "resid2": dict(site="L2.resid_post", n_features=768, k=24),
    "z2": dict(site="L2.z", n_features=768, k=24),
    "mlp2": dict(site="L2.mlp_in", site_out="L2.mlp_out", n_features=768, k=24),
}
"""Folder -> where it reads and writes, and its size."""
COMMON: dict[str, Any] = dict(kind="batchtopk", batch_size=1024, learning_rate=3e-3, dead_after=20_000)
ROWS, TOKENS = 4096, 200_000
"""Tokens of one run, and of all."""
ITEMS = 8
"""Held-out items of each skill that the card measures on."""


def capture(model: Model, folder: Path) -> Store:
    """Activations of rows of the mixed stage of the curriculum, at every site, in half precision."""
    sites = list(
        dict.fromkeys(entry[name] for entry in SHIPPED.values() for name in ("site", "site_out") if name in entry)
    )
    prompts = (batch(Random(f"dictionaries {i}"), STAGES[-1], n_tokens=ROWS).tokens for i in range(TOKENS // ROWS))
    return capture_to(model, prompts, sites, folder, max_bytes=2**26, dtype=torch.float16)


def held_out() -> list[list[int]]:
    """Token ids of items that neither the model nor a dictionary was trained on."""
    return [list(item.tokens) for name in SKILLS for item in skill_items(name, n=ITEMS, seed=7, split="held-out")]


def card(results: dict[str, Result], steps: int, seed: int) -> str:
    """The card, in markdown."""
    head = [
        "# Dictionaries of zoo:default",
        "",
        "BatchTopK dictionaries, written as JumpReLU in SAELens's layout, in float16. `resid2` and `z2` are",
        "sparse autoencoders of the residual stream and of the outputs of all heads of a layer; `mlp2` is a",
        'transcoder of an MLP. Load one with `interp.dictionaries.load("zoo:default/resid2", model)`. Written by',
        f"`python -m interp.dictionaries.training.shipped --steps {steps} --seed {seed}`, on {TOKENS:,} tokens of the",
        f"curriculum that the model was trained on, {steps} steps of {COMMON['batch_size']} tokens each.",
        "",
        f"Measured on the saved files, on {ITEMS} held-out items of each of the {len(SKILLS)} skills, without the",
        "first token of each; loss recovered with the dictionary's output in place of the activations, against zeros.",
        "",
        "| name | reads | writes | features | L0 | FVU | loss recovered | dead | dense | median density |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        values = result.table.set_index("variant")["value"]
        entry = SHIPPED[name]
        cells = [
            name,
            entry["site"],
            entry.get("site_out", entry["site"]),
            str(entry["n_features"]),
            f"{values['l0']:.1f}",
        ]
        cells += [f"{values[v]:.3f}" for v in ("fvu", "loss_recovered", "dead", "dense")] + [f"{values['density']:.4f}"]
        head.append(f"| {' | '.join(cells)} |")
    tail = [
        "",
        "Limits: short training, on a model of ten skills whose text is not language. A feature that is dead here",
        "may be of a skill that 80 items do not touch. On other text than the skills FVU is higher.",
    ]
    return "\n".join([*head, *tail]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Capture, train, write, measure what was written."""
    parser = argparse.ArgumentParser(prog="python -m interp.dictionaries.training.shipped", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for each dictionary, and the card")
    parser.add_argument("--work", type=Path, required=True, help="for activations and states; some 400 MB")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = load("zoo:default")
    store = capture(model, options.work / "activations")
    results = {}
    for name, entry in SHIPPED.items():
        state = options.work / f"{name}-{options.seed}"
        d = train(store, folder=state, steps=options.steps, seed=options.seed, **COMMON, **entry)
        assert isinstance(d, Dictionary)
        write(d.to(dtype=torch.float16), options.out / name)
        saved = load_dictionary(options.out / name, model, measure=False)
        results[name] = hygiene(model, saved, held_out())
        sys.stderr.write(f"{name}\n{results[name].table[['variant', 'value']].to_string(index=False)}\n")
    text = card(results, options.steps, options.seed)
    atomic_write(options.out / "README.md", lambda p: p.write_text(text, encoding="utf-8"), force=True)


if __name__ == "__main__":
    main()
