"""The same work on many cases, one after another or in processes beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from interp.errors import InterpError

Case = TypeVar("Case")
Row = TypeVar("Row")


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
