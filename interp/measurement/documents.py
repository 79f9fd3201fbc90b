"""`Documents`: prompts of several documents, one of which holds the answer; laid out in any order, and asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import tasks
from interp.attention import Rows
from interp.batch import Batch
from interp.edits import Edit
from interp.errors import NotApplicable, TaskError
from interp.model import Model
from interp.shapes import brief
from interp.tasks import needles
from interp.tasks.haystacks import Format

LEAST = 2  # tokens of a document


@dataclass(frozen=True, eq=False)
class Layout:
    """Documents in one order, with a question behind them and its answer, teacher-forced.

    Attributes:
        batch: all but the answer's last token; its spans are the document at each place, by the names in `places`.
        places: "document 1" and so on.
        rows: for each prompt, the queries that predict the answer; the first is the question's last token.
        answer: its tokens.
    """

    batch: Batch
    places: tuple[str, ...]
    rows: tuple[range, ...]
    answer: tuple[tuple[int, ...], ...]

    __repr__ = brief

    @property
    def asking(self) -> Bool[Tensor, "batch pos"]:
        """The question's last token of each prompt."""
        mask = torch.zeros_like(self.batch.mask)
        mask[torch.arange(len(mask)), [r.start for r in self.rows]] = True
        return mask


@dataclass(frozen=True, eq=False)
class Documents:
    """Prompts, each of several documents, a question and its answer, in tokens.

    Attributes:
        start: what stands in front, a BOS say.
        documents: of each prompt, as many in all.
        question: of each prompt.
        answer: of each prompt.
        gold: index of the document that holds the answer.
        facts: what they were made of, for provenance.

    Raises:
        TaskError: prompts with different numbers of documents, or with fewer than two.
    """

    start: tuple[int, ...]
    documents: tuple[tuple[tuple[int, ...], ...], ...]
    question: tuple[tuple[int, ...], ...]
    answer: tuple[tuple[int, ...], ...]
    gold: Int[Tensor, " prompt"]
    facts: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def __post_init__(self) -> None:
        """As many documents in each prompt."""
        counts = {len(d) for d in self.documents}
        if len(counts) != 1 or min(counts) < 2:  # noqa: PLR2004
            raise TaskError(f"prompts have {sorted(counts)} documents; expected one number throughout, two or more")

    def __len__(self) -> int:
        """How many prompts."""
        return len(self.documents)

    @property
    def places(self) -> int:
        """Documents in a prompt."""
        return len(self.documents[0])

    def order(self) -> Int[Tensor, "prompt place"]:
        """The order in which they are: document k at place k."""
        return torch.arange(self.places).repeat(len(self), 1)

    def laid_out(self, order: Int[Tensor, "prompt place"] | None = None) -> Layout:
        """Prompts with document `order[prompt, place]` at each place."""
        order = self.order() if order is None else order
        rows, spans, asked = [], [], []
        for i, places in enumerate(order.tolist()):
            ids, ends = list(self.start), [len(self.start)]
            for k in places:
                ids += self.documents[i][k]
                ends.append(len(ids))
            ids += self.question[i]
            asked.append(range(len(ids) - 1, len(ids) - 1 + len(self.answer[i])))
            rows.append([*ids, *self.answer[i][:-1]])
            spans.append(list(zip(ends, ends[1:], strict=False)))
        names = tuple(f"document {place + 1}" for place in range(order.shape[1]))
        by_name = {name: [bounds[place] for bounds in spans] for place, name in enumerate(names)}
        return Layout(Batch.of(rows, spans=by_name), names, tuple(asked), self.answer)

    def replaced(self, place: int, filler: Sequence[Sequence[int]]) -> Documents:
        """The same prompts with a dummy document, cut to length, in place of their own at `place`."""
        documents = []
        for own, dummy in zip(self.documents, filler, strict=True):
            size = len(own[place])
            new = tuple((list(dummy) * (size // max(1, len(dummy)) + 1))[:size])
            documents.append((*own[:place], new, *own[place + 1 :]))
        return Documents(self.start, tuple(documents), self.question, self.answer, self.gold, self.facts)


def needle_documents(
    model: Model,
    *,
    n_prompts: int,
    n_documents: int,
    length: int,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> tuple[Documents, tuple[tuple[int, ...], ...]]:
    """Haystacks cut into documents of one size, a needle in one of them; and a dummy for each prompt: haystack alone.

    Prompt i has its needle in the middle of document i modulo `n_documents`.

    Args:
        model: whose tokens are used.
        n_prompts: prompts.
        n_documents: documents in each.
        length: tokens per prompt, question and answer included.
        task: how a needle is told and asked for; see `needles.format_for`.
        bos: "default", "forced" or "none".
        seed: of everything that is drawn.

    Raises:
        NotApplicable: no room for documents of two tokens.
    """
    options: dict[str, Any] = {"length": length, "n_needles": 1, "task": task, "bos": bos}
    prompts: list[tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
    facts, start = {}, ()
    for gold in range(min(n_documents, n_prompts)):
        n = len(range(gold, n_prompts, n_documents))
        depth = (gold + 0.5) / n_documents
        hidden = needles.hide(model, n=n, depths=[depth], seed=seed + 7919 * gold, **options)
        facts, first = hidden.describe(), tasks.bos_id(model, bos)
        start = () if first is None else (first,)
        prompts += [_cut(hidden, a, len(start), n_documents, gold) for a in hidden.answers]
    order = sorted(range(n_prompts), key=lambda i: _place(i, n_prompts, n_documents))
    prompts = [prompts[order.index(i)] for i in range(n_prompts)]
    documents, questions, answers, dummies = zip(*prompts, strict=True)
    facts = {**facts, "n": n_prompts, "questions": n_prompts, "documents": n_documents}
    del facts["sha256"]
    gold_places = torch.arange(n_prompts) % n_documents
    return Documents(start, documents, questions, answers, gold_places, facts), dummies


def _place(prompt: int, n_prompts: int, n_documents: int) -> tuple[int, int]:
    return prompt % n_documents, prompt // n_documents


def _cut(hidden: needles.Needles, answer: needles.Answer, start: int, n: int, gold: int) -> Any:
    """A prompt's documents, question, answer and haystack; no cut goes through the needle."""
    ids, context = hidden.batch.ids[answer.prompt].tolist(), hidden.context[answer.prompt]
    hay = hidden.hay[answer.prompt]
    needle = [i for i in range(start, context) if not hay[i]]
    low, high = needle[0], needle[-1] + 1
    cuts = [round(start + k * (context - start) / n) for k in range(n + 1)]
    cuts[: gold + 1] = [min(c, low) for c in cuts[: gold + 1]]
    cuts[gold + 1 :] = [max(c, high) for c in cuts[gold + 1 :]]
    documents = tuple(tuple(ids[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))
    if min(map(len, documents)) < LEAST:
        raise NotApplicable(
            f"a context of {context - start} tokens leaves no room for {n} documents of {LEAST} tokens; give fewer"
        )
    begin, end = answer.question
    value = tuple(hidden.value(answer))
    return documents, tuple(ids[begin:end]), value, tuple(torch.tensor(ids)[hay.cpu()].tolist())


def each_score(
    model: Model, layout: Layout, edits: Sequence[Edit] = ()
) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]:
    """For each prompt, 1 if every token of the answer ranks first, and the mean loss of these tokens in nats."""
    logits = model.run(layout.batch, edits=edits).logits
    if logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    right, losses = [], []
    for i, (rows, answer) in enumerate(zip(layout.rows, layout.answer, strict=True)):
        token = torch.tensor(answer)
        x = logits[i, list(rows)].float().cpu()
        right.append(float((x.argmax(-1) == token).all()))
        losses.append(torch.nn.functional.cross_entropy(x, token).item())
    return np.array(right), np.array(losses)


def span_mass(model: Model, layout: Layout, edits: Sequence[Edit] = ()) -> Float[Tensor, "batch layer head place"]:
    """Attention of the question's last token to the document at each place, in every layer that has attention."""
    rows = torch.tensor([[r.start] for r in layout.rows])
    pattern = model.attention(layout.batch, {"rows": Rows(rows)}, edits=edits)["rows"][
        :, :, :, 0
    ]  # layer batch head key
    spans = torch.stack([layout.batch.span(name).cpu() for name in layout.places], -1)
    return torch.einsum("lbhk,bks->blhs", pattern.float(), spans.float())


def baseline_mass(
    model: Model, documents: Documents, dummies: Sequence[Sequence[int]], edits: Sequence[Edit] = ()
) -> Float[Tensor, "batch layer head place"]:
    """Attention that a dummy document gets at each place, the others as they are: the bias of the place."""
    places = []
    for place in range(documents.places):
        layout = documents.replaced(place, dummies).laid_out()
        places.append(span_mass(model, layout, edits)[..., place])
    return torch.stack(places, -1)
