"""Card of a copying model: its README, with numbers measured on the model that is saved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from interp.components import head_names
from interp.zoo import entry
from interp.zoo.trained.measure import head_scores, repeated_tokens, second_copy_scores, zeroed
from interp.zoo.trained.plan import Copying

HELD_OUT_SEED = 10_000
BATCH = 64
MAP_PERIOD = 24
"""Block length of the score maps."""
THRESHOLD = 0.3
"""Induction score from which a head belongs to the set that is zeroed."""
N_RANDOM = 10

Heads = list[tuple[int, int]]


@dataclass(frozen=True)
class TrainingFacts:
    """The facts of a training run that the card states."""

    name: str
    seed: int
    steps: int
    minutes: float
    threads: int


def held_out_blocks(plan: Copying, *, period: int) -> Int[Tensor, "batch pos"]:
    """Two-copy sequences from a generator that training never used."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + period)
    return repeated_tokens(batch=BATCH, period=period, repeats=2, n_words=plan.n_words, generator=generator)


def period_table(model: LlamaForCausalLM, plan: Copying) -> str:
    """Accuracy, loss and the best head of two kinds, for every test period of the plan."""
    lines = [
        "| T | accuracy | loss (nats) | best induction head | best previous-token head |",
        "|---|---|---|---|---|",
    ]
    for period in plan.test_periods:
        tokens = held_out_blocks(plan, period=period)
        copy = second_copy_scores(model, tokens, period=period)
        scores = head_scores(model, tokens, period=period)
        best = " | ".join(f"{scores[k].max():.3f}" for k in ("induction", "previous"))
        lines.append(f"| {period} | {copy['accuracy']:.3f} | {copy['loss']:.3f} | {best} |")
    return "\n".join(lines)


def score_maps(scores: dict[str, Float[Tensor, "layer head"]]) -> str:
    """One small table of layers by heads per score."""
    blocks = []
    for name, values in scores.items():
        heads = range(values.shape[1])
        lines = [f"| {name} | " + " | ".join(f"H{h}" for h in heads) + " |"]
        lines.append("|---" * (values.shape[1] + 1) + "|")
        for layer, row in enumerate(values.tolist()):
            lines.append(f"| L{layer} | " + " | ".join(f"{x:.2f}" for x in row) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def random_sets(heads: Heads, *, n_heads: int, generator: torch.Generator) -> list[Heads]:
    """Random sets with as many heads per layer as `heads` and none of its heads; [] if too few."""
    sets: list[Heads] = []
    layers = sorted({layer for layer, _ in heads})
    for _ in range(N_RANDOM):
        sample: Heads = []
        for layer in layers:
            size = sum(at == layer for at, _ in heads)
            others = [h for h in range(n_heads) if (layer, h) not in heads]
            if len(others) < size:
                return []
            order = torch.randperm(len(others), generator=generator)[:size]
            sample += [(layer, others[i]) for i in order.tolist()]
        sets.append(sample)
    return sets


def causal_lines(model: LlamaForCausalLM, plan: Copying, scores: dict[str, Float[Tensor, "layer head"]]) -> str:
    """Second-copy accuracy with sets of heads zeroed, beside matched random sets."""
    tokens = held_out_blocks(plan, period=MAP_PERIOD)
    n_heads = model.config.num_attention_heads
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)

    def accuracy(heads: Heads) -> float:
        with zeroed(model, heads):
            return second_copy_scores(model, tokens, period=MAP_PERIOD)["accuracy"]

    lines = [f"- nothing: {accuracy([]):.3f}"]
    for role, kind in (("induction", "induction"), ("previous-token", "previous")):
        members = [(int(a), int(b)) for a, b in (scores[kind] >= THRESHOLD).nonzero()]
        if not members:
            continue
        names = ", ".join(head_names(members))
        random = [accuracy(heads) for heads in random_sets(members, n_heads=n_heads, generator=generator)]
        beside = (
            f"{N_RANDOM} random sets of as many other heads in the same layers: mean "
            f"{sum(random) / N_RANDOM:.3f}, lowest {min(random):.3f}"
            if random
            else "too few other heads in these layers for a matched random set"
        )
        lines.append(f"- {role} heads (score >= {THRESHOLD}: {names}): {accuracy(members):.3f}; {beside}")
    return "\n".join(lines)


def card_text(model: LlamaForCausalLM, *, run: TrainingFacts, plan: Copying) -> str:
    """The card, in markdown, for the weights that `model` holds."""
    scores = head_scores(model, held_out_blocks(plan, period=MAP_PERIOD), period=MAP_PERIOD)
    parameters = sum(p.numel() for p in model.parameters())
    cores = "one CPU core" if run.threads == 1 else f"{run.threads} CPU threads"
    return f"""---
library_name: transformers
tags: [mechanistic-interpretability, toy-model]
---
# {run.name}

{entry(run.name).summary}.

A LlamaForCausalLM of {parameters:,} parameters, stored in float16, with a word-level tokenizer of
{plan.n_words} ordinary English words. Written by `python -m interp.zoo.trained.train {run.name}`.

## Training

Sequences: `<bos>` and a block of T distinct random words, repeated.
{plan.data}
Loss: next token from the second copy on, plus a tenth of the first copy's.
AdamW, learning rate {plan.learning_rate}, weight decay {plan.weight_decay}, about
{plan.tokens_per_step} tokens a step, {run.steps} steps, seed {run.seed}: {run.minutes:.1f} minutes on {cores}.

## Held-out numbers

Measured by the training script on the saved weights, in float32: {BATCH} new sequences of two
copies for each T. Accuracy is greedy, on the second copy without its first token. A head's score
is its mean attention probability over the queries i of the second copy: previous A[i, i-1],
duplicate A[i, i-T], induction A[i, i-T+1], first A[i, 0].

{period_table(model, plan)}

Scores of every head at T = {MAP_PERIOD}:

{score_maps(scores)}

Accuracy at T = {MAP_PERIOD} with sets of heads zeroed:

{causal_lines(model, plan, scores)}

## Limits

{plan.limits}
"""
