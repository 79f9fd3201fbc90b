"""Arguments that are one thing or several: one name is a list of one, never its letters."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from interp.errors import SchemaError


def several(value: Any, what: str, *, one: type | tuple[type, ...] = str) -> list[Any]:
    """A list of things, from one of them or an iterable of them.

    Args:
        value: one thing, several, or None for none.
        what: they are, in the plural, for the error.
        one: types of a single thing.

    Raises:
        SchemaError: neither.
    """
    if value is None:
        return []
    if isinstance(value, one):
        return [value]
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise SchemaError(f"{what}: expected one or a list of them; got {type(value).__name__} {value!r:.40}")
    return list(value)


def numbers(value: Any, what: str) -> list[int]:
    """Whole numbers, from one of them or several.

    Raises:
        SchemaError: something that is none.
    """
    found = []
    for x in several(value, what, one=(int, str)):
        try:
            found.append(operator.index(x))
        except TypeError:
            raise SchemaError(f"{what}: expected whole numbers, counted from 0; got {x!r:.40}") from None
    return found
