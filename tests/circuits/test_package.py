"""What `circuits` hands out: functions and classes, whatever was imported before them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import circuits

ROOT = Path(__file__).parents[2]
CLASSES = {"Case", "Graph", "Layout"}


@pytest.mark.parametrize("name", circuits.__all__)
def test_every_name_is_a_function_or_a_class(name):
    thing = getattr(circuits, name)
    assert inspect.isclass(thing) if name in CLASSES else inspect.isfunction(thing)
    assert thing.__name__ == name


def test_no_name_is_that_of_a_submodule():
    submodules = {p.stem for p in (ROOT / "circuits").iterdir()}
    assert not submodules & set(circuits.__all__)


def test_the_function_stays_the_function_when_its_module_was_imported_first():
    code = """
import circuits.evaluation._faithfulness, circuits.search._acdc, circuits.patching.paths, circuits.evaluation._curve
import circuits
from circuits import acdc, curve, faithfulness, hypotheses, minimality, path_patching
assert all(callable(f) for f in (acdc, curve, faithfulness, hypotheses, minimality, path_patching, circuits.acdc))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
