"""Features of prompts as a sparse table; where in a text a feature is most active, streamed."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.dictionaries.dictionary import Dictionaries, Dictionary, member_of
from interp.dictionaries.fit import FIRST
from interp.errors import SchemaError
from interp.model import Model
from interp.sites import Site

BINS = 4  # of a histogram, for each doubling


@dataclass(frozen=True, eq=False)
class Features:
    """Active features of prompts: one entry for each feature that is not 0 at a token.

    Attributes:
        batch: the prompts.
        index: [active 4]: prompt, column, member of the set, feature.
        value: [active].
        sites: what each member reads.
    """

    batch: Batch
    index: Int[Tensor, "active 4"]
    value: Float[Tensor, " active"]
    sites: tuple[Site, ...]

    def table(self) -> pd.DataFrame:
        """A row for each entry: prompt, position (real tokens counted), token id, site, feature, value."""
        prompt, column, member, feature = self.index.cpu().T
        ids, positions = self.batch.ids.cpu(), self.batch.positions.cpu()
        return pd.DataFrame(
            {
                "prompt": prompt.numpy(),
                "position": positions[prompt, column].numpy(),
                "token": ids[prompt, column].numpy(),
                "site": [str(self.sites[m]) for m in member.tolist()],
                "feature": feature.numpy(),
                "value": self.value.cpu().double().numpy(),
            }
        )

    def top(self, k: int = 10) -> pd.DataFrame:
        """The k largest entries of the table."""
        return self.table().nlargest(k, "value").reset_index(drop=True)

    def by_feature(self, k: int = 10) -> pd.DataFrame:
        """The k features of the largest values: site, feature, value, where it is (prompt, position, token), tokens.

        `tokens` is at how many tokens the feature is active, `mean` its mean over these.
        """
        table = self.table()
        own = table.groupby(["site", "feature"], sort=False)["value"]
        best = table.loc[own.idxmax()].set_index(["site", "feature"])
        best["tokens"], best["mean"] = own.size(), own.mean()
        order = ["site", "feature", "value", "prompt", "position", "token", "tokens", "mean"]
        return best.reset_index().nlargest(k, "value").reset_index(drop=True)[order]

    def __repr__(self) -> str:
        """One line: entries and tokens."""
        return f"<Features: {len(self.value)} active at {int(self.batch.mask.sum())} tokens>"

    def _repr_html_(self) -> str:
        """The largest entries for a notebook."""
        return self.top(20).to_html(index=False, float_format=lambda x: f"{x:.3g}")


@torch.no_grad()
def features(model: Model, dictionary: Dictionary | Dictionaries, prompts: Prompts) -> Features:
    """Features f = encode(x) of every token of prompts, those that are not 0, as the edits in force leave them.

    Activations are encoded as the run comes by, so that no more than one site's are dense at any time.

    Raises:
        SchemaError: a dictionary that does not say where it reads, or of another width.
        SiteError: a site that the model does not have.
    """
    batch, members = model.batch(prompts), dictionary.members
    entries, values = [], []
    for member, f in enumerate(_sparse(model, dictionary, batch)):
        prompt, column, feature = f.indices()
        real = batch.mask.to(f.device)[prompt, column]
        entries.append(torch.stack([prompt, column, torch.full_like(prompt, member), feature], 1)[real])
        values.append(f.values()[real])
    sites = tuple(d.site_in for d in members if d.site_in is not None)
    return Features(batch, torch.cat(entries), torch.cat(values), sites)


def _sparse(model: Model, dictionary: Dictionary | Dictionaries, batch: Batch) -> Iterator[Tensor]:
    """Features of each member, sparse [batch pos feature]; the run ends at the last layer that is read."""

    def reducer(d: Dictionary) -> Callable[[Tensor], Tensor]:
        return lambda x: d.to(x.device).encode(x).to_sparse()

    sites = [d.site_in for d in dictionary.members]
    if None in sites:
        raise SchemaError(
            "a dictionary that does not say where it reads; give its site: dictionary.at('L3.resid_post')"
        )
    layers = [s.first for s in sites if s is not None]
    stop = max(layers) if None not in layers and layers else None  # type: ignore[type-var]
    capture = {d.site_in: reducer(d) for d in dictionary.members}
    run = model.run(batch, capture=capture, stop=stop)  # type: ignore[arg-type]  # None was refused
    for site in sites:
        assert site is not None
        yield run[site].coalesce()


@dataclass(frozen=True, order=True)
class Example:
    """A place where a feature is active: tokens around it, and its value at each.

    Attributes:
        value: at the place itself.
        prompt: number of the text in the stream.
        position: of the place in the text, counted in tokens.
        at: of the place in `ids`.
        ids, values: of the tokens shown.
    """

    value: float
    prompt: int = field(compare=False)
    position: int = field(compare=False)
    at: int = field(compare=False)
    ids: tuple[int, ...] = field(compare=False)
    values: tuple[float, ...] = field(compare=False)


@dataclass(frozen=True)
class Record:
    """What a stream of text says of a feature.

    Attributes:
        feature: its number. member: of which dictionary of a set.
        n_tokens: tokens read. n_active: those at which it is not 0.
        histogram: value -> tokens; values from 2^(i / 4) to 2^((i + 1) / 4) under the lower of the two.
        examples: the places of its largest values, one for each stretch of text, largest first.
    """

    feature: int
    member: int
    n_tokens: int
    n_active: int
    histogram: dict[float, int]
    examples: tuple[Example, ...]

    @property
    def density(self) -> float:
        """Share of tokens at which it is active."""
        return self.n_active / self.n_tokens if self.n_tokens else 0.0


@torch.no_grad()
def top_examples(
    model: Model,
    dictionary: Dictionary | Dictionaries,
    feature: int | Sequence[int],
    texts: Iterable[Prompts],
    *,
    member: int = 0,
    k: int = 10,
    length: int = 128,
    around: tuple[int, int] = (16, 8),
    batch_size: int = 8,
) -> dict[int, Record]:
    """Where in a stream of texts features are most active, and how their values are spread.

    Texts are read once, cut into stretches and run a few at a time; in memory are no more than these and k examples of
    each feature, whatever the stream's length. The first token of a stretch, an attention sink, is not counted.

    Args:
        model: that the dictionary is of.
        dictionary: whose features, or several.
        feature: one, or several, which cost no more runs than one.
        texts: any iterable of texts or lists of token ids.
        member: of a set of dictionaries, by number.
        k: examples kept of each feature.
        length: tokens of a stretch, those of the model's context at most.
        around: tokens shown before and behind each place.
        batch_size: stretches run at once.

    Raises:
        SchemaError: a feature or a member out of range, or text without a tokenizer.
    """
    d = member_of(dictionary, member)
    wanted = torch.as_tensor(feature).reshape(-1).tolist()
    for number in wanted:
        if not 0 <= number < d.n_features:
            raise SchemaError(f"feature {number} is out of range; the dictionary has {d.n_features}")
    length = min(length, model.info.context or length)
    heaps: dict[int, list[tuple[float, int, Example]]] = {number: [] for number in wanted}
    bins: dict[int, Counter[int]] = {number: Counter() for number in wanted}
    n_tokens, order = 0, itertools.count()
    stretches = _stretches(model, texts, length)
    while chunk := list(itertools.islice(stretches, batch_size)):
        batch = Batch.of([ids for _, _, ids in chunk])
        counted = batch.mask & (batch.positions >= FIRST)
        n_tokens += int(counted.sum())
        f = next(_sparse(model, d, batch.to(model.device)))
        for number in wanted:
            dense = _column(f, number) * counted
            active = dense[dense != 0].abs().tolist()
            bins[number].update(math.floor(BINS * math.log2(x)) for x in active)
            for row, (prompt, start, ids) in enumerate(chunk):
                example = _example(dense[row, : len(ids)], prompt, start, ids, around)
                if example.value <= 0:
                    continue
                entry = (example.value, -next(order), example)
                if len(heaps[number]) < k:
                    heapq.heappush(heaps[number], entry)
                else:
                    heapq.heappushpop(heaps[number], entry)
    return {
        number: Record(
            number,
            member,
            n_tokens,
            sum(bins[number].values()),
            {2 ** (i / BINS): n for i, n in sorted(bins[number].items())},
            tuple(example for _, _, example in sorted(heaps[number], reverse=True)),
        )
        for number in wanted
    }


def _stretches(model: Model, texts: Iterable[Prompts], length: int) -> Iterator[tuple[int, int, list[int]]]:
    """(number of the text, token at which the stretch starts, its ids)."""
    for number, text in enumerate(texts):
        batch = Batch.of(text, model.tokenizer)
        for ids, mask in zip(batch.ids, batch.mask, strict=True):
            whole = ids[mask].tolist()
            for start in range(0, len(whole), length):
                yield number, start, whole[start : start + length]


def _column(f: Tensor, feature: int) -> Float[Tensor, "batch pos"]:
    """One feature of sparse [batch pos feature], dense on the CPU."""
    index, value = f.indices(), f.values()
    chosen = index[2] == feature
    dense = torch.zeros(f.shape[:2])
    dense[index[0, chosen].cpu(), index[1, chosen].cpu()] = value[chosen].float().cpu()
    return dense


def _example(values: Tensor, prompt: int, start: int, ids: Sequence[int], around: tuple[int, int]) -> Example:
    at = int(values.argmax())
    first, last = max(0, at - around[0]), min(len(ids), at + around[1] + 1)
    shown = tuple(values[first:last].tolist())
    return Example(float(values[at]), prompt, start + at, at - first, tuple(ids[first:last]), shown)
