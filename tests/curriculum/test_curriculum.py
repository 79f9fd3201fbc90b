"""What courses and demos ask of a user takes at most three lines here, and gives what plain PyTorch gives.

`start.py` holds what is imported and loaded, a `.toml` file one theme: an `[[operation]]` has what is wanted, the
course or demo that asks for it, the user's lines, and a check with the names of `plain.py`; `before` makes what the
user would have. docs/_generate.py makes docs/how-to/i-want-to.md from the same files.
"""

from __future__ import annotations

import ast
import functools
import inspect
import runpy
import tomllib
from pathlib import Path

import pytest
import torch

from interp.measurement.registry import analyses

FOLDER = Path(__file__).parent
THEMES = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.toml"))}
OPERATIONS = [
    pytest.param(op, id=f"{name}: {op['want']}", marks=[pytest.mark.slow] if op.get("slow") else [])
    for name, theme in THEMES.items()
    for op in theme["operation"]
]
LINES = 3


@functools.cache
def names():
    """What every operation begins with: models, prompts, and what checks are made of."""
    torch.manual_seed(0)
    return runpy.run_path(str(FOLDER / "plain.py")) | runpy.run_path(str(FOLDER / "start.py"))


def execute(text, title, space):
    exec(compile(text, title, "exec"), space)


@pytest.mark.parametrize("op", OPERATIONS)
def test_operation(op, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = dict(names())
    execute(op.get("before", ""), f"<before: {op['want']}>", space)
    execute(op["code"], f"<code: {op['want']}>", space)
    execute(op["check"], f"<check: {op['want']}>", space)


def calls():
    """(analysis, names of the options) of every `interp.analyze(model, "name", ...)` of the page."""
    for (op,) in (p.values for p in OPERATIONS):
        for node in ast.walk(ast.parse(op["code"])):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "interp.analyze":
                yield ast.literal_eval(node.args[1]), {keyword.arg for keyword in node.keywords}


def test_every_analysis_has_a_line_with_options_of_its_own():
    found = dict(calls())
    assert set(analyses()) - set(found) == set(), "put what it answers into tests/curriculum/analyses.toml"
    for name, options in calls():
        assert options <= set(inspect.signature(analyses()[name].run).parameters), name


def test_three_lines_and_a_check_each():
    assert len(OPERATIONS) >= 100
    wants = [p.values[0]["want"] for p in OPERATIONS]
    assert len(set(wants)) == len(wants)
    for (op,) in (p.values for p in OPERATIONS):
        lines = op["code"].strip().splitlines()
        assert 1 <= len(lines) <= LINES, op["want"]
        assert all(len(line) <= 120 and ";" not in line for line in lines), op["want"]
        assert "assert " in op["check"] or "close(" in op["check"], op["want"]
        assert op["source"], op["want"]
