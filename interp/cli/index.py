"""The index of names: analyses, tasks, methods and zoo models with what each is, read in no time.

`index.json` is made by `python docs/_generate.py`, and a test compares it with the registries; importing these takes
seconds. Where another package announces analyses or methods, or a module of ours was added since, the registries are
asked after all.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from interp.environment import CIRCUIT_METHODS, plugin_names

FILE = Path(__file__).with_name("index.json")
KINDS = ("analyses", "tasks", "methods", "zoo")
ANALYSES = "interp.analyses"
"""Entry points of modules that hold analyses."""

ANNOTATED = {
    "PromptTask": "task",
    "Prompts": "prompts",
    "Format": "needle",
    "Spans": "instructions",
    "Conflict": "conflicts",
    "Dictionary": "dictionary",
    "Mapping[str, Prompts]": "object",
    "Mapping[str, Sequence[str]]": "object",
    "Mapping[str, Sequence[int]]": "object",
    "Mapping[str, Sequence[Sequence[str]]]": "object",
    "Sequence[int]": "integers",
    "tuple[int, int]": "integers",
    "Sequence[float]": "numbers",
    "tuple[float, ...]": "numbers",
    "Sequence[str]": "texts",
    "tuple[str, ...]": "texts",
    "int": "integer",
    "float": "number",
    "str": "text",
}
"""Annotation of an option -> kind of its value, where the default does not say; of a union the first that is a member.
`interp.cli.values` reads each kind."""

Entries = dict[str, dict[str, Any]]


@functools.cache
def entries(kind: str) -> Entries:
    """What is known of each of a kind, by name, in the order it is shown."""
    index = _index()
    if kind == "analyses" and (set(plugin_names(ANALYSES)) - set(index["packages"]) or index["modules"] != modules()):
        return analyses()
    if kind == "methods" and set(plugin_names(CIRCUIT_METHODS)) - set(index["methods"]):
        return methods()
    return index[kind]


@functools.cache
def _index() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def make() -> dict[str, Any]:
    """The index as the registries have it now; those of other packages are left out."""
    ours = [e.name for e in metadata.entry_points(group=ANALYSES) if e.value.startswith("probes.")]
    found = {"analyses": analyses(own=True), "tasks": tasks(), "methods": methods(own=True), "zoo": zoo()}
    return {"packages": sorted(ours), "modules": modules(), **found}


def modules() -> str:
    """Hash of the names of all modules of analyses: another one means that the index may lack a name."""
    import importlib.util

    spec = importlib.util.find_spec("probes")
    roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    names = sorted(path.relative_to(root).as_posix() for root in roots for path in root.rglob("*.py"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def analyses(*, own: bool = False) -> Entries:
    """Registered analyses; `own`: without those of other packages."""
    from interp.measurement.registry import analyses as registered

    return {
        spec.name: {
            "title": spec.title,
            "of": spec.unit,
            "family": spec.family,
            "options": _options(spec.run, ("model", "edits")),
            **({} if spec.default else {"by_name": True}),
        }
        for spec in registered().values()
        if not own or spec.run.__module__.startswith("probes.")
    }


def methods(*, own: bool = False) -> Entries:
    """Registered circuit methods, likewise."""
    from circuits.methods import COMMON, circuit_methods

    return {
        m.name: {"title": m.title, "gives": m.gives, "options": _options(m.run, COMMON)}
        for m in circuit_methods().values()
        if not own or m.run.__module__.startswith("circuits.")
    }


def tasks() -> Entries:
    """Shipped tasks, and those that models of the zoo bring along."""
    from interp import data
    from interp import zoo as catalogue
    from interp.tasks.build import task_names
    from interp.tasks.planted import names_of
    from interp.tasks.source import OWN, SHIPPED

    found: Entries = {}
    for name in task_names():
        file = data.root() / name / SHIPPED
        title = data.read_json(file).get("summary", "") if file.is_file() else "A block of random tokens, repeated."
        found[name] = {"title": title, "of": "any model"}
    for model in catalogue.names():
        where, planted = catalogue.folder(model), catalogue.planted_by_name(model)
        own = data.read_json(where / OWN)["tasks"] if where is not None and (where / OWN).is_file() else {}
        for name in [*own, *(() if planted is None else names_of(planted))]:
            title = own.get(name, {}).get("summary", "What was written into its weights.")
            found.setdefault(name, {"title": title, "of": f"zoo:{model}"})
    return dict(sorted(found.items()))


def zoo() -> Entries:
    """Models in the package."""
    from interp import zoo as catalogue

    found = map(catalogue.entry, catalogue.names())
    return {entry.name: {"title": entry.summary, "of": entry.kind} for entry in found}


def _options(run: Any, common: Iterable[str]) -> dict[str, str]:
    """Options of a function, each with the kind of value that its default says."""
    import inspect

    parameters = inspect.signature(run).parameters.values()
    return {p.name: _kind(p) for p in parameters if p.name not in common and p.kind is not p.VAR_KEYWORD}


def _kind(parameter: Any) -> str:
    """Kind of value by the default; where that is None or a tuple, by the annotation. "" where neither says."""
    kinds = ((bool, "true or false"), (int, "integer"), (float, "number"), (str, "text"))
    plain = next((name for kind, name in kinds if isinstance(parameter.default, kind)), "")
    if plain:
        return plain
    annotation = parameter.annotation
    named = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    members = {part.strip() for part in named.split("|")} - {"None"}
    found = next((kind for annotated, kind in ANNOTATED.items() if annotated in members), "")
    return found or ("list" if isinstance(parameter.default, tuple) else "")
