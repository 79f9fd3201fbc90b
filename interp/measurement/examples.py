"""Texts on which a unit is most active, beside tokens drawn at random."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import SchemaError, SiteError
from interp.model import Model
from interp.results.provenance import recorded
from interp.sites import PER_HEAD, Site
from interp.tokens.texts import token_texts

if TYPE_CHECKING:
    import plotly.graph_objects as go

Unit = int | Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Examples:
    """The tokens on which a unit is most active, and as many drawn at random.

    Attributes:
        rows: one row per token: `sample` ("top" or "random"), rank, value, z, prompt, position, token, text, before,
            after; the largest first, then the random ones.
        mean, sd, share, n: of the unit over all tokens seen: mean, standard deviation, share above zero, and how many.
        traces: of each prompt in `rows`, its activations at its real tokens.
        texts: of each prompt in `rows`, the text of each of them.
        provenance: of the call.
    """

    rows: pd.DataFrame
    mean: float
    sd: float
    share: float
    n: int
    traces: dict[int, Float[ndarray, " pos"]]
    texts: dict[int, list[str]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        return f"<Examples: {len(self.rows)} of {self.n} tokens, mean {self.mean:.3g}, sd {self.sd:.3g}>"

    def table(self) -> pd.DataFrame:
        """One row per token."""
        return self.rows.copy()

    def plot(self, rank: int = 0) -> go.Figure:
        """The text of one of the largest, shaded by the unit's activation."""
        from interp.plots import token_map
        from interp.plots.titles import model_name, titled

        prompt = int(self.rows["prompt"].iloc[rank])
        figure = token_map(self.traces[prompt], self.texts[prompt], unit="activation")
        base = f"{self.n:,} tokens, mean {self.mean:.3g}, sd {self.sd:.3g}"
        return titled(figure, [model_name(self.provenance), f"top examples, number {rank}: prompt {prompt}", base])


@recorded
def top_examples(
    model: Model,
    prompts: Prompts | Iterable[Prompts],
    site: str | Site,
    unit: Unit,
    *,
    k: int = 10,
    per_prompt: int = 1,
    context: tuple[int, int] = (10, 5),
    largest: bool = True,
    skip: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Examples:
    """The k tokens of a corpus at which a unit is largest: x[u], x . d for a direction d, or f(x) for a function f.

    Prompts are run `batch_size` at a time and the pass ends at the site's layer; what is kept is the unit's activation
    on 2 k prompts at most, so a corpus may be a generator. Large activations show one end alone of what a unit does:
    `z` says how far out they lie, and as many tokens drawn at random (`sample` "random") what it does elsewhere.

    Args:
        model: any backend.
        prompts: texts, ids, or an iterable of them.
        site: where, one layer and, for heads, one head: "L3.mlp_post", "L2H5.z", "L4.resid_post".
        unit: number of a neuron or channel; a direction [d]; or a function [batch pos d] -> [batch pos].
        k: tokens.
        per_prompt: at most so many of one prompt.
        context: tokens of text shown before and after.
        largest: False for the smallest instead.
        skip: first tokens of each prompt that do not count, such as a BOS.
        batch_size: prompts of a forward.
        seed: of the tokens drawn at random.
        edits: changes under which the model runs.

    Raises:
        SiteError: a site of several layers or heads, a unit that it does not have.
        SchemaError: no tokens to choose from.

    >>> import interp
    >>> from probes.features import top_examples
    >>> model = interp.load("zoo:planted-induction")
    >>> top_examples(model, [[1, 2, 3, 4], [5, 6, 7, 8]], "L0.mlp_post", 3, k=1).rows["sample"].tolist()
    ['top', 'random']
    """
    place = Site.parse(site) if isinstance(site, str) else site
    _check(model, place)
    rng = np.random.default_rng(seed)
    top, sample = _Largest(k, per_prompt), _Reservoir(k, rng)
    count, total, squares, above = 0, 0.0, 0.0, 0
    number = 0
    for batch in _batches(model, prompts, batch_size):
        values = _values(model, batch, place, unit)
        for ids, mask, row in zip(batch.ids.cpu(), batch.mask.cpu(), values, strict=True):
            own, tokens = row[mask].double().numpy(), ids[mask].tolist()
            kept = own[skip:]
            count, above = count + len(kept), above + int((kept > 0).sum())
            total, squares = total + float(kept.sum()), squares + float((kept**2).sum())
            trace = _Trace(number, own, tokens)
            top.offer(trace, skip, 1 if largest else -1)
            sample.offer(trace, skip)
            number += 1
    if not count:
        raise SchemaError("no tokens to choose from: the corpus is empty, or `skip` leaves none")
    mean = total / count
    sd = float(np.sqrt(max(squares / count - mean**2, 0.0)))
    chosen = [("top", rank, *each) for rank, each in enumerate(top.items())]
    chosen += [("random", rank, *each) for rank, each in enumerate(sample.items())]
    rows = [_row(model, *each, mean=mean, sd=sd, context=context) for each in chosen]
    prompts_shown = {trace.number: trace for _, _, trace, _ in chosen}
    return Examples(
        pd.DataFrame(rows),
        mean,
        sd,
        above / count,
        count,
        {i: trace.values for i, trace in prompts_shown.items()},
        {i: token_texts(trace.tokens, model.tokenizer) for i, trace in prompts_shown.items()},
        {"data": {"task": "corpus of the caller's", "n_prompts": number, "n_tokens": count}, "method": "top-examples"},
    )


@dataclass(frozen=True, eq=False)
class _Trace:
    """A prompt: its number, the unit's activation at its real tokens, and these."""

    number: int
    values: Float[ndarray, " pos"]
    tokens: list[int]


class _Largest:
    """The k largest (trace, position), a few of each prompt."""

    def __init__(self, k: int, per_prompt: int) -> None:
        self.k, self.per_prompt = k, per_prompt
        self.heap: list[tuple[float, int, int, _Trace]] = []

    def offer(self, trace: _Trace, skip: int, sign: int) -> None:
        """See the tokens of a prompt; of equal ones the earlier stays."""
        order = skip + np.argsort(-sign * trace.values[skip:], kind="stable")
        for at in order[: self.per_prompt].tolist():
            item = (sign * float(trace.values[at]), -trace.number, -at, trace)
            if len(self.heap) < self.k:
                heapq.heappush(self.heap, item)
            elif item[:3] > self.heap[0][:3]:
                heapq.heapreplace(self.heap, item)

    def items(self) -> list[tuple[_Trace, int]]:
        """(Trace, position), largest first."""
        return [(trace, -at) for _, _, at, trace in sorted(self.heap, key=lambda item: item[:3], reverse=True)]


class _Reservoir:
    """k tokens, each of those seen equally likely (Vitter's algorithm R)."""

    def __init__(self, k: int, rng: np.random.Generator) -> None:
        self.k, self.rng, self.n = k, rng, 0
        self.kept: list[tuple[_Trace, int]] = []

    def offer(self, trace: _Trace, skip: int) -> None:
        """See the tokens of a prompt."""
        n = len(trace.values) - skip
        if n <= 0:
            return
        slots = self.rng.integers(np.arange(self.n, self.n + n) + 1)
        for i in range(n):
            if len(self.kept) < self.k:
                self.kept.append((trace, skip + i))
            elif slots[i] < self.k:
                self.kept[slots[i]] = (trace, skip + i)
        self.n += n

    def items(self) -> list[tuple[_Trace, int]]:
        """(Trace, position), in the order of the corpus."""
        return sorted(self.kept, key=lambda item: (item[0].number, item[1]))


def _check(model: Model, site: Site) -> None:
    if len(model.info.layers_of(site)) != 1 or site.kind in ("pattern", "logits") or site.position is not None:
        raise SiteError(f"{site}: a unit is at one layer and at every token; write a site like L3.mlp_post or L2H5.z")
    if site.kind in PER_HEAD and site.head is None:
        raise SiteError(f"{site}: name one head, like L{site.first}H0.{site.kind}")


def _batches(model: Model, prompts: Any, size: int) -> Iterator[Batch]:
    """Prompts as batches of `size`; a generator is read as it is needed."""
    if isinstance(prompts, Iterator):
        while part := list(itertools.islice(prompts, size)):
            yield model.batch(part)
        return
    batch = model.batch(prompts)
    for rows in torch.arange(len(batch.ids)).split(size):
        yield batch.select(rows)


@torch.no_grad()
def _values(model: Model, batch: Batch, site: Site, unit: Unit) -> Float[Tensor, "batch pos"]:
    """The unit at every token, computed where the activation is, so that nothing larger is kept."""

    def read(x: Tensor) -> Tensor:
        if callable(unit) and not isinstance(unit, Tensor):
            value = unit(x)
        elif isinstance(unit, Tensor):
            if unit.shape != x.shape[-1:]:
                raise SiteError(f"{site}: a direction of shape {tuple(unit.shape)} for {x.shape[-1]} channels")
            value = x @ unit.to(x)
        else:
            if not 0 <= unit < x.shape[-1]:
                raise SiteError(f"{site}: no unit {unit}; there are {x.shape[-1]}")
            value = x[..., unit]
        if value.shape != x.shape[:2]:
            raise SiteError(f"{site}: the unit gave shape {tuple(value.shape)}; expected {tuple(x.shape[:2])}")
        return value.float().cpu()

    run = model.run(batch, capture={site: read}, stop=site.first if site.first is not None else 0)
    return next(iter(run.acts.values()))


def _row(
    model: Model,
    sample: str,
    rank: int,
    trace: _Trace,
    at: int,
    *,
    mean: float,
    sd: float,
    context: tuple[int, int],
) -> dict[str, Any]:
    join = (lambda ids: " ".join(map(str, ids))) if model.tokenizer is None else model.tokenizer.decode
    value = float(trace.values[at])
    return {
        "sample": sample,
        "rank": rank,
        "value": value,
        "z": (value - mean) / sd if sd else float("nan"),
        "prompt": trace.number,
        "position": at,
        "token": trace.tokens[at],
        "text": token_texts([trace.tokens[at]], model.tokenizer)[0],
        "before": str(join(trace.tokens[max(0, at - context[0]) : at])),
        "after": str(join(trace.tokens[at + 1 : at + 1 + context[1]])),
    }
