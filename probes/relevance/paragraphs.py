"""Paragraphs that a model may know by heart: which it continues to the last word, its losses, and what breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import NotApplicable, TaskError
from interp.model import Model
from interp.shapes import brief
from interp.tasks.source import checkpoint_paragraphs
from interp.tokens.losses import token_losses

ROWS = 64
"""Of one forward pass."""
SHORTEST = 4
"""Tokens of a paragraph."""


@dataclass(frozen=True, eq=False)
class Paragraphs:
    """Paragraphs of one model, padding on the right.

    Attributes:
        batch: ids and mask.
        start: tokens of each one's prefix; what stands behind it is the continuation.
    """

    batch: Batch
    start: Int[Tensor, " paragraph"]

    __repr__ = brief

    @classmethod
    def of(cls, model: Model, prompts: Prompts, prefix: int | None) -> Paragraphs:
        """Prefixes of `prefix` tokens (BOS included), or half of each paragraph.

        Raises:
            TaskError: a paragraph of fewer than four tokens, or without a token behind its prefix.
        """
        batch = model.batch(prompts).to("cpu").padded_on("right")
        length = batch.mask.sum(1)
        if int(length.min()) < SHORTEST:
            raise TaskError(f"a paragraph has {int(length.min())} tokens: {SHORTEST} at least")
        start = length // 2 if prefix is None else torch.full_like(length, prefix)
        if int(start.min()) < 1 or bool((start >= length).any()):
            raise TaskError(
                f"prefix {prefix}: from 1 to {int(length.min()) - 1}, the shortest paragraph less one token"
            )
        return cls(batch, start)

    def __len__(self) -> int:
        return len(self.start)

    def select(self, rows: Sequence[int] | Int[Tensor, " some"] | slice) -> Paragraphs:
        """Some of them."""
        index = torch.arange(len(self))[rows]
        return Paragraphs(Batch(self.batch.ids[index], self.batch.mask[index]), self.start[index])

    @property
    def behind(self) -> Bool[Tensor, "paragraph next"]:
        """Columns of `token_losses` that are of the continuation."""
        column = torch.arange(1, self.batch.ids.shape[1])
        return (column >= self.start[:, None]) & self.batch.mask[:, 1:]

    def losses(self, logits: Float[Tensor, "paragraph pos d_vocab"]) -> Float[Tensor, " paragraph"]:
        """Mean of -log p(token | all before it) over the continuation, nats."""
        losses = token_losses(logits, self.batch.ids, self.batch.mask)
        behind = self.behind.to(losses.device)
        return torch.where(behind, losses, 0.0).sum(1) / behind.sum(1)

    def known(self, logits: Float[Tensor, "paragraph pos d_vocab"]) -> Bool[Tensor, " paragraph"]:
        """Whether every token of the continuation is the first choice: so is greedy continuation right to the end."""
        right = logits[:, :-1].argmax(-1).cpu() == self.batch.ids[:, 1:]
        return (right | ~self.behind).all(1)

    @torch.no_grad()
    def measure(
        self, model: Model, edits: Sequence[Edit] = ()
    ) -> tuple[Bool[np.ndarray, " paragraph"], Float[np.ndarray, " paragraph"]]:
        """`known` and `losses` of the model under edits."""
        known, losses = [], []
        for rows in torch.arange(len(self)).split(ROWS):
            part = self.select(rows)
            logits = model.run(part.batch, edits=edits).logits
            assert logits is not None  # no `stop`
            known.append(part.known(logits))
            losses.append(part.losses(logits).cpu())
        return torch.cat(known).numpy(), torch.cat(losses).double().numpy()

    def swapped(self, at: int, tokens: Int[Tensor, " paragraph"]) -> Paragraphs:
        """The same with another token at a position of the prefix."""
        ids = self.batch.ids.clone()
        ids[:, at] = tokens
        return Paragraphs(Batch(ids, self.batch.mask), self.start)


def collect(
    model: Model, prompts: Prompts | None, others: Prompts | None, prefix: int | None, *, n: int, seed: int
) -> tuple[Paragraphs, Paragraphs, dict[str, object]]:
    """Up to n paragraphs that the model knows by heart, up to n that it does not, and what was found of all.

    Raises:
        NotApplicable: no paragraphs to try, or fewer than four of either kind.
    """
    if prompts is None:
        own = checkpoint_paragraphs(model)
        if own is None:
            raise NotApplicable("the checkpoint brings no paragraphs along: give `prompts`, texts that it may know")
        prompts, others, prefix = own["repeated"], own["unseen"], own.get("prefix") if prefix is None else prefix
    candidates = Paragraphs.of(model, prompts, prefix)
    known, _ = candidates.measure(model)
    rest = candidates.select(torch.from_numpy(~known).nonzero()[:, 0])
    facts: dict[str, object] = {"candidates": len(candidates), "exact_match": float(known.mean())}
    if others is not None:
        rest = Paragraphs.of(model, others, prefix)
        new, _ = rest.measure(model)
        rest = rest.select(torch.from_numpy(~new).nonzero()[:, 0])
        facts |= {"others": len(new), "exact_match_others": float(new.mean())}
    rng = np.random.default_rng(seed)
    parts = []
    for part, what in ((candidates.select(torch.from_numpy(known).nonzero()[:, 0]), "known by heart"), (rest, "not")):
        if len(part) < SHORTEST:
            raise NotApplicable(
                f"of {len(candidates)} paragraphs the model continues {int(known.sum())} to the last token, and "
                f"{len(part)} are {what}: {SHORTEST} of each are needed; give other `prompts`, or a longer `prefix`"
                + ("" if others is not None or what != "not" else ", or `others` that it has not seen")
            )
        parts.append(part.select(torch.from_numpy(np.sort(rng.permutation(len(part))[:n]))))
    return parts[0], parts[1], facts | {"known": len(parts[0]), "not_known": len(parts[1])}


def joined(one: Paragraphs, two: Paragraphs) -> Paragraphs:
    """Both, one before the other."""
    width = max(one.batch.ids.shape[1], two.batch.ids.shape[1])
    pads = [(0, width - p.batch.ids.shape[1]) for p in (one, two)]
    ids = [torch.nn.functional.pad(p.batch.ids, pad) for p, pad in zip((one, two), pads, strict=True)]
    masks = [torch.nn.functional.pad(p.batch.mask, pad) for p, pad in zip((one, two), pads, strict=True)]
    return Paragraphs(Batch(torch.cat(ids), torch.cat(masks)), torch.cat([one.start, two.start]))
