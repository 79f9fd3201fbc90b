"""Direct attribution of one prompt: what each part of the model added to the logit that is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import torch

from interp.components import head_name
from interp.decompose import Attribution, LogitLens, Term, attribute, logit_lens
from interp.model import Model
from interp.plots.heads import head_map
from interp.reports.cells import Cell, cell, number, signed, small
from interp.reports.charts import columns
from interp.reports.feeders import Feeders, feeders
from interp.reports.questions import TokenQuestion
from interp.reports.tokens import Piece, pieces
from interp.tokens.texts import token_texts

HEADS = 10  # shown in the table
BROUGHT = 3  # source tokens told of each head
LIKELY = 5  # next tokens
SHOWN = 400  # tokens of a prompt printed, its last
SPLIT = 2**19  # head x source values: with more, heads are not split by source token

Tokens = list[Piece]


@dataclass(frozen=True)
class Chip:
    """A token of the prompt, what all heads together brought from it, and that as a share of the largest."""

    token: Tokens
    id: int
    position: int
    value: Cell
    share: float


@dataclass(frozen=True)
class Source:
    """A token that a head brought something from."""

    token: Tokens
    position: int
    value: Cell


@dataclass(frozen=True)
class HeadLine:
    """A head, what it added, from which tokens most of it, and what the others make up."""

    component: str
    value: Cell
    sources: list[Source]
    rest: Cell | None


@dataclass(frozen=True)
class Part:
    """A line of the sum."""

    name: str
    value: Cell


@dataclass(frozen=True)
class Layer:
    """What the model would say if it stopped after a layer."""

    layer: int
    token: Tokens
    p: Cell
    answer_p: Cell
    rank: Cell


@dataclass(frozen=True)
class Direct:
    """Everything the template needs of one prompt. `total`, `given`, `missed`: the sum, the model, their distance."""

    chips: list[Chip]
    cut: int
    length: int
    unknown: int
    answer: Tokens
    wrong: Tokens | None
    chosen: bool
    total: str
    given: str
    missed: str
    relative: str
    softcap: float | None
    capped: str
    parts: list[Part]
    heads: list[HeadLine]
    split: bool
    likely: list[tuple[Tokens, Cell, bool]]
    layers: list[Layer]
    rank: int
    feeders: Feeders | None
    figures: dict[str, go.Figure]
    spoken: str


def direct(model: Model, question: TokenQuestion) -> Direct:
    """The logit of an answer, less that of the wrong one or else the mean over the vocabulary, as a sum of parts.

    Raises:
        BackendError: the parts do not sum to the logit.
    """
    ids, info = list(question.ids), model.info
    by_source = info.n_layers * info.n_heads * len(ids) <= SPLIT
    against = torch.arange(info.d_vocab)[None] if question.wrong is None else question.wrong
    attribution = attribute(model, ids, question.answer, against, sources=by_source)
    lens = logit_lens(model, ids, positions=-1, answer=question.answer, top=LIKELY)
    words = token_texts(ids, model.tokenizer)
    values = [float(x) for x in attribution.values[:, 0]]
    total, model_logit = float(attribution.values[:, 0].double().sum()), float(attribution.logit[0])
    groups = _groups(attribution.terms, values)
    heads = _heads(attribution, values, words)
    unknown = None if model.tokenizer is None else getattr(model.tokenizer, "unk_token_id", None)
    return Direct(
        chips=_chips(attribution.terms, values, words, ids)[-SHOWN:],
        cut=max(0, len(ids) - SHOWN),
        length=len(ids),
        unknown=sum(i == unknown for i in ids),
        answer=_token(model, question.answer),
        wrong=None if question.wrong is None else _token(model, question.wrong),
        chosen=question.chosen,
        total=number(total, 4),
        given=number(model_logit, 4),
        missed=small(abs(total - model_logit)),
        relative=small(attribution.error),
        softcap=attribution.softcap,
        capped=number(float(attribution.capped[0]), 4),
        parts=[Part(name, signed(value, 4)) for name, value in groups.items()],
        heads=heads,
        split=by_source,
        likely=_likely(model, lens, question.answer),
        layers=_layers(model, lens),
        rank=int(lens.rank[-1, 0, 0]),
        feeders=feeders(model, ids, question.answer, question.wrong, groups),
        figures=_figures(groups, attribution),
        spoken=_sentence(groups, heads),
    )


def _token(model: Model, token: int) -> Tokens:
    return pieces(token_texts([token], model.tokenizer)[0])


def _groups(parts: Sequence[Term], values: Sequence[float]) -> dict[str, float]:
    """Sums by embedding, attention and MLP of each layer (with their biases), and the biases at the end; in depth."""
    sums: dict[str, float] = {}
    for part, value in zip(parts, values, strict=True):
        name = _group(part)
        sums[name] = sums.get(name, 0.0) + value
    return sums


def _group(part: Term) -> str:
    if part.layer is None:
        return {"embed": "embedding", "pos": "positions", "bias": "final biases"}[part.kind]
    kind = {"mlp": "MLP", "neuron": "MLP", "block": "layer"}.get(part.kind, "attention")
    return f"{'MLP' if part.name.startswith('b_mlp') else kind} {part.layer}"


def _heads(attribution: Attribution, values: Sequence[float], words: Sequence[str]) -> list[HeadLine]:
    """The heads that added most, by size, each with the tokens that most of it came from."""
    by_head: dict[tuple[int, int], list[tuple[int | None, float]]] = {}
    for part, value in zip(attribution.terms, values, strict=True):
        if part.layer is not None and part.head is not None:
            by_head.setdefault((part.layer, part.head), []).append((part.source, value))
    sums = {place: sum(v for _, v in terms) for place, terms in by_head.items()}
    lines = []
    for place in sorted(sums, key=lambda at: -abs(sums[at]))[:HEADS]:
        terms = sorted(((j, v) for j, v in by_head[place] if j is not None), key=lambda item: -abs(item[1]))
        rest = sum(v for _, v in terms[BROUGHT:])
        sources = [Source(pieces(words[j]), j, signed(v)) for j, v in terms[:BROUGHT]]
        lines.append(
            HeadLine(head_name(*place), signed(sums[place]), sources, signed(rest) if len(terms) > BROUGHT else None)
        )
    return lines


def _chips(parts: Sequence[Term], values: Sequence[float], words: Sequence[str], ids: Sequence[int]) -> list[Chip]:
    totals = [0.0] * len(ids)
    for part, value in zip(parts, values, strict=True):
        if part.source is not None:
            totals[part.source] += value
    most = max(map(abs, totals)) or 1.0
    return [
        Chip(pieces(word), ids[j], j, signed(totals[j], 2), round(totals[j] / most, 3)) for j, word in enumerate(words)
    ]


def _likely(model: Model, lens: LogitLens, answer: int) -> list[tuple[Tokens, Cell, bool]]:
    """The likeliest next tokens, their probabilities, and which is the answer."""
    ids, p = lens.top_ids[-1, 0, 0].tolist(), lens.top_p[-1, 0, 0].tolist()
    return [(_token(model, i), cell(x), i == answer) for i, x in zip(ids, p, strict=True)]


def _layers(model: Model, lens: LogitLens) -> list[Layer]:
    return [
        Layer(
            layer,
            _token(model, int(lens.top_ids[n, 0, 0, 0])),
            cell(float(lens.top_p[n, 0, 0, 0])),
            cell(float(lens.p[n, 0, 0])),
            cell(float(lens.rank[n, 0, 0]) + 1, 0),
        )
        for n, layer in enumerate(lens.layers)
    ]


def _figures(groups: dict[str, float], attribution: Attribution) -> dict[str, go.Figure]:
    figures = {"depth": columns(groups, unit="logit")}
    own, values = {c.layer for c in attribution.terms if c.head is not None}, attribution.heads[:, :, 0].tolist()
    rows = [
        {"layer": layer, "head": head, "component": head_name(layer, head), "value": value, "unit": "logit"}
        for layer in sorted(layer for layer in own if layer is not None)
        for head, value in enumerate(values[layer])
    ]
    if rows:
        figures["heads"] = head_map(pd.DataFrame(rows))
    return figures


def _sentence(groups: dict[str, float], heads: Sequence[HeadLine]) -> str:
    """The figures in a sentence."""
    largest = sorted(groups, key=lambda name: -abs(groups[name]))[:3]
    parts = ", ".join(f"{name} {signed(groups[name])}" for name in largest)
    best = f" Largest head: {heads[0].component} with {heads[0].value}." if heads else ""
    return f"Largest parts: {parts}.{best}"
