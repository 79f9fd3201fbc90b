"""`DocumentNeedles`: needles among documents, the place of the document that is asked about swept; and contexts apart.

    found = interp.tasks.document_needles(model, n=8, n_documents=5)   # 8 questions, 5 places of the document asked for
    found.batch.span("document 3"), found.gold, found.right(model.run(found.batch).logits)

Every document holds a needle of its own, so that the others are distractors; what is asked for stands in one. The same
prompts with contexts side by side, none seeing the others, are `apart`: pairs of query and key for
`KnockOut(..., pairs=..., renormalise=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.errors import NotApplicable, TaskError
from interp.model import Model
from interp.shapes import brief
from interp.tasks.haystacks import LEAST, PAIRS, Format, Statement, Writer, writer_for
from interp.tasks.needles import Answer, format_for
from interp.tasks.synthetic import fingerprint

VALUE = " value"
"""Where the answer stands in the gold document: kept beside the spans that have names."""
FILL = 4
"""Tokens of haystack that each document has at least, besides its needle."""


@dataclass(frozen=True, eq=False)
class DocumentNeedles:
    """Prompts of several documents, a question behind them, and its answer.

    Attributes:
        batch: spans "document 1" ... in the order they stand, "gold" (the one that is asked about), "needle" (in it),
            "question" and "answer".
        answers: one for each prompt; its depth is 0 where the gold document stands first, 1 where it stands last.
        gold: place of the gold document, from 0.
        group: prompts of one group have the same documents and differ in the gold document's place alone.
        n_documents: how many.
        facts: format and source, for provenance.
    """

    batch: Batch
    answers: tuple[Answer, ...]
    gold: Int[Tensor, " prompt"]
    group: Int[Tensor, " prompt"]
    n_documents: int
    facts: dict[str, Any]

    __repr__ = brief

    def right(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> Bool[Tensor, " prompt"]:
        """Whether every token of the answer is the likeliest where it is predicted."""
        said = logits.argmax(-1).cpu()
        ids = self.batch.ids.cpu()
        return torch.tensor(
            [
                all(said[a.prompt, r] == ids[a.prompt, k] for r, k in zip(a.rows, a.keys, strict=True))
                for a in self.answers
            ]
        )

    def by_place(self, right: Bool[Tensor, " prompt"]) -> pd.DataFrame:
        """Share of right answers by the gold document's place: `place` (1 first), `accuracy`, `n`."""
        frame = pd.DataFrame({"place": (self.gold + 1).tolist(), "right": right.double().tolist()})
        found = frame.groupby("place")["right"].agg(["mean", "size"]).reset_index()
        return found.rename(columns={"mean": "accuracy", "size": "n"})

    def blocks(self) -> Int[Tensor, "prompt pos"]:
        """Number of the document that a token belongs to, from 1; 0 for all else."""
        number = torch.zeros_like(self.batch.ids)
        for i in range(1, self.n_documents + 1):
            number[self.batch.span(f"document {i}")] = i
        return number

    def apart(self, *, shared: bool = True) -> Bool[Tensor, "prompt query key"]:
        """Pairs hidden from each other where documents are read in parallel: tokens of two of them.

        The question sees all. `shared`: whether documents see what stands in front of all (a BOS).
        """
        block = self.blocks()
        query, key = block[:, :, None], block[:, None, :]
        hidden = (query > 0) & (key != query)
        return hidden & (key > 0) if shared else hidden

    def describe(self) -> dict[str, Any]:
        """Format and size of the prompts, for provenance."""
        size = {"n": len(self.batch.ids), "documents": self.n_documents, "length": self.batch.ids.shape[1]}
        return {"task": "needles among documents", **self.facts, **size, "sha256": fingerprint([self.batch])}


def document_needles(
    model: Model,
    *,
    n: int = 8,
    n_documents: int = 5,
    length: int = 256,
    places: tuple[int, ...] | None = None,
    value_words: int = 1,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> DocumentNeedles:
    """`n` sets of documents, each once for every place of the one that is asked about: n * len(places) prompts.

    Args:
        model: whose tokens are used.
        n: sets of documents.
        n_documents: documents in a prompt, 2 at least.
        length: tokens of a prompt, question and answer included; shortened to context and vocabulary.
        places: of the gold document, from 0; all of them without.
        value_words: words (or tokens) in an answer.
        task: a format of the caller's own, with `{key}`; pairs of tokens where the model's own has none.
        bos: "default", "forced" or "none".
        seed: of everything that is drawn.

    Raises:
        NotApplicable: no room for `FILL` tokens beside the needle of each document, or too few distinct tokens.
        TaskError: fewer than two documents, a place that is none, or a format whose needles cannot be told apart.

    >>> import interp
    >>> found = interp.tasks.document_needles(interp.load("zoo:planted-induction"), n=1, n_documents=3, length=40)
    >>> found.gold.tolist(), sorted(found.batch.spans)[:3]
    ([0, 1, 2], ['answer', 'document 1', 'document 2'])
    """
    places = tuple(range(n_documents)) if places is None else places
    if n_documents < 2 or any(not 0 <= p < n_documents for p in places):  # noqa: PLR2004
        raise TaskError(f"places {places} of {n_documents} documents: two at least, and places from 0 on")
    form, source = format_for(model, task)
    if "{key}" not in form.needle and task is None:
        form, source = PAIRS, "pairs"
    if "{key}" not in form.needle:
        raise TaskError(f"needles of several documents are told apart by a {{key}}; {form.needle!r} has none")
    writer = writer_for(model, form, length=min(length, model.info.context or length), bos=bos)
    rng, prompts = Random(seed), []
    for _ in range(n):
        parts, question, value = _parts(writer, rng, n_documents, value_words)
        prompts += [_prompt(writer, parts, question, value, place) for place in places]
    names = [name for name in prompts[0][1] if name != VALUE]
    spans = {name: [where[name] for _, where in prompts] for name in names}
    answers = tuple(
        _answer(i, where, place / (n_documents - 1))
        for i, ((_, where), place) in enumerate(zip(prompts, places * n, strict=True))
    )
    facts = {"needle": form.needle, "question": form.question, "source": source, "seed": seed}
    group = torch.arange(n).repeat_interleave(len(places))
    batch = Batch.of([ids for ids, _ in prompts], spans=spans)
    return DocumentNeedles(batch, answers, torch.tensor(places * n), group, n_documents, facts)


def _answer(prompt: int, where: dict[str, tuple[int, int]], depth: float) -> Answer:
    begin, end = where["answer"]
    return Answer(prompt, tuple(range(*where[VALUE])), tuple(range(begin - 1, end - 1)), where["question"], depth)


def _parts(
    writer: Writer, rng: Random, n: int, value_words: int
) -> tuple[list[tuple[list[int], Statement, list[int]]], list[int], list[int]]:
    """Documents as (before, needle, after), the gold one first; the question; the answer as its needle has it."""
    step = 1 + value_words
    words = writer.draw(rng, n * step)
    told = [(words[i * step], words[i * step + 1 : (i + 1) * step]) for i in range(n)]
    needles = [writer.tell(writer.format.needle, key, value) for key, value in told]
    asked = writer.tell(writer.format.question + "{value}", *told[0])
    question, value = asked.ids[: asked.value.start], needles[0].ids[needles[0].value]
    taken = len(question) + len(value) + sum(len(s.ids) for s in needles) + (writer.bos is not None)
    room = writer.length - taken
    if room < max(LEAST, n * FILL):
        raise NotApplicable(
            f"{n} documents with a needle each and a question take {taken} tokens, and {max(LEAST, n * FILL)} of "
            f"haystack are needed beside them; prompts of this model have {writer.length}"
        )
    flat = [token for piece in writer.haystack(rng, room, avoid=words) for token in piece]
    ends = [len(flat) * i // n for i in range(n + 1)]
    parts = []
    for needle, first, last in zip(needles, ends[:-1], ends[1:], strict=True):
        middle = rng.randint(first + 1, max(first + 1, last - 1))
        parts.append((flat[first:middle], needle, flat[middle:last]))
    return parts, question, value


def _prompt(
    writer: Writer,
    parts: list[tuple[list[int], Statement, list[int]]],
    question: list[int],
    value: list[int],
    place: int,
) -> tuple[list[int], dict[str, tuple[int, int]]]:
    """Ids of one prompt, the gold document at its place, and where its spans stand."""
    order = [*parts[1 : place + 1], parts[0], *parts[place + 1 :]]
    ids = [] if writer.bos is None else [writer.bos]
    spans: dict[str, tuple[int, int]] = {}
    for i, (before, needle, after) in enumerate(order):
        begin = len(ids)
        ids += [*before, *needle.ids, *after]
        spans[f"document {i + 1}"] = (begin, len(ids))
        if i == place:
            spans["gold"] = (begin, len(ids))
            start = begin + len(before)
            spans["needle"] = (start, start + len(needle.ids))
            spans[VALUE] = (start + needle.value.start, start + needle.value.stop)
    spans["question"] = (len(ids), len(ids) + len(question))
    spans["answer"] = (len(ids) + len(question), len(ids) + len(question) + len(value))
    return [*ids, *question, *value], spans
