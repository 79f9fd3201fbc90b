"""Accuracy of a skill on held-out items, and the contrast that the literature reports."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.errors import InterpError
from interp.zoo.trained.skills import Item, Split, skill, skill_items
from interp.zoo.trained.skills.vocabulary import index

BATCH = 32


def padded_ids(items: list[Item]) -> Int[Tensor, "batch pos"]:
    """Items as one batch, padded on the right, where a causal model cannot see it."""
    length = max(len(item.tokens) for item in items)
    pad = index()["<pad>"]
    return torch.tensor([[*item.tokens, *[pad] * (length - len(item.tokens))] for item in items])


def _contrast(logits: Float[Tensor, " d_vocab"], right: tuple[int, ...], wrong: tuple[int, ...], *, kind: str) -> float:
    if kind == "logit difference":
        return (logits[list(right)].mean() - logits[list(wrong)].mean()).item()
    probability = logits.softmax(-1)
    return (probability[list(right)].sum() - probability[list(wrong)].sum()).item()


@torch.no_grad()
def skill_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    *,
    n: int = 128,
    seed: int = 10_000,
    split: Split = "held-out",
) -> dict[str, float]:
    """Greedy accuracy over all judged places of `n` items, and their mean loss in nats.

    Beside `accuracy`, `loss`, `n` (items) and `n_judged` (places), IOI has `logit difference`
    (answer minus the other name, mean) and greater-than `probability difference` (summed over
    later years, minus the others). Raises InterpError where the tokenizer is not the skills' own.
    """
    if tokenizer is not None and tokenizer.get_vocab() != index():
        raise InterpError("the skills are written in the tokens of the rich zoo model; this tokenizer has others")
    spec = skill(name)
    items = sorted(skill_items(name, n=n, seed=seed, split=split), key=lambda item: len(item.tokens))
    hits: list[bool] = []
    losses: list[float] = []
    contrasts: list[float] = []
    for start in range(0, n, BATCH):
        chunk = items[start : start + BATCH]
        tokens = padded_ids(chunk).to(model.device)
        logits = model(tokens, use_cache=False).logits.float().cpu()
        for item, row in zip(chunk, logits, strict=True):
            at = row[torch.tensor(item.places) - 1]
            targets = torch.tensor([item.tokens[place] for place in item.places])
            losses += torch.nn.functional.cross_entropy(at, targets, reduction="none").tolist()
            hits += [best in right for best, right in zip(at.argmax(-1).tolist(), item.answers, strict=True)]
            if spec.contrast is not None:
                triples = zip(at, item.answers, item.foils, strict=True)
                contrasts += [_contrast(x, right, wrong, kind=spec.contrast) for x, right, wrong in triples]
    scores = {"accuracy": sum(hits) / len(hits), "loss": sum(losses) / len(losses)}
    if spec.contrast is not None:
        scores[spec.contrast] = sum(contrasts) / len(contrasts)
    return {**scores, "n": float(n), "n_judged": float(len(hits))}
