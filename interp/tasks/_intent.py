"""`intents(model)`: pairs of prompts alike but for what they ask for, the context's answer or the known one."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from interp.errors import NotApplicable
from interp.model import Model
from interp.tasks._conflict import Frame, base_facts, conflict_example, shortest_template
from interp.tasks.build import TRIES, fit_words
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.source import Document, Template
from interp.tasks.spell import EncodedPair, Speller

INTENTS = (
    Frame("suppose", "Suppose that {core} {told} . Then {core}", "context"),
    Frame("rumour", "Rumour says {core} {told} . truth {core}", "memory"),
)
"""A wording for either intent, of as many words."""


def intents(
    model: Model,
    *,
    base: str | None = None,
    n: int = 64,
    seed: int = 0,
    wordings: tuple[Frame, Frame] = INTENTS,
    bos: str = "default",
) -> PromptTask:
    """`n` pairs that contradict a fact: the clean prompt asks for what it tells, its twin for what is known instead.

    The right answer is what the context says, the wrong one the fact; whether a model obeys is its task's own metric on
    clean and corrupt prompts. Roles: TOLD in the clean prompt, and END.

    Args:
        model: any loaded model with a tokenizer.
        base: lookup task whose rows are the facts; the checkpoint's own `facts`, else `capital_country`.
        n: pairs.
        seed: of the draw.
        wordings: one frame that asks for the context and one that asks for memory, of as many tokens.
        bos: "default", "forced" or "none".

    Raises:
        TaskError: an unknown base, or one that is no lookup task.
        NotApplicable: no tokenizer, or wordings that are not of one length in it.
    """
    speller = Speller(model, bos=bos)
    facts, coverage = fit_words(base_facts(model, base), speller)
    cores = {g: shortest_template([t for t in facts.templates if str(t.group) in (g, "None")]) for g in _groups(facts)}
    rng, pairs = Random(f"intents {facts.name} {seed}"), {}
    for _ in range(TRIES * (n + 10)):
        found = _pair(speller, facts, cores, wordings, rng)
        if found is not None:
            pairs.setdefault(tuple(found[0].clean), found)
        if len(pairs) == n:
            record = {"source": facts.source, "source_sha256": facts.sha256, "seed": seed, "bos": bos}
            return _task(list(pairs.values()), facts.name, {**record, "coverage": coverage})
    raise NotApplicable(
        f"only {len(pairs)} of the {n} pairs asked for can be written with this tokenizer; the two wordings have to be "
        "of as many tokens: pass `wordings`, or pairs of your own (interp.pair)"
    )


def _groups(facts: Document) -> list[str]:
    return sorted({str(row.get("group")) for row in facts.rows})


def _pair(
    speller: Speller, facts: Document, cores: dict[str, Template], wordings: tuple[Frame, Frame], rng: Random
) -> tuple[EncodedPair, EncodedPair] | None:
    """One fact and what is told against it, in both wordings; None where it cannot be written."""
    row: Any = rng.choice(facts.rows)
    group = str(row.get("group"))
    told = rng.choice([r["answers"][0] for r in facts.rows if str(r.get("group")) == group])
    if told in row["answers"]:
        return None
    sides = [speller.encode(conflict_example(frame, cores[group], row, told)) for frame in wordings]
    use, ignore = sides
    if use is None or ignore is None or len(use.clean) != len(ignore.clean) or use.answers != ignore.answers:
        return None
    return use, replace(ignore, template=use.template)


def _task(pairs: list[tuple[EncodedPair, EncodedPair]], name: str, record: dict[str, Any]) -> PromptTask:
    return collate(
        f"intent over {name}",
        [(use.clean, ignore.clean) for use, ignore in pairs],
        answers=[use.answers for use, _ in pairs],
        wrong=[use.wrong for use, _ in pairs],
        roles=[use.roles for use, _ in pairs],
        templates=[use.template for use, _ in pairs],
        corruption="other intent",
        metric="logit_diff",
        record=record,
    )
