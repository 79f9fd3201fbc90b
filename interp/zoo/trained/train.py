"""Train a shipped zoo model from a seed: `python -m interp.zoo.trained.train NAME --out DIR`.

`default` and `sibling` are taught many skills by `interp.zoo.trained.curriculum`. The others learn from `<bos>` and
repeated blocks of random words (`measure.repeated_tokens`); what differs between them is in
`interp.zoo.trained.recipes`.
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

from interp.zoo.trained import card, curriculum
from interp.zoo.trained.measure import repeated_tokens
from interp.zoo.trained.recipes import RECIPES, Recipe
from interp.zoo.trained.skills.plan import SIZES
from interp.zoo.trained.tokenizer import SPECIALS, word_tokenizer

log = logging.getLogger(__name__)

FIRST_COPY_WEIGHT = 0.1
"""Weight of the loss on the first copy, where only "not seen before" can be learned."""


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
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("step %d period %d loss %.3f nats", step, period, loss.item())
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Train, save in half precision, measure what was saved, write the card from it."""
    parser = argparse.ArgumentParser(prog="python -m interp.zoo.trained.train", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for size in SIZES:
        curriculum.add_arguments(names.add_parser(size, help="taught many skills"))
    for name in RECIPES:
        own = names.add_parser(name, help="taught to copy")
        own.add_argument("--out", type=Path, required=True, help="folder to write")
        own.add_argument("--seed", type=int, default=0)
        own.add_argument("--steps", type=int, help="instead of the recipe's own number")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = curriculum.make(given) if given.name in SIZES else make(given.name, given.out, given.seed, given.steps)
    sys.stdout.write(text)


def make(name: str, out: Path, seed: int, steps: int | None) -> str:
    """Train the model of a recipe into a folder; returns its card."""
    # One thread: the order of sums, hence the weights, does not depend on the number of cores.
    torch.set_num_threads(1)
    recipe = RECIPES[name]
    steps = steps or recipe.steps
    start = time.perf_counter()
    model = train(recipe, seed=seed, steps=steps)
    minutes = (time.perf_counter() - start) / 60

    model.half().save_pretrained(out)
    # safetensors writes a file that its owner alone can read; a package has to be readable by all.
    (out / "model.safetensors").chmod(0o644)
    word_tokenizer(n_words=recipe.n_words).save_pretrained(out)
    # What is measured is what is shipped: the half-precision weights, run in float32.
    run = card.Run(name=name, seed=seed, steps=steps, minutes=minutes, threads=torch.get_num_threads())
    text = card.write(model.float(), run=run, recipe=recipe)
    (out / "README.md").write_text(text)
    return text


if __name__ == "__main__":
    main()
