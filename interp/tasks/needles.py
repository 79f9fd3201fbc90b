"""Needles in haystacks: facts hidden in long text and asked for at its end, in the tokens of any model.

    hidden = hide(model, n=16, length=4096)       # 16 prompts of 4096 tokens, three needles each, questions at the end
    hidden.batch, hidden.answers[0].rows, hidden.answers[0].keys

A `Format` says how a needle is told and asked for. Models that read text get sentences (`datasets/needles`); models
without a tokenizer, or with too few words, get key-value pairs among random tokens; a tokenizer may bring a format of
its own, as it may bring a chat template. `Needles.describe` says for provenance what was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.batch import Batch
from interp.errors import NotApplicable, TaskError
from interp.model import Model
from interp.shapes import brief
from interp.tasks.haystacks import LEAST, PAIRS, Format, Writer, dataset, writer_for
from interp.tasks.synthetic import fingerprint

OFFERED = "needle_format"
"""Name under which a tokenizer may carry a `Format`, as a mapping, in tokenizer_config.json."""


class Answer(NamedTuple):
    """One question of one prompt: positions in it."""

    prompt: int
    keys: tuple[int, ...]
    """Where the value stands in the context."""
    rows: tuple[int, ...]
    """Queries that predict it, one per token: the last of the question, then the value's own but its last."""
    question: tuple[int, int]
    """Where the question begins and ends."""
    depth: float
    """0 at the beginning of the haystack, 1 at its end."""


@dataclass(frozen=True, eq=False)
class Needles:
    """Prompts with hidden needles, their questions and their answers, one after the other.

    Attributes:
        batch: context, then questions each with its answer. Its spans: "document", the context without BOS; "needle",
            "question" and "answer", all of a prompt's.
        answers: every question of every prompt, in order.
        context: how many tokens of each prompt come before the first question.
        hay: which tokens are haystack: neither needle, question nor BOS.
        format: how needles were told.
        source: where the format comes from: "text", "tokenizer", "pairs" or "caller".
    """

    batch: Batch
    answers: tuple[Answer, ...]
    context: tuple[int, ...]
    hay: Bool[Tensor, "batch pos"]
    format: Format
    source: str

    __repr__ = brief

    def value(self, answer: Answer) -> list[int]:
        """Token ids of the right answer."""
        return self.batch.ids[answer.prompt, list(answer.keys)].tolist()

    def first(self, n: int) -> Needles:
        """The first `n` prompts."""
        batch = self.batch.select(slice(None, n))
        answers = tuple(a for a in self.answers if a.prompt < n)
        return Needles(batch, answers, self.context[:n], self.hay[:n], self.format, self.source)

    def describe(self) -> dict[str, Any]:
        """Format and size of the prompts, for provenance."""
        record = {k: v for k, v in asdict(self.format).items() if k != "text"}
        record["haystack"] = "the caller's text" if self.format.text is not None else self.format.haystack
        names = {"text": "needles in text", "pairs": "key-value pairs among random tokens (proxy)"}
        return {
            "task": names.get(self.source, f"needles, in the {self.source}'s format"),
            **record,
            "n": len(self.batch.ids),
            "questions": len(self.answers),
            "length": int(self.batch.mask.sum(1).max()),
            "sha256": fingerprint([self.batch]),
        }


def format_for(model: Model, task: Format | None = None) -> tuple[Format, str]:
    """The format to use on a model and where it comes from.

    The caller's; or the tokenizer's own (`needle_format` in tokenizer_config.json); or sentences, where the tokenizer
    writes them without unknown tokens; or key-value pairs.
    """
    if task is not None:
        return task, "caller"
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        return PAIRS, "pairs"
    options = tokenizer.init_kwargs.get(OFFERED)
    if options is not None:
        return Format(**options), "tokenizer"
    data = dataset()
    sample = "\n".join([*data["sentences"][:4], *data["words"][:20], data["needle"]])
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    if ids and tokenizer.unk_token_id not in ids and max(ids) < model.info.d_vocab:
        return Format(data["needle"], data["question"]), "text"
    return PAIRS, "pairs"


def hide(
    model: Model,
    *,
    n: int = 24,
    length: int = 256,
    n_needles: int = 3,
    value_words: int = 1,
    depths: Sequence[float] | None = None,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> Needles:
    """`n` prompts of at most `length` tokens with needles at stated depths, each asked for at the end.

    Questions follow each other in random order, each with its right answer, so that one teacher-forced pass answers
    all of them. Depths are spread evenly over the prompts unless given (one list for all prompts, as long as
    `n_needles`). Fewer needles are hidden where the format has no key, or where more do not fit.

    Args:
        model: whose tokens are used.
        n: prompts.
        length: tokens per prompt, questions and answers included; shortened to the context and the vocabulary.
        n_needles: needles per prompt.
        value_words: words (or tokens) in a value.
        depths: 0 is the beginning of the haystack, 1 its end.
        task: a format of the caller's own.
        bos: "default", "forced" or "none".
        seed: of everything that is drawn.

    Raises:
        NotApplicable: no room for `LEAST` tokens of haystack, or too few distinct tokens.
    """
    form, source = format_for(model, task)
    n_needles = n_needles if "{key}" in form.needle else 1
    if depths is not None and len(depths) != n_needles:
        raise TaskError(f"{len(depths)} depths for {n_needles} needles; give one for each")
    writer = writer_for(model, form, length=min(length, model.info.context or length), bos=bos)
    rng = Random(seed)
    order = rng.sample(range(n * n_needles), n * n_needles)
    even_depths = [(k + 0.5) / len(order) for k in order]
    prompts = []
    for b in range(n):
        at = sorted(depths if depths is not None else even_depths[b * n_needles : (b + 1) * n_needles])
        prompts.append(_prompt(writer, rng, prompt=b, depths=at, value_words=value_words))
    names = ("document", "needle", "question", "answer")
    spans = {name: [w.spans[name] for w in prompts] for name in names if any(w.spans[name] for w in prompts)}
    batch = Batch.of([w.ids for w in prompts], spans=spans)
    hay = torch.zeros_like(batch.mask)
    for b, w in enumerate(prompts):
        hay[b, w.hay] = True
    answers = tuple(answer for w in prompts for answer in w.answers)
    return Needles(batch, answers, tuple(w.context for w in prompts), hay, form, source)


class _HayPrompt(NamedTuple):
    ids: list[int]
    hay: list[int]
    context: int
    answers: list[Answer]
    spans: dict[str, list[tuple[int, int]]]


def _prompt(writer: Writer, rng: Random, *, prompt: int, depths: Sequence[float], value_words: int) -> _HayPrompt:
    """One prompt: haystack with needles, then questions with answers."""
    words = writer.draw(rng, len(depths) * (1 + value_words))
    step = 1 + value_words
    pairs = [(words[i * step], words[i * step + 1 : (i + 1) * step]) for i in range(len(depths))]
    needles = [writer.tell(writer.format.needle, key, value) for key, value in pairs]
    questions = [writer.tell(writer.format.question + "{value}", key, value) for key, value in pairs]
    start = 0 if writer.bos is None else 1
    room = writer.length - start - sum(len(t.ids) for t in (*needles, *questions))
    if room < LEAST:
        raise NotApplicable(
            f"{len(depths)} needles with their questions take {writer.length - room} tokens, and {LEAST} of haystack "
            f"are needed beside them; prompts of this model have {writer.length}"
        )
    pieces = writer.haystack(rng, room, avoid=words)
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    flat = [token for piece in pieces for token in piece]
    cuts = [min(ends, key=lambda end, d=depth: abs(end - d * len(flat))) for depth in depths]
    ids = [] if writer.bos is None else [writer.bos]
    hay: list[int] = []
    keys: list[tuple[int, ...]] = []
    spans: dict[str, list[tuple[int, int]]] = {"document": [], "needle": [], "question": [], "answer": []}
    for begin, end, statement in zip([0, *cuts], [*cuts, len(flat)], [*needles, None], strict=True):
        hay += range(len(ids), len(ids) + end - begin)
        ids += flat[begin:end]
        if statement is not None:
            keys.append(tuple(range(len(ids) + statement.value.start, len(ids) + statement.value.stop)))
            spans["needle"].append((len(ids), len(ids) + len(statement.ids)))
            ids += statement.ids
    context = len(ids)
    spans["document"].append((start, context))
    answers = []
    for i in rng.sample(range(len(depths)), len(depths)):
        begin, statement = len(ids), questions[i]
        first = begin + statement.value.start
        # the value is written as in the needle, also where the tokenizer would have merged it with what follows there
        ids += [*statement.ids[: statement.value.start], *needles[i].ids[needles[i].value]]
        rows = tuple(range(first - 1, first - 1 + len(keys[i])))
        if first > begin:
            spans["question"].append((begin, first))
        spans["answer"].append((first, len(ids)))
        answers.append(Answer(prompt, keys[i], rows, (begin, first), cuts[i] / max(1, len(flat))))
    return _HayPrompt(ids, hay, context, answers, spans)
