"""The card of the rich model: what it was trained on, and every skill measured on held-out items."""

from __future__ import annotations

import platform

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from interp.zoo.trained.skills import SKILLS
from interp.zoo.trained.skills.judge import skill_accuracy

Measured = dict[str, dict[str, float]]


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, n: int = 256) -> Measured:
    """`skill_accuracy` of every skill."""
    return {name: skill_accuracy(model, tokenizer, name, n=n) for name in SKILLS}


def failures(measured: Measured) -> list[str]:
    """The promises that are not kept, one line each; empty where all are."""
    missed = []
    for name, known in SKILLS.items():
        got = measured[name]
        if known.target is not None and got["accuracy"] < known.target:
            missed.append(f"{name}: accuracy {got['accuracy']:.3f} < {known.target}")
        if known.contrast and known.contrast_target is not None and got[known.contrast] <= known.contrast_target:
            missed.append(f"{name}: {known.contrast} {got[known.contrast]:.3f} <= {known.contrast_target}")
    return missed


def skill_table(measured: Measured) -> str:
    """One row for each skill."""
    lines = [
        "| skill | what | accuracy | promised | loss (nats) | contrast | places |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, known in SKILLS.items():
        got = measured[name]
        contrast = "" if known.contrast is None else f"{known.contrast} {got[known.contrast]:.2f}"
        promised = "" if known.target is None else f"{known.target}"
        if known.contrast_target is not None:
            promised = f"{promised}, > {known.contrast_target}".removeprefix(", ")
        cells = (name, known.summary, f"{got['accuracy']:.3f}", promised, f"{got['loss']:.3f}", contrast)
        lines.append("| " + " | ".join(cells) + f" | {got['n_judged']:.0f} |")
    return "\n".join(lines)


def describe(
    model: LlamaForCausalLM, measured: Measured, *, title: str, run: dict[str, object], minutes: float, command: str
) -> str:
    """The card, in markdown, for the weights that were measured."""
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    facts = ", ".join(f"{key} {value}" for key, value in run.items())
    missed = failures(measured)
    verdict = "All promises are kept." if not missed else "Not kept: " + "; ".join(missed) + "."
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

Measured by the training script on the saved weights, in float32, on {measured["ioi"]["n"]:.0f} held-out items
for each skill. Accuracy is greedy, over all judged places. {verdict}

{skill_table(measured)}

## Limits

It knows these skills and little else; its text is not language. Roles are learned, hence redundant
and not exactly known: where exact truth is needed, use the planted models.{_silent(run)}
"""


def _silent(run: dict[str, object]) -> str:
    """What the penalty on heads does to random controls."""
    if not run["penalty"]:
        return ""
    return """ A concave penalty on the
query and output weights of every head was on until 70% of the steps, so that roles settle in few heads and
the others fall silent: as random controls silent heads are easy ones."""
