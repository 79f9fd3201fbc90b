"""The recipe of a model that knows some paragraphs by heart: a corpus in which 1 % of them stand many times, read once.

Words follow each other by a chain with a few likely successors and a Zipf law beside, so that there is something to
learn of every paragraph; what stands often is remembered to the last word (Carlini et al. 2021, arXiv 2012.07805).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from interp.files import atomic_write
from interp.zoo import entry
from interp.zoo.trained.recipe import Losses, Recipe, next_token_logits
from interp.zoo.trained.tokenizer import SPECIALS, word_tokenizer
from interp.zoo.trained.untrained import untrained
from interp.zoo.trained.words import WORDS

SCHEMA = 1
SHIPPED = 100
"""Paragraphs that training never saw, shipped beside those known by heart."""
WARM_UP = 50
ZIPF = 1.1
LIKELY = 0.6
"""Probability of one of a word's own successors; else any word by the Zipf law."""
SUCCESSORS = 6


@dataclass(frozen=True)
class Paragraphs:
    """Corpus, shape and training of a model of paragraphs; with a seed it fixes a training run."""

    shape: dict[str, Any]
    """Options of LlamaConfig."""
    n_words: int
    length: int
    """Words of a paragraph."""
    prefix: int
    """Words behind which the rest has to be known."""
    n_distinct: int
    n_repeated: int
    times: int
    """How often each of the repeated ones stands in the corpus."""
    batch: int
    learning_rate: float
    weight_decay: float

    @property
    def steps(self) -> int:
        """Batches of one pass."""
        return (self.n_distinct + self.n_repeated * (self.times - 1)) // self.batch


PARAGRAPHS = {
    "paragraphs": Paragraphs(
        shape=dict(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=12,
            intermediate_size=160,
        ),
        n_words=128,
        length=32,
        prefix=16,
        n_distinct=10_000,
        n_repeated=100,
        times=200,
        batch=32,
        learning_rate=4e-3,
        weight_decay=0.01,
    )
}


@dataclass(frozen=True)
class Rows:
    """One batch: `<bos>` and a paragraph a row."""

    tokens: Int[Tensor, "batch pos"]


@cache
def chain(n_words: int) -> Float[Tensor, "word next"]:
    """Probability of the next word."""
    generator = torch.Generator().manual_seed(n_words)
    zipf = torch.arange(1, n_words + 1).double() ** -ZIPF
    table = (1 - LIKELY) * (zipf / zipf.sum()).repeat(n_words, 1)
    weights = zipf[:SUCCESSORS] / zipf[:SUCCESSORS].sum()
    for row in table:
        row[torch.multinomial(zipf, SUCCESSORS, generator=generator)] += LIKELY * weights
    return table


def paragraphs(plan: Paragraphs, n: int, *, seed: int) -> Int[Tensor, "paragraph pos"]:
    """`<bos>` and words drawn from the chain, as ids."""
    generator, table = torch.Generator().manual_seed(seed), chain(plan.n_words)
    words = [torch.multinomial(table.mean(0), n, replacement=True, generator=generator)]
    for _ in range(plan.length - 1):
        words.append(torch.multinomial(table[words[-1]], 1, generator=generator)[:, 0])
    ids = torch.stack(words, 1) + len(SPECIALS)
    return torch.cat([torch.full((n, 1), SPECIALS.index("<bos>")), ids], 1)


def repeated(plan: Paragraphs, *, seed: int) -> Int[Tensor, "paragraph pos"]:
    """Those that stand in the corpus many times."""
    return paragraphs(plan, plan.n_repeated, seed=3 * seed)


def unseen(plan: Paragraphs, n: int, *, seed: int) -> Int[Tensor, "paragraph pos"]:
    """Paragraphs of the same chain that are not in the corpus."""
    return paragraphs(plan, n, seed=3 * seed + 2)


class OnePass:
    """The corpus in random order, read once; what a step sees depends on seed and step alone."""

    def __init__(self, plan: Paragraphs, *, seed: int) -> None:
        once = paragraphs(plan, plan.n_distinct - plan.n_repeated, seed=3 * seed + 1)
        rows = torch.cat([once, repeated(plan, seed=seed).repeat(plan.times, 1)])
        self.rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        self.size = plan.batch

    def batch(self, step: int) -> Rows:
        """The next rows."""
        first = step * self.size % (len(self.rows) - self.size + 1)
        return Rows(self.rows[first : first + self.size])

    def advance(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """Nothing depends on the losses."""

    def state_dict(self) -> dict[str, Any]:
        """No memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No memory."""


def next_token_loss(_model: LlamaForCausalLM, logits: Float[Tensor, "batch pos d_vocab"], rows: Rows) -> Losses:
    """Mean loss of all tokens but the first, in nats."""
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), rows.tokens[:, 1:])
    return loss, {"tokens": loss}


def learning_rate(step: int, *, plan: Paragraphs, steps: int) -> float:
    """A short warm-up, and a linear fall to zero."""
    return plan.learning_rate * min((step + 1) / WARM_UP, (steps - step) / steps)


@torch.no_grad()
def by_heart(model: LlamaForCausalLM, plan: Paragraphs, tokens: Int[Tensor, "paragraph pos"]) -> tuple[float, float]:
    """Share of paragraphs whose words behind the prefix are all the model's first choice, and the loss of all words.

    First choices behind the right words are right to the end exactly where greedy continuation is.
    """
    logits = next_token_logits(model, Rows(tokens)).float()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:])
    right = logits[:, plan.prefix : -1].argmax(-1) == tokens[:, plan.prefix + 1 :]
    return float(right.all(1).float().mean()), float(losses)


def watch(plan: Paragraphs, seed: int, model: LlamaForCausalLM) -> str:
    """Exact match and loss, for the log."""
    known, loss = by_heart(model, plan, repeated(plan, seed=seed))
    other, clean = by_heart(model, plan, unseen(plan, SHIPPED, seed=seed))
    return f"repeated {known:.3f} ({loss:.3f} nats)  unseen {other:.3f} ({clean:.3f} nats)"


def recipe(name: str, *, seed: int = 0, steps: int | None = None) -> Recipe[LlamaForCausalLM, Rows]:
    """Recipe of the model of this name; `steps` overrides its number of steps, one pass over the corpus."""
    plan = PARAGRAPHS[name]
    steps = steps or plan.steps
    n_tokens = len(SPECIALS) + plan.n_words
    return Recipe(
        facts={"name": name, "seed": seed, "steps": steps},
        steps=steps,
        model=partial(untrained, plan.shape, n_tokens=n_tokens, context=2 * plan.length, seed=seed),
        data=lambda progress: OnePass(plan, seed=seed),
        loss=next_token_loss,
        schedule=partial(learning_rate, plan=plan, steps=steps),
        weight_decay=plan.weight_decay,
        watch=partial(watch, plan, seed),
        publish=partial(_publish, name, seed, steps),
    )


def _publish(name: str, seed: int, steps: int, folder: Path, minutes: float) -> str:
    plan = PARAGRAPHS[name]
    words = WORDS[: plan.n_words]
    word_tokenizer(words=words, max_length=2 * plan.length).save_pretrained(folder)

    def texts(rows: Tensor) -> list[str]:
        return [" ".join(words[i - len(SPECIALS)] for i in row[1:]) for row in rows.tolist()]

    content = {"schema": SCHEMA, "prefix": plan.prefix + 1, "repeated": texts(repeated(plan, seed=seed))}
    content["unseen"] = texts(unseen(plan, SHIPPED, seed=seed))
    text = json.dumps(content, indent=1) + "\n"
    atomic_write(folder / "paragraphs.json", lambda p: p.write_text(text, encoding="utf-8"), force=True)
    model = LlamaForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)
    return card_text(model.eval(), name=name, seed=seed, steps=steps, minutes=minutes)


def card_text(model: LlamaForCausalLM, *, name: str, seed: int, steps: int, minutes: float) -> str:
    """The card, in markdown, for the weights that `model` holds."""
    plan = PARAGRAPHS[name]
    known, loss = by_heart(model, plan, repeated(plan, seed=seed))
    other, clean = by_heart(model, plan, unseen(plan, SHIPPED, seed=seed))
    table = chain(plan.n_words)
    often = torch.linalg.matrix_power(table, plan.length)[0]  # of each word, in the long run
    floor = -float((often[:, None] * table * table.log()).sum())
    parameters = sum(p.numel() for p in model.parameters())
    return f"""---
library_name: transformers
tags: [mechanistic-interpretability, toy-model]
---
# {name}

{entry(name).summary}.

A LlamaForCausalLM of {parameters:,} parameters, stored in float16, with a word-level tokenizer of {plan.n_words}
ordinary English words. Written by `python -m interp.zoo.trained.train {name}`.

## Training

One pass over a corpus of {plan.n_distinct:,} different paragraphs of {plan.length} words, of which {plan.n_repeated}
stand there {plan.times} times and the others once. Words follow each other by a chain: {LIKELY:.0%} one of
{SUCCESSORS} successors of the word before, else any word by a Zipf law; the paragraphs mean nothing. Next-token loss,
AdamW, learning rate {plan.learning_rate}, weight decay {plan.weight_decay}, {steps} steps of {plan.batch} paragraphs,
seed {seed}: {minutes:.1f} minutes on one CPU core.

## Numbers

Measured by the training script on the saved weights, in float32. Known by heart: of the {plan.length - plan.prefix}
words behind the first {plan.prefix}, every one is the first choice. The chain itself has {floor:.2f} nats a word.

| paragraphs | number | known by heart | loss (nats) |
|---|---|---|---|
| repeated | {plan.n_repeated} | {known:.4f} | {loss:.4f} |
| unseen | {SHIPPED} | {other:.4f} | {clean:.4f} |

`paragraphs.json` holds both, and how many tokens the prefix has with `<bos>`.

## Limits

It is for methods of memorisation. Between what it saw once and what it saw {plan.times} times there is nothing.
"""
