"""Notebooks are kept without outputs, listed, and between them show every analysis. `make test` runs them (nbmake)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from interp.measurement.registry import analyses

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ELSEWHERE = {"rollout", "flow", "gradient_relevance", "divergence_map", "occlusion", "perturbation", "pruning_curve"}
ELSEWHERE |= {"kv_budget", "dose_response"}
"""Functions of the same kind that are no registered analyses."""


def cells(path, kind):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def text(path, kind):
    return "\n".join("".join(c["source"]) for c in cells(path, kind))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_that_a_run_leaves_behind_is_kept(path):
    book = json.loads(path.read_text())
    assert [c["outputs"] for c in book["cells"] if c.get("outputs")] == []
    assert {c["execution_count"] for c in book["cells"] if c["cell_type"] == "code"} == {None}
    assert all(c["metadata"] == {} for c in book["cells"])
    assert set(book["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_lines_are_short_and_the_notebook_is_listed(path):
    lines = "\n".join(text(path, kind) for kind in ("code", "markdown")).splitlines()
    assert [line for line in lines if len(line) > 120] == []
    assert f"({path.name})" in (FOLDER / "README.md").read_text()


def test_every_analysis_of_heads_and_attention_is_shown():
    code = "\n".join(text(path, "code") for path in NOTEBOOKS)
    shown = set(re.findall(r'analyze\(\s*\w+(?:\([^)]*\))?,\s*"(\w+)"', code))
    wanted = {name for name, spec in analyses().items() if spec.run.__module__.startswith("probes.")}
    assert wanted - shown == set()
    assert {name for name in ELSEWHERE if f"{name}(" not in code} == set()


@pytest.mark.parametrize("name", ["02_heads", "06_attention"])
def test_every_section_says_its_limits_and_shows_when_it_misleads(name):
    sections = re.split(r"^## ", text(FOLDER / f"{name}.ipynb", "markdown"), flags=re.MULTILINE)[1:]
    assert len(sections) > 8
    lacking = {s.splitlines()[0] for s in sections if "**Limits**" not in s or "**Misleads" not in s}
    assert lacking == set()
