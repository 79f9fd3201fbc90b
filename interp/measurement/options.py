"""Options of analyses, checked by the defaults that their signatures state before anything is computed."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from interp.errors import SchemaError

MAY_BE_ZERO = ("n_steps", "seed", "n_random", "max_new_tokens", "sinks")
"""Integers that count what need not be there; every other one is at least 1."""


def checked_options(
    name: str, body: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Options by name; refuses those of another kind than the defaults of `body`, whose first parameter is the model.

    An integer stands for an integer of at least 1 (0 for those of `MAY_BE_ZERO`), a float for a finite number, a pair
    of integers for a lowest and a highest, strings for one string too. Where None is the default the annotation says
    what else it may be.

    Args:
        name: of the analysis, for the message.
        body: the function.
        args: given by position, behind the model.
        options: given by name.

    Raises:
        SchemaError: names the option, its value and what is expected.
    """
    parameters = inspect.signature(body).parameters
    try:
        bound = inspect.signature(body).bind(None, *args, **options).arguments
    except TypeError as error:
        if "prompts" in options and "prompts" not in parameters:
            raise SchemaError(f"{name!r} has no option 'prompts'; {why_no_prompts(body)}") from error
        raise SchemaError(f"{name!r}: {error}") from error
    for option, value in bound.items():
        default = parameters[option].default
        if default is inspect.Parameter.empty or value is default:
            continue
        if default is None:
            expected = _expected_kind(value, _hints(body).get(option))
        else:
            expected = _expected(option, value, default)
        if expected:
            raise SchemaError(f"{name!r}: {option} is {value!r:.60}; expected {expected}")
    _, *rest = bound.items()  # the model
    return {option: _taken(value, parameters[option].default) for option, value in rest}


def _taken(value: Any, default: Any) -> Any:
    """The value as the body takes it: integers of any library as `int`, one name as a list of one."""
    if _integer(value):
        return int(value)
    return (value,) if isinstance(value, str) and isinstance(default, tuple) else value


def other_prompts(run: Callable[..., Any], prompts: Any) -> str | None:
    """What an analysis expects in place of a caller's prompts, None where it takes them."""
    annotation = _hints(inspect.unwrap(run)).get("prompts")
    return None if annotation is None else _expected_kind(prompts, annotation)


def why_no_prompts(body: Callable[..., Any]) -> str:
    """What an analysis that takes no prompts of the caller's measures on instead, by its options or its definition."""
    parameters = inspect.signature(body).parameters
    others = [option for option in ("texts", "task", "tasks") if option in parameters]
    if others:
        return f"it reads {others[0]!r} instead"
    measure = (inspect.getdoc(body) or "no description").split("\n\n")[0].replace("\n", " ")
    return f"what it measures is defined on prompts that it makes itself: {measure}"


def _expected(option: str, value: Any, default: Any) -> str | None:
    """What an option should be, None where it is."""
    if isinstance(default, bool):
        what, right = "True or False", isinstance(value, bool)
    elif isinstance(default, int):
        least = 0 if option in MAY_BE_ZERO else 1
        what, right = f"an integer of at least {least}", _integer(value) and value >= least
    elif isinstance(default, float):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        what, right = "a finite number", number and math.isfinite(value)
    elif isinstance(default, str):
        what, right = "a string", isinstance(value, str)
    elif isinstance(default, tuple) and default and isinstance(default[0], float):
        what, right = "numbers above 0, such as (0.25, 0.5)", _numbers(value)
    elif isinstance(default, tuple) and default and isinstance(default[0], int):
        return _expected_lengths(value, pair=len(default) == 2)
    else:
        what, right = "strings", not isinstance(default, tuple) or _strings(value)
    return None if right else what


def _expected_kind(value: Any, annotation: Any) -> str | None:
    """What the annotation of an option without a default says; None where it says nothing or the value suits."""
    kinds = [typing.get_origin(kind) or kind for kind in typing.get_args(annotation)]
    if Any in kinds or not all(isinstance(kind, type) for kind in kinds) or isinstance(value, tuple(kinds)):
        return None
    return " or ".join(sorted("nothing" if kind is type(None) else kind.__name__ for kind in kinds))


@functools.cache
def _hints(body: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function; none where some name of theirs is for type checkers alone."""
    try:
        return typing.get_type_hints(body)
    except NameError:
        return {}


def _numbers(value: Any) -> bool:
    """Whether a value is a sequence of finite numbers above 0."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) == 0:
        return False
    return all(isinstance(x, numbers.Real) and not isinstance(x, bool) and 0 < float(x) < math.inf for x in value)


def _strings(value: Any) -> bool:
    items = [value] if isinstance(value, str) else value
    return isinstance(items, Iterable) and all(isinstance(item, str) for item in items)


def _expected_lengths(value: Any, *, pair: bool) -> str | None:
    what = "two integers, the lowest and the highest, from 1 on" if pair else "integers of at least 1"
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) == 0:
        return what
    if not all(_integer(item) and item >= 1 for item in value):
        return what
    return what if pair and (len(value) != 2 or value[0] > value[1]) else None


def _integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
