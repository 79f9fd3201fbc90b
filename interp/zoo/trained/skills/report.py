"""The card of the rich model: what it was trained on, and every skill measured on held-out items."""

from __future__ import annotations

import platform

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from interp.zoo.trained.skills import SKILLS
from interp.zoo.trained.skills.judge import skill_accuracy

SkillScores = dict[str, dict[str, float]]


def skill_scores(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, n: int = 256) -> SkillScores:
    """`skill_accuracy` of every skill."""
    return {name: skill_accuracy(model, tokenizer, name, n=n) for name in SKILLS}


def failures(scores: SkillScores) -> list[str]:
    """The promises that are not kept, one line each; empty where all are."""
    misses = []
    for name, spec in SKILLS.items():
        score = scores[name]
        if spec.target is not None and score["accuracy"] < spec.target:
            misses.append(f"{name}: accuracy {score['accuracy']:.3f} < {spec.target}")
        if spec.contrast and spec.contrast_target is not None and score[spec.contrast] <= spec.contrast_target:
            misses.append(f"{name}: {spec.contrast} {score[spec.contrast]:.3f} <= {spec.contrast_target}")
    return misses


def skill_table(scores: SkillScores) -> str:
    """One row for each skill."""
    lines = [
        "| skill | what | accuracy | promised | loss (nats) | contrast | places |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, spec in SKILLS.items():
        score = scores[name]
        contrast = "" if spec.contrast is None else f"{spec.contrast} {score[spec.contrast]:.2f}"
        target = "" if spec.target is None else f"{spec.target}"
        if spec.contrast_target is not None:
            target = f"{target}, > {spec.contrast_target}".removeprefix(", ")
        cells = (name, spec.summary, f"{score['accuracy']:.3f}", target, f"{score['loss']:.3f}", contrast)
        lines.append("| " + " | ".join(cells) + f" | {score['n_judged']:.0f} |")
    return "\n".join(lines)


def card_text(
    model: LlamaForCausalLM, scores: SkillScores, *, title: str, run: dict[str, object], minutes: float, command: str
) -> str:
    """The card, in markdown, for the weights that were measured."""
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    facts = ", ".join(f"{key} {value}" for key, value in run.items())
    misses = failures(scores)
    verdict = "All promises are kept." if not misses else "Not kept: " + "; ".join(misses) + "."
    return f"""---
library_name: transformers
tags: [mechanistic-interpretability, toy-model]
---
# {title}

A LlamaForCausalLM of {parameters:,} parameters, stored in float16: {config.num_hidden_layers} layers, width
{config.hidden_size}, {config.num_attention_heads} heads of {config.head_dim} over
{config.num_key_value_heads} key-value heads, rotary positions, {config.vocab_size} tokens. It has been taught a
few behaviours whose mechanisms are studied in larger models, all on invented or generated data, and
the sources of Python's standard library. Written by `{command}`.

## Training

First repeated random segments alone, then every skill mixed in rows of 256 tokens; the loss is the
mean over the skills of their losses. AdamW with a cosine; {facts}.
{minutes:.0f} minutes on {torch.get_num_threads()} CPU thread(s), Python {platform.python_version()}
(its library is the corpus), torch {torch.__version__}.

## Held-out numbers

Measured by the training script on the saved weights, in float32, on {scores["ioi"]["n"]:.0f} held-out items
for each skill. Accuracy is greedy, over all judged places. {verdict}

{skill_table(scores)}

## Limits

It knows these skills and little else; its text is not language. Roles are learned, hence redundant
and not exactly known: where exact truth is needed, use the planted models.{_silent(run)}
"""


def _silent(run: dict[str, object]) -> str:
    """Paragraph of the card on random controls under the penalty on heads."""
    if not run["penalty"]:
        return ""
    return """ A concave penalty on the
query and output weights of every head was on until 70% of the steps, so that roles settle in few heads and
the others fall silent: as random controls silent heads are easy ones."""
