"""What an analysis is asked on a planted model, which may be unable to answer: its declared options, and prompts."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from interp import tasks
from interp.errors import SchemaError
from interp.measurement.declaration import Analysis, PlantedTask
from interp.tasks import PromptTask

if TYPE_CHECKING:
    from interp.zoo.planted.factory import Planted
    from interp.zoo.planted.mechanisms import Mechanism

CHEAP = {"n_prompts": 24, "causal": False}
"""Options where an analysis has them: enough to rank heads; effects are checked elsewhere."""
PROMPTS = 48  # of a planted task, as many as the analyses take by default


def planted_prompts(planted: Planted, mechanism: str, *, n: int = PROMPTS, seed: int = 0, **options: Any) -> PromptTask:
    """`n` pairs that ask for the mechanism of this name, in the words of a model that may not have it.

    `options` are those of `tasks.planted_task`: `corruption`.
    """
    from interp.zoo.planted.factory import ALL

    able = replace(planted, mechanisms=tuple(m for m in ALL if m.name == mechanism))
    return tasks.planted_task(able, mechanism, n=n, seed=seed, **options)


def planted_task(spec: Analysis) -> PlantedTask:
    """How planted models judge an analysis.

    Raises:
        SchemaError: it does not say.
    """
    if spec.planted is None:
        raise SchemaError(f"{spec.name!r} does not say which planted role it should recover")
    return spec.planted


def mechanisms(spec: Analysis) -> list[Mechanism]:
    """Mechanisms with a part of the role (or kind) that the analysis should recover, and what it asks for beside."""
    from interp.zoo.planted.factory import ALL

    task = planted_task(spec)
    return [
        m
        for m in ALL
        if m.name in task.beside
        or task.recovers in (m.table, *m.named)
        or any(task.recovers in (slot.role, *slot.also) for slot in m.slots)
    ]


def questions(spec: Analysis, planted: Planted, *, seed: int = 0) -> dict[str, Any]:
    """Options that ask this model for what the analysis should recover; none where its defaults do.

    A model without the mechanism is asked the same.
    """
    options = planted_task(spec).options
    return {} if options is None else dict(options(planted, seed))


def cheap(spec: Analysis) -> dict[str, Any]:
    """Those of `CHEAP` that the analysis takes."""
    return {k: v for k, v in CHEAP.items() if k in inspect.signature(spec.run).parameters}
