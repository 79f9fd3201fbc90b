"""Files of one's own prompts, or of pairs of prompts: JSON lines, a JSON list, or CSV, one a row; text, one a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import SchemaError, nearest
from interp.files import read_text
from interp.model import Model
from interp.tasks._pair import pair
from interp.tasks.own import position_of
from interp.tasks.prompt import PromptTask

NEEDED, OPTIONAL, ROLES = ("clean", "corrupt", "answer"), ("wrong", "template"), "roles"
SUFFIXES = (".jsonl", ".json", ".csv")
ENOUGH = 8
"""Pairs from which every second one is held out."""
PROMPT = "prompt"
"""Field of a row that is one prompt."""


@dataclass(frozen=True)
class Pairs:
    """Pairs as they were typed, of which nothing has been tokenized.

    Attributes:
        clean, corrupt: texts, or lists of token ids. answer: of each. wrong: of each; None where no pair has one.
        template: of each; None where no pair has one. roles: of each, name -> position or text of a token that stands
            once in the clean prompt; None where no pair has any.
    """

    clean: tuple[Any, ...]
    corrupt: tuple[Any, ...]
    answer: tuple[Any, ...]
    wrong: tuple[Any, ...] | None = None
    template: tuple[str, ...] | None = None
    roles: tuple[Mapping[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.clean)

    def tasks(self, model: Model, *, answer_tokens: str = "one", name: str = "own") -> tuple[PromptTask, PromptTask]:
        """Prompts to search on and prompts to judge on: every second pair where there are 8, else the same twice.

        Raises:
            TaskError: see `interp.pair`.
        """
        whole = range(len(self))
        halves = (whole[::2], whole[1::2]) if len(self) >= ENOUGH else (whole, whole)
        search, judge = (self._task(model, rows, answer_tokens=answer_tokens, name=name) for rows in halves)
        return search, judge

    def task(self, model: Model, *, answer_tokens: str = "one", name: str = "own") -> PromptTask:
        """All pairs as one task, for an analysis, which holds out what it needs to.

        Raises:
            TaskError: see `interp.pair`.
        """
        return self._task(model, range(len(self)), answer_tokens=answer_tokens, name=name)

    def _task(self, model: Model, rows: Sequence[int], *, answer_tokens: str, name: str) -> PromptTask:
        def some(values: Sequence[Any] | None) -> list[Any] | None:
            return None if values is None else [values[i] for i in rows]

        return pair(
            model,
            some(self.clean),
            some(self.corrupt),
            some(self.answer) or [],
            some(self.wrong),
            templates=some(self.template),
            roles=None if self.roles is None else _places(model, some(self.clean) or [], some(self.roles) or []),
            answer_tokens=answer_tokens,
            name=name,
        )


def read_pairs(path: str | Path) -> Pairs:
    """Pairs of a file: `clean`, `corrupt`, `answer` and, in all rows or none, `wrong`, `template` and `roles`.

    `roles` is an object, name -> position or the text of a token that the clean prompt has once, as in `interp.pair`;
    in CSV it is JSON.

    Raises:
        SchemaError: a file of another kind or that cannot be read, a row without what is needed (says which), no row.
    """
    source = Path(path).expanduser()
    return pairs_of(read_rows(source), source.name)


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a file: a line each of `.txt`; texts, or objects with a `prompt`, of `.jsonl`, `.json` and `.csv`.

    Raises:
        SchemaError: a file of another kind or that cannot be read, a row that is no text (says which), no row.
    """
    source = Path(path).expanduser()
    if source.suffix == ".txt":
        rows: list[Any] = [line for line in _text(source).splitlines() if line.strip()]
    else:
        rows = [row.get(PROMPT) if isinstance(row, Mapping) else row for row in read_rows(source, more=(".txt",))]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str) or not row:
            raise SchemaError(f"{source.name}, row {number} is no prompt: a text, or an object with {PROMPT!r}")
    if not rows:
        raise SchemaError(f"{source.name} has no prompt")
    return rows


def read_rows(source: Path, *, more: Sequence[str] = ()) -> list[Any]:
    """Rows of JSON lines, of a JSON list or of CSV, as they stand there; `more`: suffixes that an error names as well.

    Raises:
        SchemaError: a file of another kind, or that cannot be read.
    """
    if source.suffix not in SUFFIXES:
        raise SchemaError(f"cannot tell the format of {str(source)!r}; end it in {', '.join((*SUFFIXES, *more))}")
    text = _text(source)
    return _csv_rows(text, source) if source.suffix == ".csv" else _json_rows(text, source)


def _text(source: Path) -> str:
    return read_text(source, error=SchemaError)


def pairs_of(rows: Sequence[Any], source: str) -> Pairs:
    """Pairs of rows that have been read; `source` is what errors call their place."""
    if not rows:
        raise SchemaError(f"{source} has no pair of prompts")
    for number, row in enumerate(rows, 1):
        _check(row, f"{source}, pair {number}")
    columns = {name: _column(rows, name, source) for name in (*OPTIONAL, ROLES)}
    given = columns[ROLES]
    if given is not None:
        roles = tuple(_roles(own, f"{source}, pair {number}") for number, own in enumerate(given, 1))
        columns[ROLES] = roles
        if len({tuple(sorted(own)) for own in roles}) > 1:
            raise SchemaError(f"{source}: every pair needs the same roles")
    return Pairs(*(tuple(row[name] for row in rows) for name in NEEDED), **columns)


def _check(row: Any, place: str) -> None:
    if not isinstance(row, Mapping):
        raise SchemaError(f"{place}: expected an object with {', '.join(NEEDED)}")
    for name in row:
        if name not in (*NEEDED, *OPTIONAL, ROLES):
            raise SchemaError(f"{place}: unknown field {name!r}; {nearest(str(name), (*NEEDED, *OPTIONAL, ROLES))}")
    for name in NEEDED:
        if row.get(name) in (None, "", []):
            raise SchemaError(f"{place} has no {name!r}; it needs {', '.join(NEEDED)}")


def _column(rows: Sequence[Mapping[str, Any]], name: str, source: str) -> tuple[Any, ...] | None:
    """An optional field of every row, or None where no row has it."""
    values = [row.get(name) for row in rows]
    given = [value not in (None, "", {}) for value in values]
    if not any(given):
        return None
    if not all(given):
        raise SchemaError(f"{source}, pair {given.index(False) + 1} has no {name!r}, and others have: all or none")
    return tuple(values)


def _roles(value: Any, place: str) -> Mapping[str, Any]:
    """Roles of a pair, an object or the JSON of one."""
    roles = _parsed(value, f"{place}, roles") if isinstance(value, str) else value
    if not isinstance(roles, Mapping) or not all(_place(at) for at in roles.values()):
        raise SchemaError(f"{place}: roles are an object, name -> position or text of a token; got {value!r:.60}")
    return roles


def _place(at: Any) -> bool:
    return isinstance(at, str) or (isinstance(at, int) and not isinstance(at, bool))


def _places(model: Model, prompts: Sequence[Any], roles: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Position of each role in each prompt."""
    return {
        name: [
            own[name] if isinstance(own[name], int) else position_of(model, name, own[name], prompt, number)
            for number, (own, prompt) in enumerate(zip(roles, prompts, strict=True))
        ]
        for name in roles[0]
    }


def _csv_rows(text: str, source: Path) -> list[dict[str, Any]]:
    try:
        rows = list(csv.DictReader(text.splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise SchemaError(f"cannot read {str(source)!r}: {error}") from error
    for number, row in enumerate(rows, 1):
        if None in row:
            raise SchemaError(f"{source.name}, pair {number} has more fields than the first line names")
    return rows


def _json_rows(text: str, source: Path) -> list[Any]:
    """Objects of a list, or one a line."""
    if source.suffix == ".json":
        rows = _parsed(text, source.name)
        if not isinstance(rows, list):
            raise SchemaError(f"{source.name}: expected a list of pairs")
        return rows
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [_parsed(line, f"{source.name}, line {number}") for number, line in lines]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{place} is no JSON: {error}") from error
