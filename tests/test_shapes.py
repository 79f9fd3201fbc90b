"""Shapes in signatures are checked in one process, on tests that between them call every function that has some."""

import importlib
import io
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
HOOK = "--jaxtyping-packages=interp,circuits,probes,shape_check.check"


@pytest.fixture(scope="module")
def checked():
    """(Exit status, what pytest says) of the one run with the shapes checked."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "-q", "-rp", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "-p", "shape_check", HOOK, f"@{TESTS / 'shapes.txt'}", str(TESTS / "wrong_shapes.py")],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_shapes_hold_in_every_function_that_states_them(checked):
    status, said = checked
    assert status == 0, said


def test_a_wrong_shape_is_an_error(checked):
    for name in ("shape", "type"):
        assert re.search(rf"^PASSED tests/wrong_shapes.py::test_a_wrong_{name}$", checked[1], re.MULTILINE), checked[1]


def test_a_function_that_is_never_called_is_an_error_too(monkeypatch):
    """And so is a reason that does not hold."""
    monkeypatch.syspath_prepend(TESTS)
    plugin, name = importlib.import_module("shape_check"), "probes.sinks._sink.received_share"
    importlib.import_module("probes.sinks._sink")
    monkeypatch.setattr(plugin, "modules", list)
    monkeypatch.setattr(plugin, "NOT_CALLED", {"interp.gone": "of no function"})
    for called, problem in (((), f"no test of tests/shapes.txt calls {name}"), ((name,), "interp.gone need not stand")):
        said = io.StringIO()
        writer = types.SimpleNamespace(line=said.write)
        session = types.SimpleNamespace(
            exitstatus=0, config=types.SimpleNamespace(get_terminal_writer=lambda writer=writer: writer)
        )
        monkeypatch.setattr(plugin, "with_shapes", {name})
        monkeypatch.setattr(plugin, "called", set(called))
        plugin.pytest_sessionfinish(session, 0)
        assert problem in said.getvalue()
        assert session.exitstatus == 1
