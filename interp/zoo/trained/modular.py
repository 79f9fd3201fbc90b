"""The recipe of the model that learns addition modulo a prime from half of all sums, and its card.

All training sums are in every batch; weight decay makes the model give up remembering them (Power et al. 2022, arXiv
2201.02177), and a narrow stream leaves room for a few frequencies only (Nanda et al. 2023, arXiv 2301.05217).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from interp.data import is_held_out
from interp.files import atomic_write
from interp.zoo import entry
from interp.zoo.trained.recipe import Losses, Recipe
from interp.zoo.trained.tokenizer import SPECIALS, word_tokenizer
from interp.zoo.trained.untrained import untrained

SCHEMA = 1
"""Of `tasks.json`, as `interp.tasks.source` has it."""
ONE_IN = 2
KEY = "{x} + {y}"
"""Decides whether a sum is held out, as in `interp.tasks.modular`."""
WARM_UP = 10
COOL_DOWN = 0.2
"""Last share of the steps, over which the learning rate falls to zero."""
N_SHOWN = 8


@dataclass(frozen=True)
class Modular:
    """Modulus, shape and training of a model of modular addition; with a seed it fixes a training run."""

    modulus: int
    shape: dict[str, Any]
    """Options of LlamaConfig."""
    steps: int
    learning_rate: float
    weight_decay: float


MODULAR = {
    "modular-addition": Modular(
        modulus=37,
        shape=dict(
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=6,
            intermediate_size=64,
        ),
        steps=4000,
        learning_rate=3e-3,
        weight_decay=1.0,
    )
}


@dataclass(frozen=True)
class Sums:
    """Prompts `<bos> x + y =` and the id of each answer."""

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, " batch"]


def words(plan: Modular) -> tuple[str, ...]:
    """The numbers from 0 on, and the two signs."""
    return (*(str(i) for i in range(plan.modulus)), "+", "=")


def sums(plan: Modular, split: str) -> Sums:
    """Every sum of a split ("train", "held-out"), in order."""
    p, first = plan.modulus, len(SPECIALS)
    pairs = [
        (x, y)
        for x in range(p)
        for y in range(p)
        if is_held_out(KEY.format(x=x, y=y), one_in=ONE_IN) is (split == "held-out")
    ]
    x, y = torch.tensor(pairs).T
    columns = [torch.full_like(x, SPECIALS.index("<bos>")), first + x, torch.full_like(x, first + p), first + y]
    return Sums(torch.stack([*columns, torch.full_like(x, first + p + 1)], 1), first + (x + y) % p)


class WholeSplit:
    """The same batch at every step: all sums to learn from."""

    def __init__(self, plan: Modular) -> None:
        self.sums = sums(plan, "train")

    def batch(self, step: int) -> Sums:
        """All of them."""
        return self.sums

    def advance(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """Nothing depends on the losses."""

    def state_dict(self) -> dict[str, Any]:
        """No memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No memory."""


def build(plan: Modular, *, seed: int) -> LlamaForCausalLM:
    """The untrained model, in float32."""
    return untrained(plan.shape, n_tokens=len(SPECIALS) + len(words(plan)), context=16, seed=seed)


def last_logits(model: LlamaForCausalLM, batch: Sums) -> Float[Tensor, "batch d_vocab"]:
    """Logits behind `=`."""
    return model(batch.tokens, use_cache=False, logits_to_keep=1).logits[:, -1]


def sum_loss(_model: LlamaForCausalLM, logits: Float[Tensor, "batch d_vocab"], batch: Sums) -> Losses:
    """Cross-entropy of the answers, in nats."""
    loss = torch.nn.functional.cross_entropy(logits, batch.answers)
    return loss, {"sums": loss}


def learning_rate(step: int, *, plan: Modular, steps: int) -> float:
    """A short linear warm-up, a plateau, and a linear fall to zero over the last fifth."""
    return plan.learning_rate * min(1.0, (step + 1) / WARM_UP, (steps - step) / (COOL_DOWN * steps))


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, batch: Sums) -> tuple[float, float]:
    """Share of right answers, and loss in nats."""
    logits = last_logits(model, batch).float()
    loss = torch.nn.functional.cross_entropy(logits, batch.answers)
    return float((logits.argmax(1) == batch.answers).float().mean()), float(loss)


def embedding_power(model: LlamaForCausalLM, plan: Modular) -> Float[Tensor, " frequency"]:
    """Share of the squared norm of the numbers' embeddings, less their mean, at frequencies 1 to p // 2."""
    table: Any = model.get_input_embeddings().weight
    rows = table.detach().double()[len(SPECIALS) :][: plan.modulus]
    power = torch.fft.rfft(rows - rows.mean(0), dim=0).abs().square().sum(1)[1:]
    return power / power.sum()


def watch(plan: Modular, model: LlamaForCausalLM) -> str:
    """Accuracies and the strongest frequencies, for the log."""
    trained, held_out = (accuracy(model, sums(plan, split))[0] for split in ("train", "held-out"))
    power = embedding_power(model, plan)
    best = "  ".join(f"{k + 1}: {power[k]:.2f}" for k in power.topk(N_SHOWN).indices.tolist())
    return f"train {trained:.3f}  held-out {held_out:.3f}  frequencies {best}"


def recipe(name: str, *, seed: int = 0, steps: int | None = None) -> Recipe[LlamaForCausalLM, Sums]:
    """Recipe of the model of this name; `steps` overrides its number of steps."""
    plan = MODULAR[name]
    steps = steps or plan.steps
    return Recipe(
        facts={"name": name, "seed": seed, "steps": steps},
        steps=steps,
        model=partial(build, plan, seed=seed),
        data=lambda progress: WholeSplit(plan),
        loss=sum_loss,
        schedule=partial(learning_rate, plan=plan, steps=steps),
        weight_decay=plan.weight_decay,
        watch=partial(watch, plan),
        publish=partial(_publish, name, seed, steps),
        outputs=last_logits,
    )


def tasks(plan: Modular) -> dict[str, Any]:
    """The content of `tasks.json`: the sums as a prompt task, in the training's own splits."""
    return {
        "schema": SCHEMA,
        "tasks": {
            "modular_addition": {
                "family": "modular_addition",
                "summary": f"The sum of two numbers modulo {plan.modulus}.",
                "templates": ["{x} + {y} ="],
                "words": {"number": list(words(plan)[: plan.modulus])},
                "many": ["number"],
                "key": KEY,
                "one_in": ONE_IN,
            }
        },
    }


def _publish(name: str, seed: int, steps: int, folder: Path, minutes: float) -> str:
    plan = MODULAR[name]
    word_tokenizer(words=words(plan), max_length=16).save_pretrained(folder)
    text = json.dumps(tasks(plan), indent=1) + "\n"
    atomic_write(folder / "tasks.json", lambda p: p.write_text(text, encoding="utf-8"), force=True)
    model = LlamaForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)
    return card_text(model.eval(), name=name, seed=seed, steps=steps, minutes=minutes)


def card_text(model: LlamaForCausalLM, *, name: str, seed: int, steps: int, minutes: float) -> str:
    """The card, in markdown, for the weights that `model` holds."""
    plan = MODULAR[name]
    splits = {split: sums(plan, split) for split in ("train", "held-out")}
    scores = {split: accuracy(model, batch) for split, batch in splits.items()}
    lines = "\n".join(
        f"| {split} | {len(splits[split].answers)} | {right:.4f} | {loss:.4f} |"
        for split, (right, loss) in scores.items()
    )
    power = embedding_power(model, plan)
    frequencies = ", ".join(f"{k + 1} {power[k]:.3f}" for k in power.topk(N_SHOWN).indices.tolist())
    parameters = sum(p.numel() for p in model.parameters())
    return f"""---
library_name: transformers
tags: [mechanistic-interpretability, toy-model]
---
# {name}

{entry(name).summary}.

A LlamaForCausalLM of {parameters:,} parameters, stored in float16, with a word-level tokenizer of the numbers 0 to
{plan.modulus - 1}, `+` and `=`. Written by `python -m interp.zoo.trained.train {name}`.

## Training

Prompts `<bos> x + y =`; the answer is (x + y) mod {plan.modulus}. Of all {plan.modulus**2} sums about half are trained
on, all of them at every step; the others are held out, as `tasks.json` says. Cross-entropy behind `=` alone. AdamW,
learning rate {plan.learning_rate}, weight decay {plan.weight_decay}, {steps} steps, seed {seed}: {minutes:.1f} minutes
on one CPU core.

## Held-out numbers

Measured by the training script on the saved weights, in float32.

| split | sums | accuracy | loss (nats) |
|---|---|---|---|
{lines}

Share of the squared norm of the numbers' embeddings (less their mean) by frequency k, as cos and sin of
2 pi k x / {plan.modulus}; an even spread is {1 / (plan.modulus // 2):.3f}: {frequencies}.

## Limits

One task, one layer, a few thousand weights. It is for methods of arithmetic and number structure; its heads copy the
operands to `=` and nothing more can be asked of them. A norm stands before every part, so that the sizes of embeddings
say nothing.
"""
