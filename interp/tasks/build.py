"""`task(name, model)`: prompts of a named task in a form that the model's tokenizer, or its own checkpoint, knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from interp.data import is_held_out
from interp.errors import NotApplicable, SchemaError, TaskError, UnknownTask, nearest
from interp.model import Model
from interp.tasks import (
    agreement,
    arithmetic,
    binding,
    dated,
    docstring,
    greater_than,
    induction,
    ioi,
    lookup,
    mcqa,
    modular,
    ontology,
    planted,
)
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.source import Document, checkpoint_tasks, document, shipped_tasks
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
    options: tuple[str, ...] = ()
    """Fields of the document that a caller may set."""

    @classmethod
    def of(cls, module: ModuleType) -> Family:
        """From a generator's module."""
        return cls(
            module.draw, module.CORRUPTIONS, module.METRIC, getattr(module, "fit", None), getattr(module, "OPTIONS", ())
        )


FAMILIES: Mapping[str, Family] = {
    getattr(module, "FAMILY", module.__name__.rpartition(".")[2]): Family.of(module)
    for module in (
        agreement,
        arithmetic,
        binding,
        dated,
        docstring,
        greater_than,
        ioi,
        lookup,
        mcqa,
        modular,
        ontology,
    )
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
    **options: Any,
) -> PromptTask:
    """`n` different pairs of clean and corrupt prompts of a task; the same arguments give the same prompts.

    Templates and words come from the checkpoint's own `tasks.json` where it has one that knows the task (`source` names
    another folder or file), else from `datasets`. Words that are several tokens of this tokenizer are left out; the
    task's `record` says how many are left. "train" and "held-out" share no key (as the pair of names of IOI).

    `options` are those of a family of tasks: `digits` of sums and differences; `depths` (links of a chain, one of these
    in each prompt), `distractors` (other chains), `order` ("shuffled", "facts" first, or "chain") and `steps` (whether
    the conclusions on the way are stated) of fictional ontologies.

    Raises:
        TaskError: unknown task, corruption, split or option.
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
        _refuse_options(name, options, ())
        return planted.of_zoo(model, name, n=n, seed=seed, split=split, corruption=corruption)
    documents = checkpoint_tasks(model, None if source is None else Path(source).expanduser())
    if name not in documents and name == "induction":
        _refuse_options(name, options, ())
        return induction.induction_task(model, n=n, seed=seed, split=split, corruption=corruption, bos=bos)
    if name == modular.FAMILY and model.tokenizer is None:
        _refuse_options(name, options, ())
        return modular.modular_task(model, n=n, seed=seed, split=split, corruption=corruption)
    if name not in documents and name not in shipped_tasks():
        raise UnknownTask(f"unknown task {name!r}; {nearest(name, {*task_names(), *documents})}")
    doc = _with_options(documents[name] if name in documents else document(name), options)
    return _sample(doc, Speller(model, bos=bos), n=n, seed=seed, split=split, corruption=corruption, bos=bos)


def _refuse_options(name: str, options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise TaskError(f"{name} has no option {option!r}; {hint}")


def _with_options(doc: Document, options: Mapping[str, Any]) -> Document:
    """The document with the fields that its family lets a caller set."""
    known = FAMILIES[doc.family].options if doc.family in FAMILIES else ()
    _refuse_options(doc.name, options, known)
    fields: dict[str, Any] = {}
    for option, value in options.items():
        own = getattr(doc, option)
        fields[option] = (value,) if isinstance(own, tuple) and isinstance(value, int) else value
        _check_option(doc.name, option, fields[option], own)
    return replace(doc, **fields)


def _check_option(name: str, option: str, value: Any, own: Any) -> None:
    """Refuse another kind of value than the document's own."""
    if isinstance(own, bool):
        expected, right = "True or False", isinstance(value, bool)
    elif isinstance(own, int):
        expected, right = "an integer of at least 1", isinstance(value, int) and value is not True and value >= 1
    elif isinstance(own, tuple):
        expected = "integers of at least 1"
        right = isinstance(value, Sequence) and bool(value) and all(isinstance(v, int) and v >= 1 for v in value)
    else:
        expected, right = "a string", isinstance(value, str)
    if not right:
        raise TaskError(f"{name}: {option} is {value!r:.60}; expected {expected}")


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
            **{option: getattr(doc, option) for option in family.options},
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
