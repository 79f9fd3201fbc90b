"""Shapes in signatures are checked in one process, on tests that between them call every function that has some."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
HOOK = "--jaxtyping-packages=interp,circuits,probes,shape_check.check"

WRONG = """
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from interp.plots.attention import pair_map

def test_a_wrong_shape():
    with pytest.raises(TypeCheckError, match="pair_map"):
        pair_map(np.zeros(3), ["a", "b", "c"])

def test_a_wrong_type():
    with pytest.raises(TypeCheckError):
        pair_map([[0.0]], ["a"])
"""


def checked(*arguments):
    """(Exit status, what pytest says) of a run with the shapes checked."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "shape_check"]
    done = subprocess.run(
        [*command, HOOK, *map(str, arguments)],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_shapes_hold_in_every_function_that_states_them():
    status, said = checked(f"@{TESTS / 'shapes.txt'}")
    assert status == 0, said


def test_a_wrong_shape_is_an_error_and_a_function_that_is_never_called_too(tmp_path):
    (tmp_path / "test_wrong.py").write_text(WRONG)
    status, said = checked("--confcutdir", tmp_path, tmp_path / "test_wrong.py")
    assert "2 passed" in said
    assert status == 1
    assert "no test of tests/shapes.txt calls probes.sinks._sink.received_share" in said
