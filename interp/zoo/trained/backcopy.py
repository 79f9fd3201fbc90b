"""The recipe of the two models of the bigram-backcopy task, and what is measured of their sinks.

Tokens follow one another by a table of bigrams, but behind a trigger the token before the trigger comes again (Guo et
al. 2024, arXiv 2410.13835). A head has work at triggers alone. With a softmax it has to put its attention somewhere at
all other tokens, and learns to rest on `<bos>`, whose value shrinks; with ReLU attention it need not.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from interp.files import atomic_write
from interp.zoo import entry
from interp.zoo.relu_llama import ReluLlamaConfig, ReluLlamaForCausalLM
from interp.zoo.trained.recipe import Losses, Recipe
from interp.zoo.trained.tokenizer import SPECIALS, word_tokenizer
from interp.zoo.trained.words import WORDS

CURVE = "curve.csv"
"""What is measured of each checkpoint, beside the weights."""
N_WORDS, N_TRIGGERS, LENGTH, BATCH = 32, 6, 64, 64
SHARPNESS, TRIGGER_LOGIT = 1.0, 1.0
"""Standard deviation of the logits of the table of bigrams, and what those of triggers have more."""
TEST_PROMPTS = 64
WARM_UP = 20
N_CHECKPOINTS = 10
SHAPE: dict[str, Any] = dict(
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=128,
    attention_bias=True,
    mlp_bias=True,
)


@dataclass(frozen=True)
class Backcopy:
    """Kind of attention and training of a model of bigrams and backcopies; with a seed it fixes a training run."""

    relu: bool
    steps: int = 600
    learning_rate: float = 1e-3
    weight_decay: float = 1.0


BACKCOPY = {"bigram-backcopy": Backcopy(relu=False), "bigram-backcopy-relu": Backcopy(relu=True)}


@dataclass(frozen=True, eq=False)
class Language:
    """The table of bigrams, over words 0 to `N_WORDS` - 1.

    Attributes:
        start: how often a word comes first (never a trigger).
        follows: row w, what comes behind w; what is behind a trigger is not in the table.
        triggers: the first words, which are commoner than the others.
    """

    start: Float[Tensor, " word"]
    follows: Float[Tensor, "word next"]
    triggers: Int[Tensor, " trigger"]


def language() -> Language:
    """The same table for both models, drawn from a seed."""
    generator = torch.Generator().manual_seed(0)
    logits = SHARPNESS * torch.randn(N_WORDS, N_WORDS, generator=generator, dtype=torch.float64)
    triggers = torch.arange(N_TRIGGERS)
    logits[:, triggers] += TRIGGER_LOGIT
    start = torch.ones(N_WORDS, dtype=torch.float64).index_fill(0, triggers, 0.0)
    return Language(start / start.sum(), logits.softmax(1), triggers)


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
    make = ReluLlamaConfig if plan.relu else LlamaConfig
    special: dict[str, Any] = {f"{name}_token_id": SPECIALS.index(f"<{name}>") for name in ("bos", "eos", "pad")}
    sizes: dict[str, Any] = {"vocab_size": len(SPECIALS) + N_WORDS, "max_position_embeddings": 2 * LENGTH}
    config = make(**SHAPE, **sizes, **special, tie_word_embeddings=False)
    config._attn_implementation = "eager"
    return ReluLlamaForCausalLM(config) if isinstance(config, ReluLlamaConfig) else LlamaForCausalLM(config)


def text_loss(_model: Any, logits: Float[Tensor, "batch pos d_vocab"], text: Text) -> Losses:
    """Next-token loss in nats at every token but `<bos>`, and its parts at triggers and elsewhere."""
    losses = torch.nn.functional.cross_entropy(logits[:, 1:-1].transpose(1, 2), text.tokens[:, 2:], reduction="none")
    triggers = at_trigger(text.tokens[:, 1:-1])
    return losses.mean(), {"backcopy": losses[triggers].mean(), "bigrams": losses[~triggers].mean()}


@torch.no_grad()
def sink_scores(model: LlamaForCausalLM, *, seed: int = 1, n: int = TEST_PROMPTS) -> dict[str, float]:
    """What the one head does on fresh prompts.

    sink_elsewhere, sink_at_triggers  attention on `<bos>` of queries that are no trigger (`<bos>` left out) and are;
    backcopy_attention                of triggers, on the token before;
    value_ratio                       ||v|| of `<bos>` over its mean at all other tokens;
    backcopy_loss, bigram_loss        next-token loss behind triggers and elsewhere, in nats.
    """
    text = draw(language(), n, torch.Generator().manual_seed(seed))
    values: list[Tensor] = []
    attention: Any = model.model.layers[0].self_attn
    with attention.v_proj.register_forward_hook(lambda _m, _i, v: values.append(v)):
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
    """Loss in nats that the table leaves where no trigger is: entropy of its rows, as often as each is read."""
    told = language()
    text = draw(told, 512, torch.Generator().manual_seed(2)).tokens[:, 1:-1]
    words = text[~at_trigger(text)] - len(SPECIALS)
    return float(torch.special.entr(told.follows).sum(1)[words].mean())


def learning_rate(step: int, *, plan: Backcopy, steps: int) -> float:
    """A short linear warm-up, then a linear fall to zero."""
    return plan.learning_rate * min((step + 1) / WARM_UP, 1 - step / steps)


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
        schedule=partial(learning_rate, plan=plan, steps=steps),
        weight_decay=plan.weight_decay,
        checkpoints=tuple(kept),
        watch=watch,
        publish=partial(_publish, name, seed, steps),
    )


@torch.no_grad()
def curve(name: str, folder: Path) -> list[dict[str, float]]:
    """`sink_scores` of each checkpoint of a run, first to last, with its step."""
    rows = []
    for weights in sorted(folder.glob("step-*/model.safetensors")):
        step = float(weights.parent.name.removeprefix("step-"))
        rows.append({"step": step} | sink_scores(saved(name, weights.parent)))
    return rows


def saved(name: str, folder: Path) -> LlamaForCausalLM:
    """The model of a folder, in float32, which gives its attention weights."""
    make = ReluLlamaForCausalLM if BACKCOPY[name].relu else LlamaForCausalLM
    return make.from_pretrained(folder, dtype="float32", attn_implementation="eager", local_files_only=True).eval()


def _publish(name: str, seed: int, steps: int, folder: Path, minutes: float) -> str:
    """Write tokenizer and curve beside the weights; the checkpoints, whose scores it holds, are left out."""
    word_tokenizer(words=WORDS, n_words=N_WORDS, max_length=2 * LENGTH).save_pretrained(folder)
    rows = curve(name, folder)
    lines = [",".join(rows[0]), *(",".join(f"{x:.4g}" for x in row.values()) for row in rows)]
    atomic_write(folder / CURVE, lambda p: p.write_text("\n".join(lines) + "\n", encoding="utf-8"), force=True)
    for checkpoint in folder.glob("step-*"):
        shutil.rmtree(checkpoint)
    return card_text(saved(name, folder), rows, name=name, seed=seed, steps=steps, minutes=minutes)


def read_curve(folder: Path) -> list[dict[str, float]]:
    """The curve that a folder of a trained model holds."""
    with (folder / CURVE).open(newline="", encoding="utf-8") as file:
        return [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]


def card_text(
    model: LlamaForCausalLM, rows: list[dict[str, float]], *, name: str, seed: int, steps: int, minutes: float
) -> str:
    """The card, in markdown, for the weights that `model` holds."""
    plan = BACKCOPY[name]
    keys = [key for key in rows[0] if key != "step"]
    lines = "\n".join(f"| {r['step']:.0f} | " + " | ".join(f"{r[key]:.3f}" for key in keys) + " |" for r in rows)
    last = " | ".join(f"{x:.3f}" for x in sink_scores(model).values())
    titles = " | ".join(rows[0])
    kind = "max(q . k, 0) weights" if plan.relu else "a softmax"
    parameters = sum(p.numel() for p in model.parameters())
    return f"""---
library_name: transformers
tags: [mechanistic-interpretability, toy-model]
---
# {name}

{entry(name).summary}.

A {type(model).__name__} of {parameters:,} parameters, one layer and one head with {kind}, stored in
float16, with a word-level tokenizer of {N_WORDS} words. Written by `python -m interp.zoo.trained.train {name}`.

## Training

`<bos>` and {LENGTH - 1} words. A word follows another by a table of bigrams drawn from a seed; behind one of
{N_TRIGGERS} triggers (the first words of the vocabulary) the word before the trigger comes again. Next-token loss on
all words; AdamW, learning rate {plan.learning_rate}, weight decay {plan.weight_decay}, batches of {BATCH}, {steps}
steps, seed {seed}: {minutes:.1f} minutes on one CPU core. After the bigram-backcopy task of Guo et al. 2024
(arXiv 2410.13835).

## Numbers

Measured by the training script on {TEST_PROMPTS} fresh prompts: the attention of the head on `<bos>` by queries that
are no trigger and by triggers, on the word before at triggers; the norm of the value of `<bos>` over the mean of the
others; losses in nats (the table leaves {least_loss():.3f} where no trigger is). Also in `{CURVE}`.

| {titles} |
|{"---|" * len(rows[0])}
{lines}
| saved | {last} |

## Limits

One head that has one thing to do. It is for methods that look at sinks and dormant heads, and for how they emerge.
"""
