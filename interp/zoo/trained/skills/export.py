"""The skills as prompt tasks: a `tasks.json` for the checkpoint's folder, in the words and forms it was trained on.

`python -m interp.zoo.trained.skills.export FOLDER` writes it. `interp.task` then prefers it to the general templates,
which are in words that the rich zoo model does not know; `interp.tasks.source` says what the fields mean. The splits
are the training's own: a held-out prompt has a pair of names, a year or a sentence form that was never trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from interp.files import atomic_write
from interp.zoo.trained.skills import facts, greater_than, ioi
from interp.zoo.trained.skills.facts import OPENINGS, RELATIONS, Relation, table
from interp.zoo.trained.skills.lexicon import EVENTS, OBJECTS, PEOPLE, PLACES, STRANGERS, SUBJECTS

SCHEMA = 1
ONE_IN = 8
"""As in `interp.zoo.trained.skills.item.in_split`."""


def documents() -> dict[str, dict[str, Any]]:
    """One document for each skill that has a contrast of right and wrong answers."""
    return {"ioi": _ioi(), "greater_than": _greater_than(), "facts": _facts(), "facts_context": _context()}


def write_tasks(folder: Path) -> Path:
    """Write `folder/tasks.json`; returns its path."""
    text = json.dumps({"schema": SCHEMA, "tasks": documents()}, indent=1) + "\n"
    return atomic_write(folder / "tasks.json", lambda p: p.write_text(text, encoding="utf-8"), force=True)


def _ioi() -> dict[str, Any]:
    return {
        "family": "ioi",
        "summary": ioi.SKILL.summary,
        "key": "ioi {low} {high}",
        "one_in": ONE_IN,
        "templates": [t.replace("{a}", "{A}").replace("{b}", "{B}").replace("{giver}", "{S2}") for t in ioi.TEMPLATES],
        "words": {"name": list(PEOPLE), "place": list(PLACES), "object": list(OBJECTS)},
    }


def _greater_than() -> dict[str, Any]:
    def with_roles(text: str) -> str:
        once = text.replace("{century}", "{century@XX1}", 1).replace("{century}", "{century@XX2}", 1)
        return once.replace("{year}", "{year@YY}").replace("{event}", "{event@NOUN}")

    return {
        "family": "greater_than",
        "summary": greater_than.SKILL.summary,
        "key": "greater-than {event} {century} {year}",
        "one_in": ONE_IN,
        "templates": [with_roles(t) for t in greater_than.TEMPLATES],
        "words": {"event": list(EVENTS), "century": list(greater_than.CENTURIES)},
    }


def _facts() -> dict[str, Any]:
    """Held out are sentence forms, so no key."""
    forms = [
        {"name": f"{relation.name} {i}", "group": relation.name, "split": split, "text": text}
        for relation in RELATIONS
        for split in ("train", "held-out")
        for i, text in enumerate(facts.templates(relation, split))
    ]
    attributes = table()
    return {
        "family": "lookup",
        "summary": f"{facts.MEMORY.summary} ({len(OPENINGS)} openings)",
        "key": "",
        "templates": forms,
        "rows": [
            {"group": r.name, "slots": {"s": subject}, "answers": [attributes[subject, r.name]]}
            for r in RELATIONS
            for subject in SUBJECTS
        ],
    }


def _context() -> dict[str, Any]:
    def text(core: str, n_facts: int) -> str:
        sentences = " ".join(f"{core.format(s=f'{{x{i}}}')} {{y{i}}} ." for i in range(1, n_facts + 1))
        return f"{sentences} {core.format(s='{asked}')}"

    def forms(relation: Relation) -> list[dict[str, str]]:
        return [
            {"name": f"{relation.name} {i} of {n_facts}", "group": relation.name, "text": text(core, n_facts)}
            for n_facts in range(2, facts.MOST_TOLD + 1)
            for i, core in enumerate(relation.cores)
        ]

    return {
        "family": "binding",
        "summary": facts.CONTEXT.summary,
        "key": "context {asked} {answer}",
        "one_in": ONE_IN,
        "templates": [form for relation in RELATIONS for form in forms(relation)],
        "words": {"x": list(STRANGERS)} | {f"y {r.name}": list(r.attributes) for r in RELATIONS},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m interp.zoo.trained.skills.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="the checkpoint's")
    write_tasks(parser.parse_args().folder)
