"""Work side by side: the same on many cases, in processes; and properties that threads can share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar, overload

from interp.errors import InterpError

Case = TypeVar("Case")
Row = TypeVar("Row")
Owner = TypeVar("Owner")
Value = TypeVar("Value")


class cached_property(Generic[Owner, Value]):  # noqa: N801 - it stands where functools' stood
    """A property that is computed once per object: `functools.cached_property` as it is from Python 3.12 on.

    Python 3.11's holds one lock for all objects of a class while it computes. A thread inside that waits for a model's
    turn, which another has that waits for the lock, would wait for ever. Here two threads may compute the same value.
    """

    def __init__(self, function: Callable[[Owner], Value]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[Owner, Value]: ...

    @overload
    def __get__(self, instance: Owner, owner: type | None = None) -> Value: ...

    def __get__(self, instance: Owner | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return instance.__dict__.setdefault(self.name, self.function(instance))


def each(
    run: Callable[[Case], Row],
    cases: Sequence[Case],
    *,
    jobs: int = 1,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Row]:
    """`run(case)` of every case, in the order of the cases; `jobs` at a time, each in a process of its own.

    The processes share the cores: each has as many threads as its share. `run` and the cases are pickled, functions of
    a notebook too. `progress` wraps the cases, as tqdm does.

    Raises:
        InterpError: jobs is less than 1.
    """
    if jobs < 1:
        raise InterpError(f"jobs must be at least 1, not {jobs}")
    if jobs == 1:
        return [run(case) for case in progress(cases)]
    from joblib import Parallel, delayed

    done: Any = Parallel(n_jobs=jobs, return_as="generator")(delayed(run)(case) for case in cases)
    return [row for _, row in zip(progress(cases), done, strict=True)]
