"""@circuit_method: how a method becomes known to `circuits.circuit`, the command line, the report and the scoreboard.

A registered function takes a model and a task and gives a score for every edge, a circuit, or a table of components.
Packages announce the modules of their methods under the entry-point group `interp.circuit_methods`, each by the name of
a method that it registers, so that names are known before anything is imported.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from circuits.graph.graph import Graph
from interp.environment import CIRCUIT_METHODS, plugin_names
from interp.errors import SchemaError, UnknownEntry, nearest
from interp.model import with_edits
from interp.results.results import Result

Gives = Literal["scores", "circuit", "table"]
GIVES: Mapping[Gives, str] = {
    "scores": "a score for every edge, from which a circuit is chosen by size",
    "circuit": "a circuit, which it chooses itself",
    "table": "a table of components, no circuit",
}
Judged = Literal["edges", "nodes"]
Run = Callable[..., "Graph | Result"]
"""(model, task, *, metric=None, batch_size=16, seed=0, edits=(), **own options)."""
COMMON = ("model", "task", "metric", "batch_size", "seed", "edits")
log = logging.getLogger("interp")


@dataclass(frozen=True)
class CircuitMethod:
    """A registered method and how to speak of it.

    Attributes:
        name, title: how it is called and headed.
        gives: "scores", "circuit" or "table": see `GIVES`.
        costs: passes, in words.
        means, misleads: what a high score means, and what it does not.
        reference: paper, with arXiv id.
        run: the function, `(model, task, *, metric, batch_size, seed, **own options) -> Graph | Result`.
        order: place in tables, low first; ties by name.
        signed: whether scores say in which direction the metric goes.
        judged: what is ranked against planted truth, edges or components; None where scores claim neither.
        judged_variant: of a table, the variant whose rows are ranked; None for each component's largest row of any.
        goal: AUROC that it reaches on every planted circuit; None where that is measured and not asked for.
        routine: whether the table of circuit methods has it where none is named; dear ones are judged on request.
        quick: options with which a run is short, for checks of all methods.
    """

    name: str
    title: str
    gives: Gives
    costs: str
    means: str
    misleads: str
    reference: str
    run: Run
    order: int = 100
    signed: bool = True
    judged: Judged | None = "edges"
    judged_variant: str | None = None
    goal: float | None = None
    routine: bool = True
    quick: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Name and title."""
        return f"<{self.name}: {self.title}>"

    @property
    def options(self) -> tuple[str, ...]:
        """Its own options, beside those that every method takes."""
        return tuple(name for name in inspect.signature(self.run).parameters if name not in COMMON)

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that it does not have.

        Raises:
            SchemaError: names the nearest.
        """
        for option in options:
            if option not in self.options:
                hint = nearest(option, self.options) if self.options else "it has none of its own"
                raise UnknownEntry(f"{self.name!r} has no option {option!r}; {hint}")


_registry: dict[str, CircuitMethod] = {}


def circuit_method(
    *,
    name: str,
    title: str,
    gives: Gives,
    costs: str,
    means: str,
    misleads: str,
    reference: str,
    order: int = 100,
    signed: bool = True,
    judged: Judged | None = "edges",
    judged_variant: str | None = None,
    goal: float | None = None,
    routine: bool = True,
    quick: Mapping[str, Any] | None = None,
) -> Callable[[Run], Run]:
    """Register a method; what the arguments are is said at `CircuitMethod`."""

    def decorate(body: Run) -> Run:
        run = with_edits(body)
        _registry[name] = CircuitMethod(
            name=name,
            title=title,
            gives=gives,
            costs=costs,
            means=means,
            misleads=misleads,
            reference=reference,
            run=run,
            order=order,
            signed=signed,
            judged=judged,
            judged_variant=judged_variant,
            goal=goal,
            routine=routine,
            quick=dict(quick or {}),
        )
        return run

    return decorate


def names() -> tuple[str, ...]:
    """Names of all methods; no method's module is imported."""
    return tuple(sorted({*plugin_names(CIRCUIT_METHODS), *_registry}))


def find(name: str) -> CircuitMethod:
    """Method by name; its module alone is imported.

    Raises:
        SchemaError: no such method, or an announced one that its module does not register.
    """
    if name not in _registry:
        entries = metadata.entry_points(group=CIRCUIT_METHODS, name=name)
        if not entries:
            raise UnknownEntry(f"unknown method {name!r}; {nearest(name, names())}")
        for entry in entries:
            entry.load()
    if name not in _registry:
        raise SchemaError(f"a package announces the circuit method {name!r} and does not register it")
    return _registry[name]


def circuit_methods() -> dict[str, CircuitMethod]:
    """Every method by name, built-in ones and plug-ins, in the order they are shown."""
    methods = []
    for name in names():
        try:
            methods.append(find(name))
        except ImportError as error:  # one broken plug-in must not take the others down
            log.warning("the circuit method %s is left out: %s", name, error)
    return {method.name: method for method in sorted(methods, key=lambda m: (m.order, m.name))}
