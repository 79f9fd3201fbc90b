"""Synthetic prompts for any vocabulary: random tokens, once or repeated, of varied length."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.batch import BOS_POLICIES, Batch
from interp.errors import NotApplicable, TaskError, UnknownTask, nearest
from interp.model import Model
from interp.shapes import brief

_BYTE = re.compile(r"^<0x[0-9A-Fa-f]{2}>$")
_SPACES = "▁ĠĊĉčÂ \t\r\n"  # how tokenizers write white space


@dataclass(frozen=True, eq=False)
class Repeats:
    """Prompts [BOS] + block + block, all with the same block length.

    Attributes:
        batch: the prompts.
        length: T, tokens in a block; unique within it.
        start: position of the first block: 1 after a BOS, 0 without.
    """

    batch: Batch
    length: int
    start: int

    __repr__ = brief

    @property
    def second(self) -> range:
        """Positions of the second copy: the queries that have an earlier copy to look at."""
        return range(self.start + self.length, self.start + 2 * self.length)

    def rows(self, positions: Sequence[int]) -> Bool[Tensor, "batch pos"]:
        """Row mask that is True at these positions of every prompt."""
        mask = torch.zeros_like(self.batch.mask)
        mask[:, list(positions)] = True
        return mask


def ordinary_tokens(model: Model) -> Int[Tensor, " token"]:
    """Ids fit for random prompts: no special, added, byte-fallback, broken-byte or white-space-only tokens.

    Without a tokenizer only the ids the config marks as special are left out.
    """
    tokenizer: Any = model.tokenizer  # its attributes are resolved at run time
    if tokenizer is None:
        special = set(model.special_ids)
        return torch.tensor([i for i in range(model.info.d_vocab) if i not in special])
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    n = min(len(tokenizer), model.info.d_vocab)
    names = tokenizer.convert_ids_to_tokens(list(range(n)))
    ids = [i for i, t in enumerate(names) if i not in special and _ordinary(t)]
    return torch.tensor(ids, dtype=torch.long)


def _ordinary(token: str | None) -> bool:
    if token is None or _BYTE.match(token):
        return False
    text = token.strip(_SPACES)
    return bool(text) and not (len(text) == 1 and ord(text) > 127)


def bos_id(model: Model, policy: str = "default") -> int | None:
    """Id that starts every prompt under a BOS policy, None for none.

    "default": what the tokenizer does by itself (without one, the config's BOS if it has one); "forced": always;
    "none": never.

    Raises:
        TaskError: unknown policy, or "forced" where the model has no BOS.
    """
    if policy not in BOS_POLICIES:
        raise UnknownTask(f"unknown BOS policy {policy!r}; {nearest(policy, BOS_POLICIES)}")
    if policy == "none":
        return None
    bos = getattr(model.tokenizer, "bos_token_id", None) if model.tokenizer else model.bos_id
    valid = bos if isinstance(bos, int) and 0 <= bos < model.info.d_vocab else None
    if policy == "forced" and valid is None:
        raise TaskError("bos='forced', but this model has no BOS token; use bos='none'")
    if policy == "default" and model.tokenizer is not None:
        ids = model.tokenizer("a")["input_ids"]
        return valid if ids and ids[0] == valid else None
    return valid


SHORTEST_BLOCK = 3
"""Tokens of the shortest block that is repeated."""


def repeat_lengths(
    model: Model, *, lowest: int, highest: int, n_lengths: int, start: int, seed: int, least: int = 3
) -> list[int]:
    """Block lengths T, one drawn from each of `n_lengths` equal bands of lowest..highest, as far as they fit.

    Varied on purpose: a model trained on one length can pass for having induction heads at that length. Where the
    context has no room between them, lengths are the longest that fit and somewhat shorter ones, `SHORTEST_BLOCK` at
    least.

    Raises:
        NotApplicable: fewer than `least` lengths fit.
    """
    longest = len(ordinary_tokens(model))
    if model.info.context is not None:
        longest = min(longest, (model.info.context - start) // 2)
    high = min(highest, longest)
    variety = min(3, highest - lowest + 1)  # one length, where that is asked for
    low = lowest if lowest + variety - 1 <= high else max(4, high // 2)
    choices = list(range(min(low, max(high, SHORTEST_BLOCK)), high + 1))
    if len(choices) < least:
        raise NotApplicable(
            f"no room to {'repeat a block' if least == 1 else 'vary the repeat length'}: at most {longest} tokens fit "
            f"twice into a context of {model.info.context} with {len(ordinary_tokens(model))} ordinary tokens; at "
            f"least {SHORTEST_BLOCK if least == 1 else 3 + least} are needed"
        )
    generator = torch.Generator().manual_seed(seed)
    n = min(n_lengths, len(choices))
    bands = [choices[i * len(choices) // n : (i + 1) * len(choices) // n] for i in range(n)]
    return [band[int(torch.randint(len(band), (), generator=generator))] for band in bands]


def repeated_random(model: Model, *, lengths: Sequence[int], n_each: int, bos: str, seed: int) -> list[Repeats]:
    """For each T in `lengths`, `n_each` prompts of a random block of T distinct ordinary tokens, twice."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for length in lengths:
        block = random_blocks(model, n=n_each, length=length, generator=generator)
        ids, start = _with_bos(torch.cat([block, block], dim=1), bos_id(model, bos))
        groups.append(Repeats(Batch.of(ids), length, start))
    return groups


def permuted_repeats(groups: Sequence[Repeats], *, seed: int, derange: bool = False) -> list[Repeats]:
    """The same prompts with each second copy in a random order; `derange`: no token stands where it would repeat."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = []
    for g in groups:
        ids = g.batch.ids.clone()
        second = slice(g.second.start, g.second.stop)
        order = torch.rand(len(ids), g.length, generator=generator).argsort(1)
        while derange and bool((fixed := (order == torch.arange(g.length)).any(1)).any()):
            order[fixed] = torch.rand(int(fixed.sum()), g.length, generator=generator).argsort(1)
        ids[:, second] = ids[:, second].gather(1, order)
        shuffled.append(Repeats(Batch(ids, g.batch.mask), g.length, g.start))
    return shuffled


def random_prompts(model: Model, *, n: int, length: int, bos: str, seed: int, distinct: bool = True) -> Batch:
    """`n` prompts of `length` tokens in all (BOS included): random ordinary tokens, nothing repeated if `distinct`."""
    first = bos_id(model, bos)
    generator = torch.Generator().manual_seed(seed)
    shape = (n, length - (first is not None))
    if distinct:
        block = random_blocks(model, n=n, length=shape[1], generator=generator)
    else:
        tokens = ordinary_tokens(model)
        block = tokens[torch.randint(len(tokens), shape, generator=generator)]
    return Batch.of(_with_bos(block, first)[0])


def random_blocks(model: Model, *, n: int, length: int, generator: torch.Generator) -> Int[Tensor, "n length"]:
    """Random ordinary tokens without replacement within a row.

    Raises:
        NotApplicable: fewer ordinary tokens than `length`.
    """
    tokens = ordinary_tokens(model)
    if len(tokens) < length:
        raise NotApplicable(f"{length} distinct tokens asked for, but the vocabulary has {len(tokens)} ordinary ones")
    rows = [tokens[torch.randperm(len(tokens), generator=generator)[:length]] for _ in range(n)]
    return torch.stack(rows)


def _with_bos(block: Tensor, bos: int | None) -> tuple[Tensor, int]:
    if bos is None:
        return block, 0
    return torch.cat([torch.full_like(block[:, :1], bos), block], dim=1), 1


def earlier_equal_pairs(
    batch: Batch, queries: Bool[Tensor, "batch pos"] | None = None
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """(batch, query, key) lists of every pair of equal tokens, key before query: the duplicate-token rule.

    Those of some queries alone where `queries` says which. Memory grows with the number of pairs listed, which is what
    `earlier_copies` sums to over these queries.
    """
    triples = [torch.empty(3, 0, dtype=torch.long)]
    for row in range(len(batch.ids)):
        positions, rank = _by_token(batch, row)
        if queries is not None:
            rank = torch.where(queries[row].cpu()[positions], rank, 0)
        total = rank.cumsum(0)
        place = torch.arange(len(positions)).repeat_interleave(rank)
        back = torch.arange(len(place)) - (total - rank)[place] + 1
        triples.append(torch.stack([torch.full_like(place, row), positions[place], positions[place - back]]))
    b, i, j = torch.cat(triples, dim=1)
    return b, i, j


def earlier_copies(batch: Batch) -> Int[Tensor, "batch pos"]:
    """How many earlier tokens of its prompt equal each token; 0 at padding."""
    found = torch.zeros(batch.ids.shape, dtype=torch.long)
    for row in range(len(found)):
        positions, rank = _by_token(batch, row)
        found[row, positions] = rank
    return found


def _by_token(batch: Batch, row: int) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Columns of a prompt's real tokens, equal tokens side by side and in their order; how many of each stand before.

    Copies of the token at place t stand at t - 1, ..., t - rank[t].
    """
    columns = batch.mask[row].cpu().nonzero()[:, 0]
    tokens = batch.ids[row].cpu()[columns]
    sizes = tokens.unique(return_counts=True)[1]
    rank = torch.arange(len(tokens)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return columns[tokens.argsort(stable=True)], rank


def fingerprint(batches: Sequence[Batch]) -> str:
    """Hash of token ids and masks, for provenance."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch.ids.cpu().numpy().tobytes())
        digest.update(batch.mask.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
