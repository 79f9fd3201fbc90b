"""Forms: what each field of a task's document has to be, checked before any of it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from interp.errors import SchemaError


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _template(value: Any) -> bool:
    """A sentence form, alone or with a name, a group, a split and a joint."""
    known = {"text", "name", "group", "split", "joint"}
    if not isinstance(value, dict):
        return _text(value)
    return _text(value.get("text")) and value.keys() <= known and all(v is None or _text(v) for v in value.values())


def _row(value: Any) -> bool:
    """Words for slots, and answers."""
    if not isinstance(value, dict) or not {"slots", "answers"} <= value.keys():
        return False
    slots = value["slots"]
    return isinstance(slots, dict) and all(map(_text, slots.values())) and _texts(value["answers"])


def _each(test: Callable[[Any], bool], *, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(test, value))


def _lists(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_texts, value.values()))


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _text_or_none(value: Any) -> bool:
    return value is None or _text(value)


FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "family": (_text, "a text"),
    "templates": (_each(_template, least=1), "a list of sentences, or of {'text': ..., 'name': ..., 'group': ...}"),
    "words": (_lists, "lists of words by name"),
    "rows": (_each(_row, least=1), "a list of {'slots': {name: word}, 'answers': [word]}"),
    "many": (_texts, "a list of names of lists"),
    "key": (_text_or_none, "a text"),
    "one_in": (_count, "an integer of at least 1"),
    "metric": (_text_or_none, "a text"),
    "corruptions": (_texts, "a list of texts"),
    "answer": (lambda value: value in ("one token", "first token"), "'one token' or 'first token'"),
    "joint": (_text, "a text"),
    "summary": (_text, "a text"),
    "digits": (_count, "an integer of at least 1"),
    "operator": (_text, "a text"),
}


def check_form(content: Any, where: str) -> None:
    """Refuse a document one of whose fields is something else.

    Raises:
        SchemaError: names the field, what stands there and what is expected.
    """
    if not isinstance(content, dict):
        raise SchemaError(f"{where}: a task is names and values; got {type(content).__name__} {content!r:.40}")
    for field, (test, expected) in FORMS.items():
        if field in content and not test(content[field]):
            raise SchemaError(f"{where}: {field} is {content[field]!r:.60}; expected {expected}")
