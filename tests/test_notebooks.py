"""Notebooks run, are kept without outputs, listed, and between them show every analysis."""

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

RUN = """
import json, warnings
import plotly.io
from IPython.core.interactiveshell import InteractiveShell

warnings.resetwarnings()  # pytest makes errors of them
plotly.io.renderers.default = "plotly_mimetype"
shell = InteractiveShell.instance()
for source in json.loads({cells!r}):
    shell.run_cell(source).raise_error()
"""
"""Runs cells one by one as Jupyter does, and asks what each leaves last for everything that a page could show of it."""


def cells(path, kind):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def text(path, kind):
    return "\n".join("".join(c["source"]) for c in cells(path, kind))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, fork):
    """In a fork that has yet to import our packages; `make docs` runs it in a kernel of its own."""
    sources = ["".join(cell["source"]) for cell in cells(path, "code")]
    done = fork(RUN.format(cells=json.dumps(sources)), FOLDER)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_a_cell_that_fails_is_seen(fork):
    done = fork(RUN.format(cells=json.dumps(["a = 0", "1 / a"])), FOLDER)
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (1, True)


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
