"""The recipe of the two models of the bigram-backcopy task, and what is measured of their sinks.

Tokens follow one another by a table of bigrams, but behind a trigger the token before the trigger comes again (Guo et
al. 2024, arXiv 2410.13835). A head has work at triggers alone. With a softmax it has to put its attention somewhere at
all other tokens, and learns to rest on `<bos>`, whose value shrinks; with ReLU attention it need not.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from interp.zoo import entry
from interp.zoo.relu_llama import ReluLlamaConfig, ReluLlamaForCausalLM
from interp.zoo.trained.recipe import Losses, Recipe
from interp.zoo.trained.tokenizer import SPECIALS, word_tokenizer
from interp.zoo.trained.words import WORDS

CURVE = "curve.csv"
"""What is measured of each checkpoint, beside the weights."""
N_WORDS, N_TRIGGERS, LENGTH, BATCH = 32, 3, 64, 64
SHARPNESS = 2.0
"""Standard deviation of the logits of the table of bigrams."""
TEST_PROMPTS = 64
WARM_UP = 20
N_CHECKPOINTS = 10
SHAPE: dict[str, Any] = dict(
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=64,
    intermediate_size=128,
)


@dataclass(frozen=True)
class Backcopy:
    """Kind of attention and training of a model of bigrams and backcopies; with a seed it fixes a training run."""

    relu: bool
    steps: int = 1000
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4


BACKCOPY = {"bigram-backcopy": Backcopy(relu=False), "bigram-backcopy-relu": Backcopy(relu=True)}


@dataclass(frozen=True, eq=False)
class Language:
    """The table of bigrams, over words 0 to `N_WORDS` - 1.

    Attributes:
        start: how often a word comes first (never a trigger).
        follows: row w, what comes behind w; what is behind a trigger is not in the table.
        triggers: the commonest words.
    """

    start: Float[Tensor, " word"]
    follows: Float[Tensor, "word next"]
    triggers: Int[Tensor, " trigger"]


def language() -> Language:
    """The same table for both models, drawn from a seed."""
    generator = torch.Generator().manual_seed(0)
    popularity = torch.randn(N_WORDS, generator=generator, dtype=torch.float64)
    follows = (SHARPNESS * torch.randn(N_WORDS, N_WORDS, generator=generator, dtype=torch.float64) + popularity).softmax(1)
    often = torch.linalg.matrix_power(follows, 64)[0]
    triggers = often.topk(N_TRIGGERS).indices
    start = often.index_fill(0, triggers, 0.0)
    return Language(start / start.sum(), follows, triggers)


@dataclass(frozen=True, eq=False)
class Text:
    """`<bos>` and words of the language."""

    tokens: Int[Tensor, "batch pos"]


def draw(told: Language, n: int, generator: torch.Generator, *, length: int = LENGTH) -> Text:
    """`n` prompts of `length` tokens."""
    words = [torch.multinomial(told.start.expand(n, -1), 1, generator=generator)[:, 0]]
    before = words[0]
    while len(words) < length - 1:
        last = words[-1]
        by_table = torch.multinomial(told.follows[last], 1, generator=generator)[:, 0]
        words.append(torch.where(torch.isin(last, told.triggers), before, by_table))
        before = last
    first = torch.full((n, 1), SPECIALS.index("<bos>"))
    return Text(torch.cat([first, torch.stack(words, 1) + len(SPECIALS)], 1))


class TextStream:
    """Batches drawn from one generator; its state is the memory."""

    def __init__(self, *, seed: int) -> None:
        self.language = language()
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, step: int) -> Text:
        """Fresh prompts."""
        return draw(self.language, BATCH, self.generator)

    def advance(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """Nothing depends on the losses."""

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing from a state."""
        self.generator.set_state(state["generator"])


def at_trigger(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Where the language has a trigger."""
    return torch.isin(tokens - len(SPECIALS), language().triggers)


def build(plan: Backcopy, *, seed: int) -> LlamaForCausalLM:
    """The untrained model, in float32."""
    torch.manual_seed(seed)
    make, model = (ReluLlamaConfig, ReluLlamaForCausalLM) if plan.relu else (LlamaConfig, LlamaForCausalLM)
    special = {f"{name}_token_id": SPECIALS.index(f"<{name}>") for name in ("bos", "eos", "pad")}
    sizes: dict[str, Any] = {"vocab_size": len(SPECIALS) + N_WORDS, "max_position_embeddings": 2 * LENGTH}
    config = make(**SHAPE, **sizes, **special, tie_word_embeddings=False)
    config._attn_implementation = "eager"
    return model(config)


def text_loss(_model: Any, logits: Float[Tensor, "batch pos d_vocab"], text: Text) -> Losses:
    """Next-token loss in nats at every token but `<bos>`, and its parts at triggers and elsewhere."""
    losses = torch.nn.functional.cross_entropy(logits[:, 1:-1].transpose(1, 2), text.tokens[:, 2:], reduction="none")
    triggers = at_trigger(text.tokens[:, 1:-1])
    return losses.mean(), {"backcopy": losses[triggers].mean(), "bigrams": losses[~triggers].mean()}


@torch.no_grad()
def sink_scores(model: LlamaForCausalLM, *, seed: int = 1, n: int = TEST_PROMPTS) -> dict[str, float]:
    """What the one head does on fresh prompts, means over its queries and in nats:

      sink_elsewhere, sink_at_triggers  attention on `<bos>` of queries that are no trigger (`<bos>` left out) and are;
      backcopy_attention                of triggers, on the token before;
      value_ratio                       ||v|| of `<bos>` over its mean at all other tokens;
      backcopy_loss, bigram_loss        next-token loss behind triggers and elsewhere, in nats.
    """
    text = draw(language(), n, torch.Generator().manual_seed(seed))
    values: list[Tensor] = []
    layer = model.model.layers[0].self_attn
    with layer.v_proj.register_forward_hook(lambda _m, _i, v: values.append(v)):
        out = model(text.tokens, use_cache=False, output_attentions=True)
    pattern = out.attentions[0][:, 0]
    triggers = at_trigger(text.tokens)
    elsewhere = ~triggers
    elsewhere[:, 0] = False
    back = torch.nn.functional.pad(pattern.diagonal(-1, 1, 2), (1, 0))
    norms = values[0].norm(dim=-1)
    _, losses = text_loss(model, out.logits, text)
    scores = {
        "sink_elsewhere": pattern[..., 0][elsewhere].mean(),
        "sink_at_triggers": pattern[..., 0][triggers].mean(),
        "backcopy_attention": back[triggers].mean(),
        "value_ratio": norms[:, 0].mean() / norms[:, 1:].mean(),
        "backcopy_loss": losses["backcopy"],
        "bigram_loss": losses["bigrams"],
    }
    return {name: float(x) for name, x in scores.items()}


def least_loss() -> float:
    """Loss in nats that the table itself leaves where no trigger is: the mean entropy of its rows, by how often each."""
    told = language()
    text = draw(told, 512, torch.Generator().manual_seed(2)).tokens[:, 1:-1]
    words = text[~at_trigger(text)] - len(SPECIALS)
    return float(torch.special.entr(told.follows).sum(1)[words].mean())


def learning_rate(step: int, *, plan: Backcopy) -> float:
    """A short linear warm-up and a plateau."""
    return plan.learning_rate * min(1.0, (step + 1) / WARM_UP)


def watch(model: LlamaForCausalLM) -> str:
    """All scores, for the log."""
    return "  ".join(f"{name} {x:.3f}" for name, x in sink_scores(model).items())


def recipe(name: str, *, seed: int = 0, steps: int | None = None) -> Recipe[LlamaForCausalLM, Text]:
    """Recipe of the model of this name; `steps` overrides its number of steps."""
    plan = BACKCOPY[name]
    steps = steps or plan.steps
    kept = sorted({round(steps * i / N_CHECKPOINTS) for i in range(N_CHECKPOINTS + 1)})
    return Recipe(
        facts={"name": name, "seed": seed, "steps": steps},
        steps=steps,
        model=partial(build, plan, seed=seed),
        data=lambda progress: TextStream(seed=seed),
        loss=text_loss,
        schedule=partial(learning_rate, plan=plan),
        weight_decay=plan.weight_decay,
        checkpoints=tuple(kept),
        watch=watch,
        publish=partial(_publish, name, seed, steps),
    )
