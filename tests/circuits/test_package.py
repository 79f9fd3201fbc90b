"""What `circuits` hands out: functions and classes.

That they stay so whatever was imported before them is tested for all packages in tests/test_imports.py.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import circuits

ROOT = Path(__file__).parents[2]
CLASSES = {"FeatureCircuit", "AttributionGraph", "Case", "Graph", "Layout"}


@pytest.mark.parametrize("name", circuits.__all__)
def test_every_name_is_a_function_or_a_class(name):
    thing = getattr(circuits, name)
    assert inspect.isclass(thing) if name in CLASSES else inspect.isfunction(thing)
    assert thing.__name__ == name


def test_no_name_is_that_of_a_submodule():
    submodules = {p.stem for p in (ROOT / "circuits").iterdir()}
    assert not submodules & set(circuits.__all__)
