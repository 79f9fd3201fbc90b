"""What analyses declare of themselves, and that `interp` knows none of them by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import interp
from interp.errors import SchemaError
from interp.measurement.declaration import IDENTIFY, PATTERN, STAGES, Stage, singular
from interp.measurement.registry import analyses
from interp.tasks.build import task_names
from interp.zoo.planted.factory import ALL

ROOT = Path(interp.__file__).parent
ALLOWED = {
    ("decompose/stream.py", "neurons"): "an option: layers whose MLP is split",
    ("decompose/attribution.py", "neurons"): "an option: layers whose MLP is split",
    ("reports/graphs.py", "neurons"): "a dictionary: the MLP's own neurons",
    ("studies/dynamics.py", "induction"): "role in planted models whose heads the analysis shown has to recover",
    ("edits/reshape.py", "sinks"): "a field: first keys that a window keeps",
    ("measurement/options.py", "sinks"): "an option: first keys that a window keeps",
    ("measurement/checks/backend.py", "sinks"): "a parameter of models with sink logits",
    ("measurement/declaration.py", "sinks"): "a section of the report",
    ("reports/sinks.py", "sinks"): "a section of the report",
    ("reports/knowledge.py", "neurons"): "a field of a finding",
    ("measurement/checks/laws/attending.py", "entropy"): "a statistic of attention, asked of every backend",
    ("zoo/trained/card.py", "induction"): "kind of head that the training script itself measures",
    ("zoo/trained/measure.py", "induction"): "kind of head that the training script itself measures",
}


def strings(path: Path) -> set[str]:
    """String constants of a module, those inside of f-strings and docstrings included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_no_module_of_interp_names_an_analysis():
    roles = {slot.role for m in ALL for slot in m.slots} | {kind for m in ALL for slot in m.slots for kind in slot.also}
    spoken = roles | {m.name for m in ALL} | set(task_names()) | {"conflict"}  # `tasks.conflict` makes prompts
    named = {}
    for path in sorted(ROOT.rglob("*.py")):
        where = str(path.relative_to(ROOT))
        known = spoken if where.startswith(("zoo/planted/", "tasks/")) else set()  # where roles and tasks are made
        named |= dict.fromkeys((where, name) for name in strings(path) & set(analyses()) - known)
    assert set(named) == set(ALLOWED)


def test_stages_are_the_surveys():
    one = Stage("context", IDENTIFY, {"memory": Stage("memory", STAGES[0])})
    assert one.of(None) is one and one.of("context") is one
    assert one.of("memory").role == "memory"
    assert Stage("sink").stage == PATTERN
    with pytest.raises(SchemaError, match="unknown stage 'latent reason' of 'x'; did you mean 'latent reasoning'"):
        Stage("x", "latent reason")


def test_every_analysis_of_heads_has_a_stage():
    for name, spec in analyses().items():
        assert (spec.stage is not None) or not spec.unit.startswith("head"), name


def test_one_of_what_a_title_names():
    assert singular("Induction heads") == "induction head"
    assert singular("Copy suppression") == "copy suppression"
    assert singular("Heads that look at both ends") == "head that looks at both ends"
    assert singular("Heads that write or carry a conclusion") == "head that writes or carries a conclusion"
    assert singular("Attention sinks at any token") == "attention sink at any token"
    assert singular("Induction heads on text") == "induction head on text"
