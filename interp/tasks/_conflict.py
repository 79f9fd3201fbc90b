"""`conflict(model)`: prompts whose context contradicts what a model knows by heart, from a lookup task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp import data
from interp.batch import Batch, Prompts
from interp.errors import NotApplicable, SchemaError, TaskError, nearest
from interp.model import Model
from interp.shapes import brief
from interp.tasks.build import TRIES, fit_words
from interp.tasks.own import pair_parts
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.source import Document, Template, checkpoint_tasks, document, shipped_tasks
from interp.tasks.spell import EncodedPair, Example, Speller

BASES = ("facts", "capital_country")
"""Lookup tasks asked for, the checkpoint's own first."""


@dataclass(frozen=True)
class Frame:
    """A wording around a fact: `{core}` its beginning, `{told}` what the context says it is."""

    name: str
    text: str
    counts: str | None
    """Which answer the wording asks for: "context", "memory", or None where it leaves that open."""


@dataclass(frozen=True, eq=False)
class Conflict:
    """Conflicting prompts, and the same facts asked for without any context.

    Attributes:
        task: clean prompts whose context contradicts memory; `answers` is what the context says, `wrong` what the model
            knows, the corrupt twin's context agrees with memory. Roles: TOLD, and the subject's slot.
        questions: prompt i's fact alone, so that one can see whether it is known.
        frame: number of each prompt's frame in `frames`. group: of its relation.
    """

    task: PromptTask
    questions: Batch
    frames: tuple[Frame, ...]
    frame: Int[Tensor, " batch"]
    group: Int[Tensor, " batch"]

    __repr__ = brief

    @classmethod
    def of(
        cls, model: Model, *, clean: Prompts, corrupt: Prompts, answers: Any, wrong: Any, questions: Prompts
    ) -> Conflict:
        """Conflicts of one's own prompts: `interp.pair` with what is known as `wrong`, and the facts asked for alone.

        All are of one wording and one relation, so that the null exchanges answers among all of them.

        Raises:
            TaskError: see `interp.pair`, or another number of questions.
        """
        parts = pair_parts(model, clean, corrupt, answers, wrong, name="conflict", corruption="context agrees")
        task, asked = collate(**parts), model.batch(questions).to("cpu").padded_on("right")
        if len(asked.ids) != len(task):
            raise TaskError(f"{len(asked.ids)} questions for {len(task)} prompts: give one for each")
        none = torch.zeros(len(task), dtype=torch.long)
        return cls(task, asked, (Frame("own", "{core} {told}", None),), none, none)

    def select(self, rows: Tensor) -> Conflict:
        """Some of the prompts."""
        questions = self.questions.select(rows)
        return Conflict(self.task.select(rows), questions, self.frames, self.frame[rows], self.group[rows])


def frames() -> tuple[Frame, ...]:
    """The shipped wordings."""
    return tuple(Frame(**f) for f in data.read_json(data.path("conflict", "frames.json"))["frames"])


def conflict(
    model: Model,
    *,
    base: str | None = None,
    n: int = 96,
    seed: int = 0,
    wordings: Sequence[Frame] | None = None,
    bos: str = "default",
) -> Conflict:
    """`n` different prompts that tell of a subject what another one has, frames in turn.

    Args:
        model: any loaded model with a tokenizer.
        base: lookup task whose rows are the facts; the checkpoint's own `facts`, else `capital_country`.
        n: prompts.
        seed: of the draw.
        wordings: frames; those of `datasets/conflict` if not given.
        bos: "default", "forced" or "none".

    Raises:
        TaskError: an unknown base, or one that is no lookup task.
        NotApplicable: no tokenizer, or too few prompts that it can write.
    """
    speller = Speller(model, bos=bos)
    facts, coverage = fit_words(base_facts(model, base), speller)
    groups = sorted({str(row.get("group")) for row in facts.rows})
    cores = {g: shortest_template([t for t in facts.templates if str(t.group) in (g, "None")]) for g in groups}
    wordings = tuple(frames() if wordings is None else wordings)
    rng = Random(f"conflict {facts.name} {seed}")
    prompts: dict[tuple[int, ...], tuple[EncodedPair, int, str, list[int]]] = {}
    for i in range(TRIES * (n + 10)):
        frame = wordings[i % len(wordings)]
        row = rng.choice(facts.rows)
        group = str(row.get("group"))
        attribute = rng.choice([r["answers"][0] for r in facts.rows if str(r.get("group")) == group])
        if attribute not in row["answers"]:
            pair = speller.encode(conflict_example(frame, cores[group], row, attribute))
            if pair is not None:
                bare_text, _ = cores[group].fill(row["slots"], {})
                question = [*speller.start, *speller.ids([bare_text])[0]]
                prompts.setdefault(tuple(pair.clean), (pair, i % len(wordings), group, question))
        if len(prompts) == n:
            return _as_conflict(prompts, facts, wordings, groups, {"coverage": coverage, "seed": seed, "bos": bos})
    raise NotApplicable(f"only {len(prompts)} of the {n} prompts asked for can be written with this tokenizer")


def base_facts(model: Model, name: str | None) -> Document:
    """The lookup task of this name, or the first of `BASES` that there is.

    Raises:
        TaskError: an unknown task, or no lookup task.
    """
    own_documents = checkpoint_tasks(model)
    names = {*shipped_tasks(), *own_documents}
    base = next(b for b in BASES if b in names) if name is None else name
    if base not in names:
        raise TaskError(f"unknown task {base!r}; {nearest(base, names)}")
    facts = own_documents[base] if base in own_documents else document(base)
    if facts.family != "lookup":
        raise TaskError(f"{base!r} is no lookup task; {nearest(base, BASES)}")
    return facts


def shortest_template(templates: Sequence[Template]) -> Template:
    """The barest wording: openings in front of it would not stand inside a frame."""
    if not templates:
        raise SchemaError("a group of rows has no template")
    return min(templates, key=lambda t: len(t.text))


def conflict_example(frame: Frame, core: Template, row: Any, attribute: str) -> Example:
    """A row in a frame that tells the attribute, and its twin that tells the truth."""
    text = frame.text.replace("{told}", "{told@TOLD}").replace("{core}", core.text)
    return Example(
        replace(core, text=text, name=frame.name),
        clean={**row["slots"], "told": attribute},
        corrupt={**row["slots"], "told": row["answers"][0]},
        answers=(attribute,),
        wrong=(row["answers"][0],),
        key="",
        variant=str(row.get("group") or ""),
    )


def _as_conflict(
    prompts: dict[tuple[int, ...], tuple[EncodedPair, int, str, list[int]]],
    facts: Document,
    wordings: tuple[Frame, ...],
    groups: list[str],
    record: dict[str, Any],
) -> Conflict:
    pairs = [pair for pair, *_ in prompts.values()]
    task = collate(
        f"conflict over {facts.name}",
        [(e.clean, e.corrupt) for e in pairs],
        answers=[e.answers for e in pairs],
        wrong=[e.wrong for e in pairs],
        roles=[e.roles for e in pairs],
        templates=[e.template for e in pairs],
        corruption="context agrees",
        metric="logit_diff",
        record={"source": facts.source, "source_sha256": facts.sha256, **record},
    )
    frame = torch.tensor([i for _, i, *_ in prompts.values()])
    group = torch.tensor([groups.index(g) for _, _, g, _ in prompts.values()])
    return Conflict(task, Batch.of([question for *_, question in prompts.values()]), wordings, frame, group)
