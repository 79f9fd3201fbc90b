"""Provenance: where a result came from, as plain data; one shape for every table and every graph.

`provenance` makes it of a call. `@analysis` asks for it itself; every other function whose result is kept is decorated
with `recorded`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from interp.edits import plain_edit
from interp.environment import versions
from interp.model import Model, with_edits
from interp.results.results import SCHEMA_VERSION
from interp.tasks import PromptTask, metrics

P = ParamSpec("P")
R = TypeVar("R")
ATTRS = "provenance"
"""Where a bare table keeps it: `table.attrs["provenance"]`."""

_versions = functools.cache(versions)


def provenance(
    model: Model,
    name: str,
    body: Callable[..., Any],
    passed: Mapping[str, Any],
    data: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Who measured what of which model, on what data, when and how long: plain values.

    The run's id is a hash of the call, the model, the edits in force and the data: the same call with the same seed has
    the same.
    """
    parameters = inspect.signature(body).parameters
    left = {*passed, "edits"}  # edits are in force, whoever gave them: see below
    defaults = {k: plain(p.default) for k, p in parameters.items() if p.default is not p.empty and k not in left}
    call = {"analysis": name, "passed": {k: plain(v) for k, v in passed.items()}, "defaults": defaults}
    info = plain(model.info.as_dict())
    edits = [plain_edit(edit) for edit in model.edits]
    identity = json.dumps([SCHEMA_VERSION, call, info, plain(dict(data)), *([edits] if edits else [])], sort_keys=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "call": call,
        "model": info,
        "backend": model.backend,
        "tokenizer": None if model.tokenizer is None else type(model.tokenizer).__name__,
        "edits": edits,
        "data": plain(dict(data)),
        "metric": passed.get("metric", defaults.get("metric")) or data.get("metric"),
        "seed": passed.get("seed", defaults.get("seed")),
        "packages": dict(_versions()),
        "device": _device(model),
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 3),
    }


def recorded(body: Callable[P, R]) -> Callable[P, R]:
    """What `body(model, task, *, ...)` returns, with the provenance of the call.

    The outcome is a value with a field `provenance`, in which `body` leaves what it alone knows (its method, the metric
    it settled on, `data` where the prompts are not among the arguments): that stays, beside what every call has. A bare
    table gets its provenance as `table.attrs["provenance"]`. Tasks are said by their data, not by the call; functions
    that only watch are left out. Edits are entered, as `with_edits` does, and listed with those of contexts around.
    """

    @functools.wraps(body)
    def run(*args: P.args, **options: P.kwargs) -> R:
        start = time.perf_counter()
        outcome = body(*args, **options)
        seconds = time.perf_counter() - start
        arguments = inspect.signature(body).bind(*args, **options).arguments
        passed = {
            name: value
            for name, value in _flat(arguments).items()
            if name != "model" and not callable(value) and not any(isinstance(x, PromptTask) for x in _each(value))
        }
        if callable(arguments.get("metric")):
            passed["metric"] = metrics.description(arguments["metric"])
        own = {k: v for k, v in dict(getattr(outcome, "provenance", {})).items() if k != "data"}
        data = dict(getattr(outcome, "provenance", {})).get("data") or data_of(arguments)
        facts = provenance(arguments["model"], body.__name__, body, passed, data, seconds)
        return _with_provenance(outcome, {**facts, **own})

    return with_edits(run)


def data_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the prompts among some arguments say of themselves; under `tasks` where there are several."""
    data = [task.provenance() for value in arguments.values() for task in _each(value) if isinstance(task, PromptTask)]
    return data[0] if len(data) == 1 else {"tasks": data}


def plain(value: Any) -> Any:
    """JSON-able form of an option or of sizes; arrays and graphs by what stands in them."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | range):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    digest = getattr(value, "digest", None)
    if isinstance(digest, str):
        return f"{value!r} {digest}"
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those of `**options` among them."""
    return {**{k: v for k, v in arguments.items() if k != "options"}, **arguments.get("options", {})}


def _each(value: Any) -> Iterable[Any]:
    """The members of a collection, or the value itself."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, tuple | list) else (value,)


def _with_provenance(outcome: R, facts: dict[str, Any]) -> R:
    if isinstance(outcome, pd.DataFrame):
        outcome.attrs[ATTRS] = facts
        return outcome
    own: Callable[[dict[str, Any]], R] | None = getattr(outcome, "with_provenance", None)
    if own is not None:
        return own(facts)
    return dataclasses.replace(outcome, provenance=facts)  # type: ignore[type-var]  # a value with that field


def _device(model: Model) -> str:
    import torch

    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
