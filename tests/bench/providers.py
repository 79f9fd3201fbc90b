"""Six ways to the same head scores on one GPT-2-small shape, from the plain forward pass to its competitors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import interp
from interp.attention import Entropy, KeyMass, Mean, Offset, Received, Recorder, Statistic, intercept

CONTEXT = 4096  # positions of the model: GPT-2's own 1024 would end before the lengths of interest
SHARPEN = 6.0  # factor on W_Q and W_K: at random initialisation patterns would be nearly uniform
SCORES = ("previous token", "induction", "first token")

Tokens = Int[Tensor, "batch pos"]
Scores = Float[Tensor, "score layer head"]


@dataclass(frozen=True)
class Provider:
    """A prepared way to the scores. `run` gives them (None: measures nothing), `release` frees what it kept."""

    run: Callable[[Tokens], Scores | None]
    release: Callable[[], None] = lambda: None


def gpt2_small(attention: str = "sdpa", *, context: int = CONTEXT) -> GPT2LMHeadModel:
    """GPT-2-small shape in float32 with random weights, the same at every call."""
    torch.manual_seed(0)
    config = GPT2Config(n_positions=context, attn_implementation=attention)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, : 2 * config.n_embd] *= SHARPEN
    return model


def repeated_tokens(n: int, vocabulary: int = 50257) -> Tokens:
    """One prompt: n / 2 random tokens, twice."""
    half = torch.randint(vocabulary, (1, n // 2), generator=torch.Generator().manual_seed(0))
    return torch.cat([half, half], dim=1)


def questions(n: int) -> dict[str, Statistic]:
    """The three scores as statistics, in the order of `SCORES`."""
    second_half = (torch.arange(n) >= n // 2)[None]
    first_key = (torch.arange(n) == 0)[None]
    asked = Mean(Offset(1)), Mean(Offset(n // 2 - 1), second_half), Mean(KeyMass(first_key))
    return dict(zip(SCORES, asked, strict=True))


def from_pattern(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "score head"]:
    """The same three scores of one layer, from its attention pattern."""
    back = pattern.shape[-1] // 2 - 1
    previous = pattern.diagonal(-1, 2, 3).mean(-1)
    induction = pattern.diagonal(-back, 2, 3)[..., 1:].mean(-1)  # the first entry lies before the second half
    return torch.stack([previous, induction, pattern[..., 0].mean(-1)])[:, 0]


def plain() -> Provider:
    """Transformers' forward pass with sdpa attention, logits included, nothing measured: the floor."""
    model = gpt2_small()

    def run(tokens: Tokens) -> None:
        with torch.no_grad():
            model(tokens, use_cache=False)

    return Provider(run)


def ours(*more: str) -> Provider:
    """`Model.attention`; the pass ends after the last attention. `more` adds statistics to the three."""
    model = interp.load(gpt2_small())
    extra = {"entropy": Mean(Entropy()), "received": Received()}

    def run(tokens: Tokens) -> Scores:
        asked = questions(tokens.shape[1]) | {name: extra[name] for name in more}
        answers = model.attention(tokens, asked)
        return torch.stack([answers[name][:, 0] for name in SCORES])

    return Provider(run)


def ours_with_logits() -> Provider:
    """The same statistics during a whole forward pass, logits included."""
    model = gpt2_small()

    def run(tokens: Tokens) -> Scores:
        recorder = Recorder(questions(tokens.shape[1]))
        with torch.no_grad(), intercept(model, recorder):
            model(tokens, use_cache=False)
        layers = [recorder.answers[layer] for layer in sorted(recorder.answers)]
        return torch.stack([torch.stack([answers[name][0] for answers in layers]) for name in SCORES])

    return Provider(run)


def output_attentions() -> Provider:
    """Transformers' eager attention, every pattern returned."""
    model = gpt2_small("eager")

    def run(tokens: Tokens) -> Scores:
        with torch.no_grad():
            patterns = model(tokens, use_cache=False, output_attentions=True).attentions
        if len(patterns) != model.config.n_layer:  # sdpa returns an empty tuple without a word
            raise RuntimeError(f"{len(patterns)} patterns for {model.config.n_layer} layers")
        return torch.stack([from_pattern(p) for p in patterns], dim=1)

    return Provider(run)


def transformer_lens() -> Provider:
    """TransformerBridge with a hook on each pattern; scores are taken in the hook, nothing else is stored."""
    from transformer_lens.model_bridge import TransformerBridge

    model = gpt2_small("eager")
    model.config.architectures = [type(model).__name__]
    layers = range(model.config.n_layer)
    bridge = TransformerBridge.boot_transformers(
        "local/none", hf_model=model, tokenizer=bridge_tokenizer(), device="cpu"
    )

    def run(tokens: Tokens) -> Scores:
        found: dict[str, Tensor] = {}
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]

        def take(pattern: Tensor, hook) -> None:
            found[hook.name] = from_pattern(pattern)

        with torch.no_grad():
            bridge.run_with_hooks(tokens, fwd_hooks=[(name, take) for name in names])
        return torch.stack([found[name] for name in names], dim=1)

    def release() -> None:
        for layer in layers:
            bridge.blocks[layer].attn._pattern = None  # it keeps every pattern until the next call

    return Provider(run, release)


def bridge_tokenizer() -> PreTrainedTokenizerFast:
    """Any tokenizer: the bridge does not boot without one that was read from disk. It is never used."""
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<unk>").save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


PROVIDERS: dict[str, Callable[[], Provider]] = {
    "plain": plain,
    "ours": ours,
    "ours+logits": ours_with_logits,
    "ours+entropy": lambda: ours("entropy", "received"),
    "output_attentions": output_attentions,
    "transformer_lens": transformer_lens,
}


def reading_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with whole words for all that the shipped tasks say, and numbers, as GPT-2's has."""
    from tokenizers import decoders, pre_tokenizers, trainers

    from interp import data
    from interp.texts import sources

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    files = sorted(p for p in data.root().rglob("*") if p.suffix in (".json", ".csv", ".txt"))
    words = {w for p in files for w in re.findall(r"[A-Za-z0-9]+", p.read_text())} | {str(i) for i in range(1000)}
    spelled = [text for w in sorted(words) for text in (w, f" {w}")] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=50256,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    raw.train_from_iterator([*sources("held-out").values(), *spelled], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
