"""Every figure of an analysis names model, analysis, n and null; axes and units always."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import pytest

from interp.measurement.registry import analyses
from interp.plots.theme import GREY, INK, Figure
from interp.plots.titles import heading, model_name, null_text, sample, titled, untitled
from interp.results.results import Result, frame

MODEL = {"model": {"name": "zoo:default"}, "data": {"n_prompts": 256}}
DRAWN = {(spec.name, variant) for spec in analyses().values() for variant in (spec.headline, *spec.figures)}


def stored(name, variant):
    """A tiny table as the analysis stores it: four heads, each with a row for every value of its further columns."""
    spec = analyses()[name]
    fill = {
        "int64": range(4),
        "float64": (1.0, 2.0, 3.0, 4.0),
        "str": ["a"] * 4,
        "boolean": (True, False, False, False),
    }
    rows = {
        "analysis": name,
        "variant": variant,
        "layer": [0, 0, 1, 1],
        "head": [0, 1, 0, 1],
        "component": ["L0H0", "L0H1", "L1H0", "L1H1"],
        "position": range(4),
        "value": (0.9, 0.1, 0.02, 0.05),
        "ci_low": (0.8, 0.0, 0.0, 0.0),
        "ci_high": (1.0, 0.2, 0.1, 0.1),
        "null": 0.02,
        "n": 256,
        "unit": "probability",
    }
    more = {column: fill.get(kind.lower(), ["a"] * 4) for column, kind in spec.columns.items() if column != "label"}
    label = {"label": fill["boolean"]} if "label" in spec.columns else {}
    return Result(frame(pd.DataFrame({**rows, **more, **label}), extra=spec.columns), MODEL)


@pytest.mark.parametrize(("name", "variant"), sorted(DRAWN))
def test_every_registered_figure_says_what_it_is_of(name, variant):
    figure = stored(name, variant).plot(name, variant=variant)
    assert isinstance(figure, Figure)
    said = figure.layout.title.text.replace("\u00a0", " ").replace("<br>", " ")
    for part in ("zoo:default", name.replace("_", " "), "256 prompts", "null 0.02"):
        assert part in said
    assert figure.layout.template.layout.font.family.startswith(INK)
    titles = [axis.title.text for axis in [*figure.select_xaxes(), *figure.select_yaxes()]]
    assert any(titles)
    units = [*titles, *(t.colorbar.title.text for t in figure.data if t.type == "heatmap")]
    assert any(text and ("probability" in text or "median" in text) for text in units)
    for trace in figure.data:
        greyed = trace.type == "scatter" and GREY in (trace.line.color, trace.marker.color)
        assert not greyed or "null" in trace.name or "random" in trace.name or "chance" in trace.name


def test_the_parts_of_a_title():
    rows = stored("induction", "prefix_matching").table
    assert heading(rows, MODEL) == ["zoo:default", "induction (prefix matching)", "256 prompts", "null 0.02"]
    assert sample(rows.assign(n=64), MODEL) == "n = 64"
    assert sample(rows.assign(n=[24, 48, 48, 48]), MODEL) == "n = 24 to 48"
    assert sample(rows.assign(n=pd.NA), MODEL) == "256 prompts"
    assert sample(rows.assign(n=8), {"data": {"n": 8, "length": 40}}) == "8 prompts"
    assert null_text(rows.assign(null=[0.1, 0.2, None, 0.4])) == "null 0.1 to 0.4"
    assert null_text(rows.assign(null=None)) == "no null"
    assert model_name({"model": {"name": "./checkpoints/mine"}}) == "mine"
    assert model_name({"model": {"name": "openai-community/gpt2"}}) == "openai-community/gpt2"
    assert model_name({}) == ""


def test_a_joined_result_says_what_each_analysis_was_run_on():
    first = stored("induction", "prefix_matching")
    other = {**MODEL, "call": {"analysis": "sink"}, "data": {"n_prompts": 12}}
    second = Result(stored("sink", "first_token").table.assign(n=12), other)
    both = Result.concat([Result(first.table, {**MODEL, "call": {"analysis": "induction"}}), second])
    assert "12\u00a0prompts" in both.plot("sink").layout.title.text
    assert "256\u00a0prompts" in both.plot("induction").layout.title.text


def test_a_title_takes_no_height_from_the_plot_and_no_line_from_another():
    figure = go.Figure(go.Scatter(y=[1], name="a"), layout={"height": 300, "margin": {"t": 8}})
    short, long = titled(figure, ["one"]), titled(figure, ["x" * 50, "y" * 50])
    assert short.layout.height - short.layout.margin.t == long.layout.height - long.layout.margin.t == 300 - 8
    assert long.layout.title.text.split("<br>") == ["x" * 50 + " ·", "y" * 50]
    assert titled(figure, ["<b>"]).layout.title.text == "&lt;b&gt;"
    own = go.Figure(layout={"title": {"text": "pooling mean"}})
    assert titled(own, ["one"]).layout.title.text == "one<br>pooling mean"


def test_a_title_can_be_taken_off_for_a_page_with_captions():
    figure = go.Figure(go.Scatter(y=[1]), layout={"height": 300, "margin": {"t": 24}})
    plain = untitled(titled(figure, ["x" * 50, "y" * 50]))
    assert (plain.layout.title.text, plain.layout.height, plain.layout.margin.t) == (None, 300, 24)
    assert untitled(Figure(figure)).layout.height == 300


def test_a_legend_over_the_plot_has_its_place_below_the_title():
    names = [go.Scatter(y=[1], name="a long name of a line") for _ in range(6)]
    legend = {"orientation": "h", "y": 1}
    over, beside = (titled(go.Figure(names, layout={"legend": place}), ["one"]) for place in (legend, {}))
    assert over.layout.margin.t >= beside.layout.margin.t + 60
