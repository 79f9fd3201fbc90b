"""A result in a notebook: what was found first, labelled rows before others, and how many rows there are."""

from __future__ import annotations

import re

import pandas as pd

from interp.results.results import Result, frame
from interp.results.shown import finding, headline_rows

PROVENANCE = {"model": {"name": "zoo:default"}, "data": {"n_prompts": 32}}


def table(name="induction", label=(False, True, False), values=(0.5, 0.2, 0.9)):
    rows = [
        {
            "analysis": name,
            "variant": variant,
            "layer": 0,
            "head": i,
            "component": f"L0H{i}",
            "value": value,
            "null": 0.02,
            "n": 32,
            "unit": "probability",
            "label": None if label is None else label[i],
        }
        for variant in ("score", "other")
        for i, value in enumerate(values)
    ]
    return frame(rows, extra={"label": "boolean"})


def text(shown):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", shown))


def test_the_sentence_comes_first_and_labelled_rows_before_larger_ones():
    shown = text(Result(table(), PROVENANCE)._repr_html_())
    assert shown.strip().startswith(
        "1 of 3 labelled: L0H1 · zoo:default · induction (score), probability · 32 prompts · null 0.02."
    )
    assert shown.index("L0H1 0.2") < shown.index("L0H2 0.9") < shown.index("L0H0 0.5")
    assert "Also measured, in .table: other (6 rows in all)." in shown
    assert "rows shown" not in shown  # all of them are


def test_a_long_table_says_how_many_rows_it_holds():
    many = table(label=[False] * 30, values=[i / 30 for i in range(30)])
    assert "10 of 30 rows shown." in text(Result(many, PROVENANCE)._repr_html_())


def test_labelled_rows_come_by_size_whatever_their_sign():
    rows = headline_rows(table(label=(True, True, False), values=(0.5, -0.8, 0.9)))
    assert list(rows["component"]) == ["L0H1", "L0H0", "L0H2"]
    assert list(rows.columns) == list(table().columns)


def test_what_was_found_is_said_in_each_case():
    assert finding(table(label=(False,) * 3)) == "none of 6 labelled"
    assert finding(table(label=None)) == "6 rows, scores without labels"
    assert finding(table(label=[True] * 20, values=[0.1] * 20)[:20]).endswith("and 8 more")


def test_several_analyses_are_a_line_each():
    calls = [{**PROVENANCE, "call": {"analysis": name}} for name in ("induction", "sink")]
    both = Result.concat([Result(table(c["call"]["analysis"]), c) for c in calls])
    shown = text(both._repr_html_())
    assert "induction (score) 1 of 3 labelled: L0H1 L0H1: 0.2 probability 32 prompts null 0.02" in shown
    assert "sink (score)" in shown
    assert "12 rows in all" in shown


def test_names_are_text_and_no_rows_are_said():
    assert "<script>" not in Result(table("<script>"), PROVENANCE)._repr_html_()
    assert Result(frame(pd.DataFrame()), {})._repr_html_() == "<p>No rows.</p>"
