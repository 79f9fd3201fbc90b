"""One name is a list of one, never its letters."""

from __future__ import annotations

import pytest

import interp
from interp.errors import SchemaError
from interp.several import several


def test_one_or_several():
    assert several("induction", "names") == ["induction"]
    assert several(("a", "b"), "names") == ["a", "b"]
    assert several(None, "names") == []
    assert several((1, 2), "pairs", one=tuple) == [(1, 2)]
    for value in (3, b"ab"):
        with pytest.raises(SchemaError, match="names: expected one or a list of them; got"):
            several(value, "names")


def test_a_name_that_is_no_list_names_one_analysis(tmp_path):
    model = interp.load("zoo:planted-induction")
    result = interp.detect(model, "previous_token")
    assert set(result.table["analysis"]) == {"previous_token"}
    assert interp.atlas(model, analyses="previous_token").analyses == ("previous_token",)
    page = interp.report(model, results=result, analyses="previous_token", prompts="sun moon", path=tmp_path / "r.html")
    text = page.read_text(encoding="utf-8")
    assert "sun" in text and text.count("The parts sum to") == 1
