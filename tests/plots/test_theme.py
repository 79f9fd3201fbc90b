"""Figures bring their style sheet along; lines are told apart, and grey is for nulls alone."""

from __future__ import annotations

import plotly.graph_objects as go

from interp.plots.theme import GREY, INK, PAGE, STYLE, Figure, line_style, null_line, template


def test_a_page_of_its_own_follows_the_browser_and_a_part_of_a_page_does_not():
    figure = Figure(go.Scatter(y=[1, 2]))
    page = figure.to_html(include_plotlyjs=False)
    part = figure.to_html(include_plotlyjs=False, full_html=False, post_script="own();")
    assert "color-scheme: light dark" in page
    assert INK in part
    assert "color-scheme" not in part.replace("light-dark(", "")
    assert "own();" in part
    assert PAGE != STYLE


def test_a_file_has_what_the_text_has(tmp_path):
    path = tmp_path / "figure.html"
    Figure(go.Scatter(y=[1, 2])).write_html(path, include_plotlyjs=False)
    assert INK in path.read_text(encoding="utf-8")
    assert "color-scheme: light dark" in path.read_text(encoding="utf-8")


def test_a_notebook_gets_the_style_sheet_and_then_the_figure(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda thing: shown.append(thing.data))
    monkeypatch.setattr(go.Figure, "_ipython_display_", lambda self: shown.append("figure"))
    Figure()._ipython_display_()
    assert shown == [STYLE, "figure"]


def test_text_of_the_template_is_found_by_the_style_sheet():
    look = Figure().update_layout(template=template()).layout.template.layout
    assert look.font.family.split(",")[0] == INK
    assert f'[style*="{INK}"]' in STYLE
    assert look.font.size >= 11
    assert (look.paper_bgcolor, look.plot_bgcolor) == ("rgba(0,0,0,0)", "rgba(0,0,0,0)")
    assert GREY not in look.colorway


def test_thirty_two_lines_are_told_apart_and_none_is_grey():
    looks = [(style["line"]["color"], style["line"]["dash"]) for style in map(line_style, range(32))]
    assert len(set(looks)) == 32
    assert GREY not in {colour for colour, _ in looks}
    assert len({colour for colour, _ in looks[:8]}) == 8
    assert len({line_style(i)["marker"]["symbol"] for i in range(8)}) == 8
    assert {null_line(i)["line"]["color"] for i in range(4)} == {GREY}
