"""The attention of one head on one prompt, for a few query positions: what the page shows as shaded tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp import tasks
from interp.attention import Rows
from interp.batch import Batch
from interp.errors import TaskError
from interp.model import Model
from interp.plots import largest, scores
from interp.report.sections import headline, title_of
from interp.report.tokens import Piece, pieces, texts, visible
from interp.results import Result
from interp.sites import component

BLOCK = 12  # tokens of the random block that is repeated: two copies fit on a phone
QUERIES = 6
LONGEST = 256  # tokens shown of a prompt


@dataclass(frozen=True)
class Query:
    """One row of the pattern: where it looks from, a sentence for readers and screen readers, p of every key."""

    position: int
    label: str
    summary: str
    target: int | None
    values: list[float]


@dataclass(frozen=True)
class TokenView:
    """Everything the template needs; `ids` and `tokens` run over positions."""

    head: str
    why: str
    prompt: str
    ids: list[int]
    tokens: list[list[Piece]]
    queries: list[Query]
    induction: bool


def token_view(model: Model, result: Result, prompt: Any, *, seed: int) -> TokenView:
    """View of the best labelled induction head, or else of the top head of the first analysis.

    Raises:
        TaskError: no analysis of heads, no room for a sample prompt, or a prompt that cannot be run.
    """
    layer, head, why, induction = _choose(result)
    ids, positions, length, described = _prompt(model, prompt, seed=seed)
    rows = Rows(torch.tensor([positions]))
    answer = model.attention(model.batch(Batch.of(ids)), {"rows": rows}, layers=[layer])["rows"]
    pattern = answer[0, 0, head].double().nan_to_num(0.0).numpy()  # rows key
    words = [visible(text) for text in texts(ids, model.tokenizer)]
    repeats = length if induction else None
    queries = [_query(words, i, row, repeats) for i, row in zip(positions, pattern, strict=True)]
    shown = [pieces(text) for text in texts(ids, model.tokenizer)]
    return TokenView(component(layer, head), why, described, ids, shown, queries, repeats is not None)


def _choose(result: Result) -> tuple[int, int, str, bool]:
    """Layer and head to show, why this one, and whether it was labelled an induction head."""
    names = [str(n) for n in dict.fromkeys(result.table["analysis"])]
    if "induction" in names:
        for best in largest((s for s in scores(headline(result, "induction")) if s.label), 1):
            if best.layer is not None and best.head is not None:
                return best.layer, best.head, "the labelled induction head with the highest score", True
    for name in names:
        for best in largest(scores(headline(result, name)), 1):
            if best.layer is not None and best.head is not None:
                unlabelled = "; no head was labelled an induction head" * ("induction" in names)
                return best.layer, best.head, f"the highest score under {title_of(name)}{unlabelled}", False
    raise TaskError("no analysis of heads in these results")


def _prompt(model: Model, prompt: Any, *, seed: int) -> tuple[list[int], list[int], int | None, str]:
    """Token ids, query positions, block length if it is a repeated block, and a sentence saying what was run."""
    if prompt is None:
        start = 0 if tasks.bos_id(model) is None else 1
        room = len(tasks.ordinary_tokens(model))
        room = room if model.info.context is None else min(room, (model.info.context - start) // 2)
        length = min(BLOCK, room)
        if length < 2:
            raise TaskError(f"no room for a repeated block in a context of {model.info.context}")
        group = tasks.repeated_random(model, lengths=[length], n_each=1, bos="default", seed=seed)[0]
        said = f"A block of {length} random tokens, twice{', after the first token the tokenizer adds' * start}."
        return group.batch.ids[0].tolist(), _spread(group.second[1], group.second[-1]), length, said
    batch = model.batch(prompt)
    ids = batch.ids[0][batch.mask[0]].tolist()
    cut = f"The first {LONGEST} of {len(ids)} tokens of the given prompt." if len(ids) > LONGEST else None
    ids = ids[:LONGEST]
    return ids, _spread(min(1, len(ids) - 1), len(ids) - 1), None, cut or f"The given prompt, {len(ids)} tokens."


def _spread(first: int, last: int) -> list[int]:
    return sorted({round(float(i)) for i in np.linspace(first, last, QUERIES)})


def _query(words: Sequence[str], position: int, row: np.ndarray, length: int | None) -> Query:
    best = int(np.argmax(row))
    summary = (
        f"From position {position} ({words[position]}) most attention goes to position {best} "
        f"({words[best]}), p = {row[best]:.2f}."
    )
    target = None if length is None else position - length + 1
    if target is not None:
        summary += f" The token after the query's earlier copy, position {target}, gets p = {row[target]:.2f}."
    values = [round(float(p), 4) for p in row]
    return Query(position, words[position], summary, target, values)
