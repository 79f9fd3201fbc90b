"""Options of analyses as they are typed: `NAME=VALUE`, or `ANALYSIS.NAME=VALUE`, each value read by its kind.

What can be told from the index of names is refused at once; files are read before a model is loaded, and what is made
of its tokens once it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.index import entries
from interp.cli.names import LARGEST
from interp.errors import nearest

if TYPE_CHECKING:
    from interp.model import Model

Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="NAME=VALUE", help="Of analyses; A.NAME=VALUE: of A alone; repeatable."),
]
PAIRS, LINES = (".jsonl", ".json", ".csv"), (".txt", ".jsonl", ".json", ".csv")
"""Suffixes of files of rows, and of files of prompts."""
READ: Mapping[str, str] = {
    "true or false": "true or false",
    "integer": "an integer",
    "number": "a number",
    "text": "a text",
    "integers": "integers, such as 8,16",
    "numbers": "numbers, such as 0.25,0.5",
    "texts": f"texts parted by commas, a JSON list, or a file of them ({', '.join(LINES)})",
    "prompts": f"a file of prompts ({', '.join(LINES)})",
    "task": f"the name of a task, or a file of pairs ({', '.join(PAIRS)})",
    "needle": 'JSON such as {"needle": "The code is {value}.", "question": "The code is"}, or a file of it',
    "object": "a JSON object, or a file of it",
    "instructions": f"a file of instruction and data ({', '.join(PAIRS)})",
    "conflicts": f"a file of clean, corrupt, answer, wrong and question ({', '.join(PAIRS)})",
    "dictionary": "a folder, a file or a hub id",
}
"""Kind of value -> what is expected."""


@dataclass(frozen=True)
class Later:
    """A value that is made once the model is there, of what was typed or stands in a file.

    Attributes:
        kind: of `READ`. source: path or name. content: what was read of a file; None before that, or without one.
    """

    kind: str
    source: str
    content: Any = None

    def read(self) -> Later:
        """With the content of its file, where it has one.

        Raises:
            SchemaError: the file cannot be read, or does not hold what is expected.
        """
        if self.content is not None:
            return self
        return Later(self.kind, self.source, _content(self.kind, self.source))

    def value(self, model: Model, *, seed: int, name_suffices: bool) -> Any:
        """What the analysis gets; `name_suffices` where it takes the name of a task itself."""
        return _of_model(self, model, seed=seed, name_suffices=name_suffices)


OfAnalysis = dict[str, dict[str, Any]]
"""Analysis -> option -> value."""


def typed_options(options: Sequence[str], analyses: Iterable[str]) -> OfAnalysis:
    """Options for the analyses that are going to be run; one without the name of an analysis is of each that has it.

    Raises:
        BadParameter: no such analysis or option, or a value of another kind.
    """
    names, given = list(analyses), {}
    for option in options:
        left, equals, text = option.partition("=")
        analysis, dot, name = left.rpartition(".")
        if not equals or not name:
            raise typer.BadParameter(f"{option!r}: options are written NAME=VALUE or ANALYSIS.NAME=VALUE")
        owners = [_owner(analysis, names)] if dot else names
        for owner, value in _values(name, text, owners).items():
            given.setdefault(owner, {})[name] = value
    return given


def _owner(analysis: str, names: Sequence[str]) -> str:
    known = entries("analyses")
    if analysis not in known:
        raise typer.BadParameter(f"unknown analysis {analysis!r}; {nearest(analysis, known)}")
    if analysis not in names:
        raise typer.BadParameter(f"an option of {analysis!r}, which is not run; add -a {analysis}")
    return analysis


def _values(name: str, text: str, owners: Sequence[str]) -> dict[str, Any]:
    """The value for each analysis that has the option and takes such a value; one at least."""
    kinds = {owner: entries("analyses")[owner]["options"] for owner in owners}
    having = {owner: options[name] for owner, options in kinds.items() if name in options}
    if not having:
        who = repr(owners[0]) if len(owners) == 1 else "none of the analyses that are run"
        known = dict.fromkeys(option for options in kinds.values() for option in options)
        hint = nearest(name, known) if known else "it has none"
        raise typer.BadParameter(f"{who} has{' no' if len(owners) == 1 else ' an'} option {name!r}; {hint}")
    found, refusals = {}, {}
    for owner, kind in having.items():
        try:
            found[owner] = typed(kind, text)
        except ValueError as error:
            refusals[owner] = f"{owner!r}: {name} is {text!r:.60}; {error}"
    if not found:
        raise typer.BadParameter(next(iter(refusals.values())))
    return found


def typed(kind: str, text: str) -> Any:
    """A text as a value of its kind.

    Raises:
        ValueError: it is none; says what is expected.
    """
    reader = _READERS.get(kind, _any)
    try:
        return reader(text)
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(str(error) if isinstance(error, _SaidError) else f"expected {READ.get(kind, kind)}") from error


class _SaidError(ValueError):
    """An error that says more than what is expected."""


def _any(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _bool(text: str) -> bool:
    values = {"true": True, "false": False, "yes": True, "no": False}
    if text.lower() not in values:
        raise ValueError
    return values[text.lower()]


def _integer(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text):
        raise ValueError
    if abs(int(text)) > LARGEST:
        raise _SaidError(f"expected at most {LARGEST}")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        return [one(part) for part in text.strip().removeprefix("[").removesuffix("]").split(",")]

    return read


def _texts(text: str) -> Any:
    if text.endswith(LINES):
        return _file(text, "texts")
    if text.lstrip().startswith("["):
        values = json.loads(text)
        if not all(isinstance(value, str) for value in values):
            raise ValueError
        return values
    return [part.strip() for part in text.split(",")]


def _file(text: str, kind: str, suffixes: Sequence[str] = LINES) -> Later:
    path = Path(text).expanduser()
    if path.suffix not in suffixes:
        raise ValueError
    if not path.exists():
        raise _SaidError(f"there is no such file; expected {READ[kind]}")
    return Later(kind, text)


def _task(text: str) -> Later:
    if text.endswith(PAIRS):
        return _file(text, "task", PAIRS)
    if not re.fullmatch(r"[\w-]+", text):
        raise ValueError
    return Later("task", text.replace("-", "_"))


def _object(kind: str) -> Callable[[str], Any]:
    def read(text: str) -> Later:
        if not text.lstrip().startswith("{"):
            return _file(text, kind, (".json",))
        content = json.loads(text)
        if kind == "object":
            return content
        return Later(kind, "what is typed", content)

    return read


_READERS: Mapping[str, Callable[[str], Any]] = {
    "true or false": _bool,
    "integer": _integer,
    "number": _number,
    "text": str,
    "integers": _several(_integer),
    "numbers": _several(_number),
    "texts": _texts,
    "prompts": lambda text: _file(text, "prompts"),
    "task": _task,
    "needle": _object("needle"),
    "object": _object("object"),
    "instructions": lambda text: _file(text, "instructions", PAIRS),
    "conflicts": lambda text: _file(text, "conflicts", PAIRS),
    "dictionary": lambda text: Later("dictionary", text),
}


def task_names(options: OfAnalysis) -> list[str]:
    """Tasks that are named in them."""
    typed = (value for own in options.values() for value in own.values() if isinstance(value, Later))
    return [value.source for value in typed if value.kind == "task" and not value.source.endswith(PAIRS)]


def checked(options: OfAnalysis) -> OfAnalysis:
    """Options with the content of their files, all checked as far as they can be without a model.

    Raises:
        InterpError: a file that cannot be read or holds something else, or a value that the analysis refuses.
    """
    import inspect

    from interp.measurement.options import checked_options
    from interp.measurement.registry import find

    read = {
        analysis: {name: value.read() if isinstance(value, Later) else value for name, value in own.items()}
        for analysis, own in options.items()
    }
    for analysis, own in read.items():
        plain = {name: value for name, value in own.items() if not isinstance(value, Later)}
        checked_options(analysis, inspect.unwrap(find(analysis).run), (), plain)
    return read


def of_model(options: OfAnalysis, model: Model, *, seed: int) -> OfAnalysis:
    """Options as the analyses take them, now that the model is there.

    Raises:
        InterpError: prompts that the model cannot take.
    """
    import inspect

    from interp.measurement.registry import find

    def value(analysis: str, name: str, typed: Any) -> Any:
        if not isinstance(typed, Later):
            return typed
        annotation = str(inspect.signature(find(analysis).run).parameters[name].annotation)
        named = "str" in [part.strip() for part in annotation.split("|")]
        return typed.value(model, seed=seed, name_suffices=named)

    return {a: {name: value(a, name, typed) for name, typed in own.items()} for a, own in options.items()}


def _content(kind: str, source: str) -> Any:
    from interp.files import read_json
    from interp.tasks.files import read_pairs, read_prompts, read_rows

    if kind in ("prompts", "texts"):
        return read_prompts(source)
    if kind == "task":
        return read_pairs(source) if source.endswith(PAIRS) else None
    if kind in ("needle", "object"):
        return read_json(Path(source).expanduser())
    if kind == "instructions":
        return _rows(read_rows(Path(source).expanduser()), ("instruction", "data"), ("ask",), source)
    if kind == "conflicts":
        return _rows(
            read_rows(Path(source).expanduser()), ("clean", "corrupt", "answer", "wrong", "question"), (), source
        )
    return None


def _rows(rows: Sequence[Any], needed: Sequence[str], optional: Sequence[str], source: str) -> list[Mapping[str, str]]:
    """Rows that have what is needed, as texts."""
    from interp.errors import SchemaError

    if not rows:
        raise SchemaError(f"{source} has no row")
    for number, row in enumerate(rows, 1):
        fields = row if isinstance(row, Mapping) else {}
        missing = [name for name in needed if not isinstance(fields.get(name), str) or not fields[name]]
        unknown = [str(name) for name in fields if name not in (*needed, *optional)]
        if missing or unknown:
            what = f"has no {missing[0]!r}" if missing else f"has an unknown field {unknown[0]!r}"
            raise SchemaError(f"{source}, row {number} {what}; it needs {', '.join(needed)}")
    return list(rows)


def _of_model(given: Later, model: Model, *, seed: int, name_suffices: bool) -> Any:
    makers: Mapping[str, Callable[[], Any]] = {
        "task": lambda: _as_task(given, model, seed=seed, name_suffices=name_suffices),
        "needle": lambda: _needle(given.content),
        "instructions": lambda: _spans(given.content, model, given.source),
        "conflicts": lambda: _conflict(given.content, model),
        "dictionary": lambda: _dictionary(given.source, model),
    }
    return makers.get(given.kind, lambda: given.content)()


def _as_task(given: Later, model: Model, *, seed: int, name_suffices: bool) -> Any:
    from interp import tasks

    if given.content is not None:
        return given.content.task(model, name=Path(given.source).stem)
    return given.source if name_suffices else tasks.task(given.source, model, seed=seed)


def _conflict(rows: Sequence[Mapping[str, str]], model: Model) -> Any:
    from interp.tasks import Conflict

    columns = {field: [row[field] for row in rows] for field in ("clean", "corrupt", "wrong")}
    others = {"answers": [row["answer"] for row in rows], "questions": [row["question"] for row in rows]}
    return Conflict.of(model, **columns, **others)


def _dictionary(source: str, model: Model) -> Any:
    from interp import dictionaries

    return dictionaries.load(source, model)


def _needle(content: Any) -> Any:
    from interp.errors import SchemaError
    from interp.tasks.haystacks import Format

    fields = ("needle", "question", "haystack", "text")
    known = isinstance(content, Mapping) and {"needle", "question"} <= set(content) <= set(fields)
    if not known or not all(isinstance(value, str) for value in content.values()):
        raise SchemaError(
            f"a needle is an object of texts with needle and question (, haystack, text); got {content!r:.60}"
        )
    return Format(**content)


def _spans(rows: Sequence[Mapping[str, str]], model: Model, source: str) -> Any:
    from interp.errors import SchemaError
    from probes.attention import spans

    asks = {row.get("ask", "") for row in rows}
    if len(asks) > 1:
        raise SchemaError(f"{source}: every row needs the same 'ask'")
    return spans(model, [(row["instruction"], row["data"]) for row in rows], ask=asks.pop())
