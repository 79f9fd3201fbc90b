"""Templates and word lists of a task: shipped in `datasets`, or brought along by a checkpoint that knows its own.

A document is JSON: `family` (which generator reads it), `templates`, `words` (lists by name), `rows` (a table), and
what is optional: `joint` (what stands between prompt and answer), `key` and `one_in` (which fills are held out),
`many` (lists whose words may be several tokens), `metric`, `corruptions`, `digits` and `operator` (of
arithmetic), `depths`, `distractors`, `order` and `steps` (of fictional ontologies). In a template, `{slot}` is
filled in and `{slot@ROLE}` names the position of its last token; a plain slot is its own role.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp import data, zoo
from interp.errors import SchemaError, TaskError, nearest
from interp.model import Model
from interp.tasks.forms import check_form

SCHEMA = 1
OWN = "tasks.json"
"""File of a checkpoint's folder: {"schema": 1, "tasks": {name: document}}."""
SHIPPED = "task.json"
PARAGRAPHS = "paragraphs.json"
"""File of a checkpoint's folder: texts that stood often in what it was trained on, and texts that did not."""
_SLOT = re.compile(r"\{(\w+)(?:@([^}]+))?\}")


@dataclass(frozen=True)
class Template:
    """One sentence form."""

    text: str
    name: str
    group: str | None = None
    """Rows or lists it goes with; None for all."""
    split: str | None = None
    """Split that it is kept for; None for both."""
    joint: str = " "
    """Between the prompt and its answer."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots in order of first mention."""
        return tuple(dict.fromkeys(slot for slot, _ in _SLOT.findall(self.text)))

    def fill(self, words: Mapping[str, str], roles: Mapping[str, str]) -> tuple[str, dict[str, int]]:
        """The text, and the character after each role's words; `roles` renames slots that have no role of their own.

        A role that stands twice means its first place.
        """
        text, ends, last = "", {}, 0
        for match in _SLOT.finditer(self.text):
            slot, role = match.groups()
            text += self.text[last : match.start()] + words[slot]
            ends.setdefault(role or roles.get(slot, slot), len(text))
            last = match.end()
        return text + self.text[last:], ends


@dataclass(frozen=True)
class Document:
    """Templates and words of one task, checked."""

    name: str
    source: str
    """Origin of the document, without a path of this machine."""
    family: str
    templates: tuple[Template, ...]
    words: Mapping[str, tuple[str, ...]]
    rows: tuple[Mapping[str, Any], ...]
    many: frozenset[str]
    key: str | None
    one_in: int
    metric: str | None
    corruptions: tuple[str, ...]
    answer: str
    """"one token", or "first token" where an answer may be longer and its first token stands for it."""
    sha256: str
    digits: int = 2
    """Of each number, in tasks of arithmetic."""
    operator: str = "+"
    """What is done with the two numbers, likewise: "+", "-", "*", or "first": the first of them, as it is."""
    depths: tuple[int, ...] = (1,)
    """Links of the chains, in fictional ontologies: one of these in each prompt."""
    distractors: int = 1
    """Chains beside the one that is asked for, likewise."""
    order: str = "shuffled"
    """Of the statements, likewise: "shuffled", "facts" first, or "chain"."""
    steps: bool = False
    """Whether the conclusions on the way are stated before the question, likewise."""

    @classmethod
    def of(cls, name: str, content: Mapping[str, Any], *, source: str) -> Document:
        """From the JSON of one task.

        Raises:
            SchemaError: a field is missing, unknown or of another form.
        """
        check_form(content, f"{source}, task {name!r}")
        keys = {
            "family", "templates", "words", "rows", "many", "key", "one_in", "metric", "corruptions", "answer", "joint",
            "schema", "summary", "digits", "operator", "depths", "distractors", "order", "steps",
        }  # fmt: skip
        unknown_fields = sorted(set(content) - keys)
        missing_fields = sorted({"family", "templates"} - set(content))
        if unknown_fields or missing_fields:
            raise SchemaError(
                f"{source}, task {name!r}: unknown fields {unknown_fields}, missing fields {missing_fields}"
            )
        joint = content.get("joint", " ")
        templates = tuple(_template(t, i, joint) for i, t in enumerate(content["templates"]))
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        return cls(
            name=name,
            source=source,
            family=content["family"],
            templates=templates,
            words={k: tuple(v) for k, v in content.get("words", {}).items()},
            rows=tuple(content.get("rows", ())),
            many=frozenset(content.get("many", ())),
            key=content.get("key"),
            one_in=content.get("one_in", 5),
            metric=content.get("metric"),
            corruptions=tuple(content.get("corruptions", ())),
            answer=content.get("answer", "one token"),
            digits=content.get("digits", 2),
            operator=content.get("operator", "+"),
            depths=tuple(content.get("depths", (1,))),
            distractors=content.get("distractors", 1),
            order=content.get("order", "shuffled"),
            steps=content.get("steps", False),
            sha256=digest,
        )

    def forms(self, group: str) -> tuple[Template, ...]:
        """Sentence forms of a group.

        Raises:
            SchemaError: it has none.
        """
        found = tuple(t for t in self.templates if t.group == group)
        if not found:
            raise SchemaError(f"{self.source}: no template of the group {group!r}")
        return found

    def form(self, group: str, name: str) -> Template:
        """The sentence form of a group that has this name.

        Raises:
            SchemaError: the group has none of that name.
        """
        by_name = {t.name: t for t in self.forms(group)}
        if name not in by_name:
            raise SchemaError(f"{self.source}: group {group!r} has no form {name!r}; {nearest(name, by_name)}")
        return by_name[name]


def _template(content: str | Mapping[str, Any], number: int, joint: str) -> Template:
    fields: dict[str, Any] = {"text": content} if isinstance(content, str) else dict(content)
    return Template(**{"name": str(number), "joint": joint, **fields})


def shipped_tasks() -> tuple[str, ...]:
    """Names of the tasks in `datasets`."""
    return tuple(name for name in data.names() if (data.root() / name / SHIPPED).is_file())


def checkpoint_tasks(model: Model, folder: Path | None = None) -> dict[str, Document]:
    """Tasks that the model's checkpoint brings along, or those in another folder or file; empty where there are none.

    Raises:
        SchemaError: a file of another form.
    """
    where = _folder(model) if folder is None else folder
    if where is None:
        return {}
    file = where / OWN if where.is_dir() else where
    if not file.is_file():
        if folder is not None:
            raise TaskError(f"no {OWN} in {folder.name!r}")
        return {}
    content = data.read_json(file)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("tasks"), dict):
        raise SchemaError(
            f"{file.name} is not {{'schema': {SCHEMA}, 'tasks': ...}}; was it written by another version?"
        )
    source = f"{file.name} of {model.info.name if folder is None else folder.name}"
    return {name: Document.of(name, task, source=source) for name, task in content["tasks"].items()}


def checkpoint_paragraphs(model: Model) -> dict[str, Any] | None:
    """Paragraphs that the model's checkpoint brings along: "repeated" and "unseen" (texts), "prefix" (tokens).

    None where there are none.

    Raises:
        SchemaError: a file of another form.
    """
    where = _folder(model)
    file = None if where is None else where / PARAGRAPHS
    if file is None or not file.is_file():
        return None
    content = data.read_json(file)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not {"repeated", "unseen"} <= set(content):
        raise SchemaError(f"{file.name} is not {{'schema': {SCHEMA}, 'prefix': ..., 'repeated': ..., 'unseen': ...}}")
    return content


def _folder(model: Model) -> Path | None:
    name = model.info.name
    if name.startswith("zoo:"):
        return zoo.folder(name.removeprefix("zoo:"))
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def document(name: str) -> Document:
    """The shipped templates and words of a task.

    Raises:
        SchemaError: none of that name.
    """
    return Document.of(name, data.read_json(data.path(name, SHIPPED)), source=f"datasets/{name}")


def templates_for(templates: Sequence[Template], *, group: str | None = None) -> list[Template]:
    """Templates that go with a group."""
    return [t for t in templates if t.group is None or group is None or t.group == group]
