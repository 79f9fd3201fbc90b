"""The tables of `tests/mutations` are true of the tree, and every analysis and circuit method is in them."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

from circuits.methods import names
from interp.measurement.registry import analyses

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutations():
    path = ROOT / "tests" / "mutations" / "__main__.py"
    spec = importlib.util.spec_from_file_location("mutations_main", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.mutations()


def test_what_they_break_stands_there_once(mutations):
    texts = {m.file: (ROOT / m.file).read_text(encoding="utf-8") for m in mutations}
    wrong = {m.name: f"{texts[m.file].count(m.old)} times in {m.file}" for m in mutations if m.new == m.old}
    wrong |= {m.name: f"{n} times in {m.file}" for m in mutations if (n := texts[m.file].count(m.old)) != 1}
    assert not wrong
    assert max(Counter(m.name for m in mutations).values()) == 1


def test_the_tests_they_name_are_there(mutations):
    named = {path for m in mutations for path in m.tests.split(" -k ")[0].split()}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_analysis_and_circuit_method_is_broken_once(mutations):
    broken = {m.of for m in mutations}
    assert set(analyses()) - broken == set()
    assert set(names()) - broken == set()
