"""`task(name, model)`: prompts of a named task in a form that the model's tokenizer, or its own checkpoint, knows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from interp.errors import NotApplicable, SchemaError, TaskError, nearest
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
    planted,
)
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.source import Document, document, own, shipped
from interp.tasks.spell import Encoded, Example, Speller

SPLITS = ("train", "held-out")
LEAST = 5
"""Fewer words of a list than this are no task."""
TRIES = 40
"""Draws per prompt asked for, before a task is given up."""


@dataclass(frozen=True)
class Family:
    """How the prompts of a document are made."""

    draw: Callable[[Random, Document, str], Example]
    corruptions: tuple[str, ...]
    """The first is the default."""
    metric: str

    @classmethod
    def of(cls, module: ModuleType) -> Family:
        """From a generator's module."""
        return cls(module.draw, module.CORRUPTIONS, module.METRIC)


FAMILIES: Mapping[str, Family] = {
    module.__name__.rpartition(".")[2]: Family.of(module)
    for module in (agreement, arithmetic, binding, docstring, greater_than, ioi, lookup, mcqa)
}


def task_names(model: Model | None = None) -> tuple[str, ...]:
    """Tasks there are: shipped ones, `induction`, and those that the model's checkpoint brings along."""
    mine = () if model is None else (*own(model), *planted.names(model))
    return tuple(sorted({*shipped(), "induction", *mine}))


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
        raise TaskError(f"unknown split {split!r}; {nearest(split, SPLITS)}")
    if n < 1:
        raise TaskError(f"{n} prompts asked for; at least 1 is needed")
    if source is None and planted.knows(model, name):
        return planted.of_zoo(model, name, n=n, seed=seed, split=split, corruption=corruption)
    documents = own(model, None if source is None else Path(source).expanduser())
    if name not in documents and name == "induction":
        return induction.build(model, n=n, seed=seed, split=split, corruption=corruption, bos=bos)
    if name not in documents and name not in shipped():
        raise TaskError(f"unknown task {name!r}; {nearest(name, {*task_names(), *documents})}")
    found = documents[name] if name in documents else document(name)
    return _sampled(found, Speller(model, bos=bos), n=n, seed=seed, split=split, corruption=corruption, bos=bos)


def _sampled(
    found: Document, speller: Speller, *, n: int, seed: int, split: str, corruption: str | None, bos: str
) -> PromptTask:
    if found.family not in FAMILIES:
        raise SchemaError(f"{found.source}: unknown family {found.family!r}; {nearest(found.family, FAMILIES)}")
    family = FAMILIES[found.family]
    corruptions = found.corruptions or family.corruptions
    chosen = corruption or corruptions[0]
    if chosen not in corruptions:
        raise TaskError(f"{found.name} has no corruption {chosen!r}; {nearest(chosen, corruptions)}")
    templates = tuple(t for t in found.templates if t.split in (None, split))
    words, coverage = fitted(replace(found, templates=templates), speller)
    rng = Random(f"{found.name} {split} {seed} {chosen}")
    pairs: dict[tuple[int, ...], Encoded] = {}
    for _ in range(TRIES * (n + 10)):
        example = family.draw(rng, words, chosen)
        if example is not None and _belongs(example.key, split, found):
            encoded = speller.encode(example, first_token=found.answer == "first token")
            if encoded is not None:
                pairs.setdefault(tuple(encoded.clean), encoded)
        if len(pairs) == n:
            break
    if len(pairs) < n:
        raise NotApplicable(
            f"{found.name}: only {len(pairs)} of the {n} prompts asked for can be written with this tokenizer; "
            f"words of one token: {_told(coverage)}"
        )
    encoded = list(pairs.values())
    return collate(
        found.name,
        [(e.clean, e.corrupt) for e in encoded],
        answers=[e.answers for e in encoded],
        wrong=[e.wrong for e in encoded],
        roles=[e.roles for e in encoded],
        templates=[e.template for e in encoded],
        corruption=chosen,
        metric=found.metric or family.metric,
        split=split,
        record={
            "source": found.source,
            "source_sha256": found.sha256,
            "answer_rule": found.answer,
            "coverage": coverage,
            "bos": bos,
            "seed": seed,
        },
    )


def _belongs(key: str, split: str, found: Document) -> bool:
    """Whether the key is of this split, decided by its text alone; an empty key is of both (templates are held out)."""
    held_out = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % found.one_in == 0
    return not key or held_out is (split == "held-out")


def fitted(found: Document, speller: Speller) -> tuple[Document, dict[str, list[int]]]:
    """The document with the words that are one token of this tokenizer, and [left, all] of each list.

    Raises:
        NotApplicable: too few are left.
    """
    words = {k: v if k in found.many else speller.single(v) for k, v in found.words.items()}
    paired = [k for k in words if k.endswith(" noun")]  # singular and plural stand side by side: both or neither
    if paired:
        kept = [all(found.words[k][i] in words[k] for k in paired) for i in range(len(found.words[paired[0]]))]
        words |= {k: tuple(w for w, keep in zip(found.words[k], kept, strict=True) if keep) for k in paired}
    rows = tuple(row for row in (_row(row, found, speller) for row in found.rows) if row is not None)
    coverage = {k: [len(words[k]), len(found.words[k])] for k in found.words}
    if found.rows:
        coverage["rows"] = [len(rows), len(found.rows)]
    short = [k for k, (left, of) in coverage.items() if left < min(LEAST, of)]
    if short:
        raise NotApplicable(
            f"{found.name} cannot be asked with this tokenizer: of its {short[0]!r} list {coverage[short[0]][0]} of "
            f"{coverage[short[0]][1]} words are one token, and {min(LEAST, coverage[short[0]][1])} are needed"
        )
    return replace(found, words=words, rows=rows), coverage


def _row(row: Mapping[str, Any], found: Document, speller: Speller) -> Mapping[str, Any] | None:
    """The row with those of its answers that are one token; None without any, or where a slot is several."""
    slots = [word for slot, word in row["slots"].items() if slot not in found.many]
    if len(speller.single(slots)) < len(slots):
        return None
    answers = row["answers"] if found.answer == "first token" else speller.single(row["answers"])
    return {**row, "answers": tuple(answers)} if answers else None


def _told(coverage: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{left} of {of} {name}" for name, (left, of) in coverage.items()) or "no lists"
