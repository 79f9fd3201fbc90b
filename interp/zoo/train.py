"""Train a shipped zoo model from a seed: `python -m interp.zoo.train NAME --out DIR`.

Sequences are `<bos>` and repeated blocks of random words (`measure.repeated_tokens`); what differs
between models is the architecture and the law of the block length.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from interp.zoo import card
from interp.zoo.measure import layers_of, repeated_tokens
from interp.zoo.recipes import RECIPES, Recipe
from interp.zoo.tokenizer import SPECIALS, word_tokenizer

log = logging.getLogger(__name__)

FIRST_COPY_WEIGHT = 0.1
"""Weight of the loss on the first copy, where only "not seen before" can be learned."""

PENALTY_FROM, PENALTY_TO = 0.3, 0.75
"""Fractions of the steps between which heads are penalised: copying has been learned by then, and
the heads that stay have time to sharpen after."""


def build(recipe: Recipe, *, seed: int) -> LlamaForCausalLM:
    """The untrained model of a recipe, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **recipe.shape,
        vocab_size=len(SPECIALS) + recipe.n_words,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=SPECIALS.index("<bos>"),
        eos_token_id=SPECIALS.index("<eos>"),
        pad_token_id=SPECIALS.index("<pad>"),
    )
    return LlamaForCausalLM(config)


def copy_loss(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], *, period: int
) -> Float[Tensor, ""]:
    """Next-token loss in nats on the second copy and later, plus a little of the first copy's."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    # Query period predicts the start of the second copy, which only the block length could tell.
    return losses[:, period + 1 :].mean() + FIRST_COPY_WEIGHT * losses[:, : period + 1].mean()


def head_penalty(model: LlamaForCausalLM) -> Float[Tensor, ""]:
    """Sum over heads of the square root of the norm of their query and output weights.

    Concave, so that a role which many heads could share settles in few and the others fall silent.
    """
    n_heads = model.config.num_attention_heads
    attentions = [layer.self_attn for layer in layers_of(model)]
    queries = torch.stack([a.q_proj.weight.unflatten(0, (n_heads, -1)) for a in attentions])
    outputs = torch.stack([a.o_proj.weight.unflatten(1, (n_heads, -1)) for a in attentions])
    squares = queries.square().sum((2, 3)) + outputs.square().sum((1, 3))
    return squares.pow(0.25).sum()


def train(recipe: Recipe, *, seed: int, steps: int) -> LlamaForCausalLM:
    """AdamW with a short warm-up and a cosine to zero; returns the model in eval mode."""
    model = build(recipe, seed=seed).train()
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": gains, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    warm_up = min(100, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm_up)),
        ],
        milestones=[warm_up],
    )
    for step in range(steps):
        period = recipe.period(step / steps, draw)
        repeats = draw(2, recipe.max_repeats)
        tokens = repeated_tokens(
            batch=max(8, recipe.tokens_per_step // (1 + period * repeats)),
            period=period,
            repeats=repeats,
            n_words=recipe.n_words,
            generator=generator,
        )
        loss = copy_loss(model(tokens, use_cache=False).logits, tokens, period=period)
        optimizer.zero_grad(set_to_none=True)
        if recipe.head_penalty and PENALTY_FROM <= step / steps < PENALTY_TO:
            loss = loss + recipe.head_penalty * head_penalty(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("step %d period %d loss %.3f nats", step, period, loss.item())
    return model.eval()


def main() -> None:
    """Train, save in half precision, measure what was saved, write the card from it."""
    parser = argparse.ArgumentParser(prog="python -m interp.zoo.train", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the recipe's own number")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    # One thread: the order of sums, hence the weights, does not depend on the number of cores.
    torch.set_num_threads(1)
    recipe = RECIPES[options.name]
    steps = options.steps or recipe.steps
    start = time.perf_counter()
    model = train(recipe, seed=options.seed, steps=steps)
    minutes = (time.perf_counter() - start) / 60

    model.half().save_pretrained(options.out)
    # safetensors writes a file that its owner alone can read; a package has to be readable by all.
    (options.out / "model.safetensors").chmod(0o644)
    word_tokenizer(n_words=recipe.n_words).save_pretrained(options.out)
    # What is measured is what is shipped: the half-precision weights, run in float32.
    run = card.Run(
        name=options.name,
        seed=options.seed,
        steps=steps,
        minutes=minutes,
        threads=torch.get_num_threads(),
    )
    text = card.write(model.float(), run=run, recipe=recipe)
    (options.out / "README.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
