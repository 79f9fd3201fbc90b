"""The recipe of models that learn to copy: `<bos>` and repeated blocks of random words (`measure.repeated_tokens`).

What differs between them is in `interp.zoo.trained.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from interp.zoo.trained import card
from interp.zoo.trained.measure import repeated_tokens
from interp.zoo.trained.plan import COPYING, Copying
from interp.zoo.trained.recipe import Losses, Recipe
from interp.zoo.trained.tokenizer import SPECIALS, word_tokenizer
from interp.zoo.trained.untrained import untrained

FIRST_COPY_WEIGHT = 0.1
"""Weight of the loss on the first copy, where only "not seen before" can be learned."""


def build(plan: Copying, *, seed: int) -> LlamaForCausalLM:
    """The untrained model, in float32."""
    return untrained(plan.shape, n_tokens=len(SPECIALS) + plan.n_words, context=512, seed=seed)


@dataclass(frozen=True)
class Blocks:
    """One batch: a block of `period` words, again and again."""

    tokens: Int[Tensor, "batch pos"]
    period: int


class BlockStream:
    """Batches drawn from one generator; its state is the memory."""

    def __init__(self, plan: Copying, *, seed: int, steps: int) -> None:
        self.plan, self.steps = plan, steps
        self.generator = torch.Generator().manual_seed(seed)

    def _draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def batch(self, step: int) -> Blocks:
        """About `tokens_per_step` tokens, at least eight rows."""
        period = self.plan.period(step / self.steps, self._draw)
        repeats = self._draw(2, self.plan.max_repeats)
        tokens = repeated_tokens(
            batch=max(8, self.plan.tokens_per_step // (1 + period * repeats)),
            period=period,
            repeats=repeats,
            n_words=self.plan.n_words,
            generator=self.generator,
        )
        return Blocks(tokens, period)

    def advance(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """Nothing depends on the losses."""

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing from a state."""
        self.generator.set_state(state["generator"])


def copy_loss(_model: LlamaForCausalLM, logits: Float[Tensor, "batch pos d_vocab"], blocks: Blocks) -> Losses:
    """Next-token loss in nats on the second copy and later, plus a little of the first copy's."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), blocks.tokens[:, 1:], reduction="none")
    # Query period predicts the start of the second copy, which only the block length could tell.
    later, first = losses[:, blocks.period + 1 :].mean(), losses[:, : blocks.period + 1].mean()
    return later + FIRST_COPY_WEIGHT * first, {"copies": later, "first copy": first}


def learning_rates(peak: float, *, steps: int) -> list[float]:
    """Of each step: a short linear warm-up, then a cosine to zero.

    Read off torch's own schedules: they compute by recurrence, which no closed form matches to the last bit.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=peak)
    warm_up = min(100, steps // 10 + 1)
    parts = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm_up),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm_up)),
    ]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[warm_up])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def recipe(name: str, *, seed: int = 0, steps: int | None = None) -> Recipe[LlamaForCausalLM, Blocks]:
    """Recipe of the model of this name; `steps` overrides its number of steps."""
    plan = COPYING[name]
    steps = steps or plan.steps
    return Recipe(
        facts={"name": name, "seed": seed, "steps": steps},
        steps=steps,
        model=partial(build, plan, seed=seed),
        data=lambda progress: BlockStream(plan, seed=seed, steps=steps),
        loss=copy_loss,
        schedule=learning_rates(plan.learning_rate, steps=steps).__getitem__,
        weight_decay=plan.weight_decay,
        publish=partial(_publish, name, seed, steps),
    )


def _publish(name: str, seed: int, steps: int, folder: Path, minutes: float) -> str:
    plan = COPYING[name]
    word_tokenizer(n_words=plan.n_words).save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)
    run = card.TrainingFacts(name=name, seed=seed, steps=steps, minutes=minutes, threads=torch.get_num_threads())
    return card.card_text(model.eval(), run=run, plan=plan)
