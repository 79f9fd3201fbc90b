"""Prompts that analyses measure on: a caller's own, random tokens, repeated blocks, or stretches of natural text.

A `PromptSet` knows which of its rows count as queries; `visible_keys` says how many keys each of them sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import tasks
from interp import texts as corpus
from interp.batch import Batch, Prompts
from interp.errors import NotApplicable, TaskError
from interp.measurement.scoring import T0
from interp.model import Model
from interp.results import stats
from interp.several import several
from interp.shapes import brief
from interp.tasks import Repeats

UNKNOWN = 0.2  # share of unknown tokens above which a tokenizer cannot read a text
SHORTEST_TEXT = 24  # tokens that a stretch must have to be a text


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts, where their own text starts, and what provenance says of them.

    Attributes:
        batch: ids and mask, [batch pos].
        start: 1 where a BOS stands before the text, else 0.
        data: task, sizes, BOS policy and hash of the ids: for `Findings.data`.
    """

    batch: Batch
    start: int
    data: dict[str, object]

    __repr__ = brief

    def rows(self, *, lowest: int = 0) -> Bool[Tensor, "batch pos"]:
        """Real query rows at position `lowest` or later of their own prompt, the first T0 left out."""
        return self.batch.mask & (self.batch.positions >= max(lowest, T0, self.start + 1))

    def cut(self) -> PromptSet:
        """All prompts as long as the shortest, their ends and spans left out; padding has to stand on the right."""
        length = int(self.batch.mask.sum(1).min())
        batch = replace(self.batch, ids=self.batch.ids[:, :length], mask=self.batch.mask[:, :length], spans={})
        return replace(self, batch=batch, data=self.data | {"length": length, "sha256": tasks.fingerprint([batch])})


def prompt_set(
    model: Model, prompts: Prompts | None, *, n_prompts: int, length: int, bos: str, seed: int, least: int = 16
) -> PromptSet:
    """The caller's prompts as a batch; without any, distinct random tokens (shortened to context and vocabulary).

    Args:
        model: any loaded model.
        prompts: text or ids, or None.
        n_prompts: random prompts.
        length: tokens of each, BOS included.
        bos: "default", "forced" or "none", for random prompts.
        seed: of random prompts.
        least: tokens that every prompt must have.

    Raises:
        NotApplicable: context and vocabulary leave no room for `least` tokens.
        TaskError: prompts shorter than that.
    """
    start = 0 if tasks.bos_id(model, bos) is None else 1
    if prompts is None:
        length = min(length, model.info.context or length, len(tasks.ordinary_tokens(model)) + start)
        _long_enough(length, least, refuse=NotApplicable)
        batch = tasks.random_prompts(model, n=n_prompts, length=length, bos=bos, seed=seed)
        task = "random tokens"
    else:
        batch, task = model.batch(prompts).to("cpu"), "prompts given"
        first = tasks.bos_id(model, "default")
        start = int(first is not None and bool((batch.ids[range(len(batch.ids)), batch.first] == first).all()))
        _long_enough(int(batch.mask.sum(1).min()), least, refuse=TaskError)
    data: dict[str, object] = {"task": task, "n": len(batch.ids), "length": batch.ids.shape[1], "bos": bos}
    return PromptSet(batch, start, data | {"sha256": tasks.fingerprint([batch])})


def own_prompts(model: Model, prompts: Prompts, *, least: int) -> PromptSet:
    """A caller's prompts as `prompt_set` reads them, padding on the right, so that a token's column is its position.

    Raises:
        TaskError: prompts of fewer than `least` tokens.
    """
    data = prompt_set(model, prompts, n_prompts=1, length=least, bos="default", seed=0, least=least)
    return replace(data, batch=data.batch.padded_on("right"))


def text_prompts(model: Model, texts: Sequence[str] | None, *, n: int, length: int, bos: str, seed: int) -> PromptSet:
    """`n` stretches of `length` tokens (BOS included) at random places of texts that are long enough.

    Default texts: modules of the Python standard library of which the zoo's models saw nothing, English and code mixed.

    Raises:
        NotApplicable: no tokenizer, or none of the default texts can be read with it (a closed vocabulary).
        TaskError: none of the texts given is long enough and can be read.
    """
    tokenizer: Any = model.tokenizer  # its attributes are resolved at run time
    if tokenizer is None:
        raise NotApplicable("natural text is needed, and this checkpoint has no tokenizer")
    first = tasks.bos_id(model, bos)
    start = int(first is not None)
    length = min(length, model.info.context or length)
    wanted = list(corpus.sources("held-out").values()) if texts is None else several(texts, "texts")
    rows = [tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"] for t in wanted]
    generator = torch.Generator().manual_seed(seed)
    known = [row for row in rows if row and row.count(tokenizer.unk_token_id) <= UNKNOWN * len(row)]
    if texts is not None:  # short texts shorten the stretch rather than drop out
        length = min(length, max(map(len, known), default=0) + start)
    long = [row for row in known if len(row) >= length - start]
    if length < SHORTEST_TEXT or not long:
        longest = max(map(len, known), default=0)
        refuse = NotApplicable if texts is None else TaskError
        raise refuse(
            f"no text of {max(length, SHORTEST_TEXT)} tokens that the tokenizer can read; the longest has {longest}"
        )
    ids = torch.stack([_stretch(long, length - start, generator) for _ in range(n)])
    ids = torch.cat([torch.full((n, start), first or 0), ids], dim=1)
    batch = Batch.of(ids)
    source = "texts given" if texts is not None else "standard library, held-out modules"
    data = {"task": f"text: {source}", "n": n, "length": length, "bos": bos, "sha256": tasks.fingerprint([batch])}
    return PromptSet(batch, start, data)


def repeat_groups(
    model: Model, *, n_prompts: int, lengths: tuple[int, int], n_lengths: int, bos: str, seed: int, least: int = 3
) -> list[Repeats]:
    """Repeated random blocks, [BOS] + T distinct tokens twice: `n_prompts` in all over `n_lengths` lengths T.

    Raises:
        NotApplicable: the context or vocabulary leaves room for fewer than `least` lengths T.
    """
    start = 0 if tasks.bos_id(model, bos) is None else 1
    low, high = lengths
    drawn = tasks.repeat_lengths(
        model, lowest=low, highest=high, n_lengths=n_lengths, start=start, seed=seed, least=least
    )
    n_each = max(1, n_prompts // len(drawn))
    return tasks.repeated_random(model, lengths=drawn, n_each=n_each, bos=bos, seed=seed)


def describe_repeats(groups: Sequence[Repeats], bos: str) -> dict[str, object]:
    """What provenance says of repeated blocks."""
    return {
        "task": "repeated random tokens",
        "lengths": [g.length for g in groups],
        "n": sum(len(g.batch.ids) for g in groups),
        "bos": bos,
        "sha256": tasks.fingerprint([g.batch for g in groups]),
    }


def visible_keys(model: Model, batch: Batch) -> Float[np.ndarray, "layer batch query"]:
    """Keys that each query of each attention layer may see: its position + 1, or the sliding window where that is less.

    1 / visible_keys is what uniform attention gives each of them. In attention both ways each sees the whole prompt.

    Raises:
        NotApplicable: attention both ways within a window.
    """
    if not model.info.causal:
        no_window_both_ways(model)
        prompt = batch.mask.sum(1, keepdim=True).expand(batch.ids.shape)
        return np.stack([prompt.double().numpy()] * len(model.info.windows))
    seen = (batch.positions + 1).double().numpy()
    return np.stack([seen if w is None else np.minimum(seen, w) for w in model.info.windows])


def uniform_mass(model: Model, first: int, last: int, *, length: int) -> float:
    """What uniform attention gives one key, the mean over queries first..last of unpadded prompts of `length` tokens.

    Mean of 1 / (i + 1) where queries see what came before, 1 / length where they see the whole prompt.

    Raises:
        NotApplicable: attention both ways within a window.
    """
    if model.info.causal:
        return stats.uniform_causal(first, last)
    no_window_both_ways(model)
    return 1 / length


def no_window_both_ways(model: Model) -> None:
    """Refuse a model whose queries see keys on both sides within a window.

    Raises:
        NotApplicable: that, because how many keys each sees is not known here.
    """
    if not model.info.causal and any(w is not None for w in model.info.windows):
        raise NotApplicable("how many keys a query sees in attention both ways within a window is not known here")


def _long_enough(length: int, least: int, *, refuse: type[TaskError]) -> None:
    if length < least:
        raise refuse(f"prompts of {length} tokens are too short for this question; at least {least} are needed")


def _stretch(rows: Sequence[Sequence[int]], length: int, generator: torch.Generator) -> Int[Tensor, " pos"]:
    """One stretch: a text drawn by its size, then a place in it."""
    room = torch.tensor([len(row) - length + 1.0 for row in rows])
    row = rows[int(torch.multinomial(room, 1, generator=generator))]
    at = int(torch.randint(len(row) - length + 1, (), generator=generator))
    return torch.tensor(row[at : at + length])
