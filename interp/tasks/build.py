"""`task(name, model)`: prompts of a named task in a form that the model's tokenizer, or its own checkpoint, knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from interp.errors import NotApplicable, SchemaError, TaskError, UnknownTask, nearest
from interp.model import Model
from interp.tasks import (
    agreement,
    arithmetic,
    binding,
    docstring,
    greater_than,
    induction,
    ioi,
    lookup,
    mcqa,
    modular,
    planted,
)
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.source import Document, checkpoint_tasks, document, is_held_out, shipped_tasks
from interp.tasks.spell import EncodedPair, Example, Speller

SPLITS = ("train", "held-out")
LEAST = 5
"""Fewer words of a list than this are no task."""
TRIES = 40
"""Draws per prompt asked for, before a task is given up."""


@dataclass(frozen=True)
class Family:
    """Generator of the prompts of one family of documents."""

    draw: Callable[[Random, Document, str], Example | None]
    corruptions: tuple[str, ...]
    """The first is the default."""
    metric: str
    fit: Callable[[Document, Speller, str], tuple[Callable[..., Example | None], str]] | None = None
    """Where the question itself depends on the tokenizer: (document, speller, corruption) -> `draw`, and its kind."""

    @classmethod
    def of(cls, module: ModuleType) -> Family:
        """From a generator's module."""
        return cls(module.draw, module.CORRUPTIONS, module.METRIC, getattr(module, "fit", None))


FAMILIES: Mapping[str, Family] = {
    getattr(module, "FAMILY", module.__name__.rpartition(".")[2]): Family.of(module)
    for module in (agreement, arithmetic, binding, docstring, greater_than, ioi, lookup, mcqa, modular)
}


def task_names(model: Model | None = None) -> tuple[str, ...]:
    """Tasks there are: shipped ones, `induction`, and those that the model's checkpoint brings along."""
    own_names = () if model is None else (*checkpoint_tasks(model), *planted.zoo_task_names(model))
    return tuple(sorted({*shipped_tasks(), "induction", *own_names}))


def task(
    name: str,
    model: Model,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "train",
    corruption: str | None = None,
    bos: str = "default",
    source: str | Path | None = None,
) -> PromptTask:
    """`n` different pairs of clean and corrupt prompts of a task; the same arguments give the same prompts.

    Templates and words come from the checkpoint's own `tasks.json` where it has one that knows the task (`source` names
    another folder or file), else from `datasets`. Words that are several tokens of this tokenizer are left out; the
    task's `record` says how many are left. "train" and "held-out" share no key (as the pair of names of IOI).

    Raises:
        TaskError: unknown task, corruption or split.
        NotApplicable: no tokenizer, too few words that are one token, or too few prompts that align.

    >>> import interp
    >>> pairs = interp.task("induction", interp.load("zoo:planted-induction"), n=8)
    >>> pairs.clean.ids.shape == pairs.corrupt.ids.shape
    True
    """
    name = name.replace("-", "_")
    if split not in SPLITS:
        raise UnknownTask(f"unknown split {split!r}; {nearest(split, SPLITS)}")
    if n < 1:
        raise TaskError(f"{n} prompts asked for; at least 1 is needed")
    if source is None and planted.knows(model, name):
        return planted.of_zoo(model, name, n=n, seed=seed, split=split, corruption=corruption)
    documents = checkpoint_tasks(model, None if source is None else Path(source).expanduser())
    if name not in documents and name == "induction":
        return induction.induction_task(model, n=n, seed=seed, split=split, corruption=corruption, bos=bos)
    if name == modular.FAMILY and model.tokenizer is None:
        return modular.modular_task(model, n=n, seed=seed, split=split, corruption=corruption)
    if name not in documents and name not in shipped_tasks():
        raise UnknownTask(f"unknown task {name!r}; {nearest(name, {*task_names(), *documents})}")
    doc = documents[name] if name in documents else document(name)
    return _sample(doc, Speller(model, bos=bos), n=n, seed=seed, split=split, corruption=corruption, bos=bos)


def _sample(
    doc: Document, speller: Speller, *, n: int, seed: int, split: str, corruption: str | None, bos: str
) -> PromptTask:
    if doc.family not in FAMILIES:
        raise SchemaError(f"{doc.source}: unknown family {doc.family!r}; {nearest(doc.family, FAMILIES)}")
    family = FAMILIES[doc.family]
    corruptions = doc.corruptions or family.corruptions
    kind = corruption or corruptions[0]
    if kind not in corruptions:
        raise TaskError(f"{doc.name} has no corruption {kind!r}; {nearest(kind, corruptions)}")
    templates = tuple(t for t in doc.templates if t.split in (None, split))
    words, coverage = fit_words(replace(doc, templates=templates), speller)
    try:
        draw, place = (family.draw, None) if family.fit is None else family.fit(words, speller, kind)
    except (KeyError, IndexError) as error:
        raise _incomplete(doc, error) from error
    rng = Random(f"{doc.name} {split} {seed} {kind}")
    pairs: dict[tuple[int, ...], EncodedPair] = {}
    for _ in range(TRIES * (n + 10)):
        try:
            example = draw(rng, words, kind)
        except (KeyError, IndexError, ValueError) as error:
            raise _incomplete(doc, error) from error
        if example is not None and _in_split(example.key, split, doc):
            pair = speller.encode(example, first_token=doc.answer == "first token")
            if pair is not None:
                pairs.setdefault(tuple(pair.clean), pair)
        if len(pairs) == n:
            break
    if len(pairs) < n:
        raise NotApplicable(
            f"{doc.name} cannot be asked with this tokenizer: only {len(pairs)} of {n} prompts have answers of one "
            f"token, and clean and corrupt forms that align{_coverage_text(coverage)}"
        )
    encodings = list(pairs.values())
    return collate(
        doc.name,
        [(e.clean, e.corrupt) for e in encodings],
        answers=[e.answers for e in encodings],
        wrong=[e.wrong for e in encodings],
        roles=[e.roles for e in encodings],
        templates=[e.template for e in encodings],
        corruption=kind,
        metric=doc.metric or family.metric,
        split=split,
        record={
            "source": doc.source,
            "source_sha256": doc.sha256,
            "answer_rule": doc.answer,
            "coverage": coverage,
            "bos": bos,
            "seed": seed,
            **({} if place is None else {"deciding_token": place}),
        },
    )


def _incomplete(doc: Document, error: Exception) -> SchemaError:
    """A list or row that the generator of the family looks for and the document does not have, or not enough of."""
    return SchemaError(
        f"{doc.source}: {doc.name} lacks what a task of family {doc.family!r} is made of: {error!r:.100}"
    )


def _in_split(key: str, split: str, doc: Document) -> bool:
    """Whether the key is of this split, decided by its text alone; an empty key is of both (templates are held out)."""
    return not key or is_held_out(key, one_in=doc.one_in) is (split == "held-out")


def fit_words(doc: Document, speller: Speller) -> tuple[Document, dict[str, list[int]]]:
    """The document with the words that are one token of this tokenizer, and [left, all] of each list.

    Raises:
        NotApplicable: too few are left.
    """
    words = {k: v if k in doc.many else speller.single(v) for k, v in doc.words.items()}
    noun_lists = [k for k in words if k.endswith(" noun")]  # singular and plural stand side by side: both or neither
    if noun_lists:
        is_whole = [all(doc.words[k][i] in words[k] for k in noun_lists) for i in range(len(doc.words[noun_lists[0]]))]
        words |= {k: tuple(w for w, whole in zip(doc.words[k], is_whole, strict=True) if whole) for k in noun_lists}
    rows = tuple(row for row in (_row(row, doc, speller) for row in doc.rows) if row is not None)
    coverage = {k: [len(words[k]), len(doc.words[k])] for k in doc.words}
    if doc.rows:
        coverage["rows"] = [len(rows), len(doc.rows)]
    short = [k for k, (n_single, of) in coverage.items() if n_single < min(LEAST, of)]
    if short:
        raise NotApplicable(
            f"{doc.name} cannot be asked with this tokenizer: of its {short[0]!r} list {coverage[short[0]][0]} of "
            f"{coverage[short[0]][1]} words are one token, and {min(LEAST, coverage[short[0]][1])} are needed"
        )
    return replace(doc, words=words, rows=rows), coverage


def _row(row: Mapping[str, Any], doc: Document, speller: Speller) -> Mapping[str, Any] | None:
    """The row with those of its answers that are one token; None without any, or where a slot is several."""
    slots = [word for slot, word in row["slots"].items() if slot not in doc.many]
    if len(speller.single(slots)) < len(slots):
        return None
    answers = row["answers"] if doc.answer == "first token" else speller.single(row["answers"])
    return {**row, "answers": tuple(answers)} if answers else None


def _coverage_text(coverage: Mapping[str, list[int]]) -> str:
    """Lists that are short of words, as the end of a sentence; nothing where all words can be used."""
    short = [f"{n_single} of {of} of its {name!r}" for name, (n_single, of) in coverage.items() if n_single < of]
    return f"; words of one token: {', '.join(short)}" if short else ""
