"""The report, opened and used."""

import json
import re

import pytest

DRAWN = "() => [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg.main-svg'))"

UNFOLD = "() => { for (const part of document.querySelectorAll('details.fold')) part.open = true; }"


@pytest.fixture
def report(show, report_file):
    """Open the report and wait until every figure is drawn."""

    def open_report(**options):
        opened = show(report_file, **options)
        if options.get("scripts", True):
            opened.page.wait_for_function(DRAWN)
        return opened

    return open_report


def test_it_opens_quietly_fits_and_keeps_nobody_out(report, look):
    opened = report(**look)
    opened.quiet()
    assert opened.page.locator(".plot").count() >= 4
    assert opened.overflow() <= 0
    assert opened.barriers() == []


def test_every_link_of_the_contents_has_its_section(report):
    page = report().page
    links = page.locator("nav a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert {"#prompts", "#circuits", "#atlas", "#analyses", "#attention", "#provenance", "#limits"} <= set(links)
    for link in links:
        assert page.locator(link).count() == 1, link


def test_hostile_prompts_and_names_are_text(report, hostile, evil):
    opened = report()
    page = opened.page
    assert page.locator("h1").inner_text() == evil
    assert evil in page.locator("pre code").inner_text()
    for part in ("#prompts .chips", "#attention .chips"):
        shown = page.locator(f"{part} bdi").all_inner_texts()
        for word in hostile:
            assert word in shown, (part, word)
    assert page.locator("main img").count() == 0
    page.locator("#attention .chip").nth(1).hover()
    assert evil in page.locator("#attention [data-part=summary]").inner_text()
    opened.quiet()


def test_pointing_at_a_cell_of_a_map_shows_its_head_and_score(report):
    page = report().page
    page.evaluate(UNFOLD)
    plot = page.locator("#map-0")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    for share in (0.3, 0.31):  # plotly answers to a pointer that moves
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.3 * box["height"])
    told = plot.locator(".hoverlayer .hovertext")
    told.first.wait_for()
    assert "L1H3" in told.first.text_content()


def test_tables_are_sorted_by_the_buttons_of_their_heads(report):
    page = report().page
    page.evaluate(UNFOLD)
    table = page.locator(".analysis table").first
    score = table.locator("thead th").nth(1)
    values = "cells => cells.map(cell => Number(cell.dataset.value))"
    column = table.locator("tbody tr td:nth-child(2)")
    given = column.evaluate_all(values)
    assert len(set(given)) > 1
    score.locator("button").focus()
    page.keyboard.press("Enter")
    assert score.get_attribute("aria-sort") == "descending"
    assert column.evaluate_all(values) == sorted(given, reverse=True)
    score.locator("button").click()
    assert score.get_attribute("aria-sort") == "ascending"
    assert column.evaluate_all(values) == sorted(given)
    name = table.locator("thead th").first
    name.locator("button").click()
    assert name.get_attribute("aria-sort") == "ascending"
    assert score.get_attribute("aria-sort") is None
    names = table.locator("tbody tr > :first-child").all_inner_texts()
    assert names == sorted(names)


def test_it_follows_the_colours_of_the_system(report):
    page = report(scheme="light").page
    paper = "getComputedStyle(document.body).backgroundColor"
    cells = "document.querySelector('#map-0').data[0].colorscale"
    light = page.evaluate(paper), json.dumps(page.evaluate(cells))
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"JSON.stringify({cells}) !== {json.dumps(light[1])!r}".replace("'", "`"))
    assert page.evaluate(paper) != light[0]


def test_without_scripts_every_table_is_there(report):
    with_scripts, without = report().page, report(scripts=False).page
    count = with_scripts.locator("main tbody tr").count()
    assert without.locator("main tbody tr").count() == count > 20
    assert without.locator("#attention .chip.query").count() == 2  # the token and its legend
    assert "figures are left out" in without.locator("noscript").inner_text()


def test_on_paper_nothing_is_cut_off(report):
    page = report(width=780).page  # A4 within its margins
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(DRAWN)
    cut = """() => [...document.querySelectorAll('main *')]
        .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible'
                     && e.clientWidth > 1 && !e.closest('svg, .plot'))
        .map(e => `${e.tagName} ${e.className} ${e.scrollWidth} > ${e.clientWidth}`)"""
    assert page.evaluate(cut) == []
    closed = (
        "() => [...document.querySelectorAll('details:not([open]):not(.fold):not(.fold *)')].length"  # but analyses
    )
    assert page.evaluate(closed) == 0
    assert page.locator("nav").is_hidden()
    assert page.locator("#limits").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")


PAGES, MARGIN, ROOM = 15, 34, 45
"""Pages at most; points of the margin, and of what has to follow a heading on its page."""


def test_on_paper_it_is_short_and_no_heading_is_left_alone(report):
    page = report(width=780).page
    margin = dict.fromkeys(("top", "bottom", "left", "right"), "12mm")
    pdf = page.pdf(format="A4", outline=True, tagged=True, margin=margin)
    assert 1 < len(re.findall(rb"/Type\s*/Page[^s]", pdf)) <= PAGES
    places = re.findall(rb"/Title \((.*?)\)\s*/Dest \[\d+ 0 R /XYZ \S+ (\S+) ", pdf)
    folded = set(page.locator("summary h3").all_inner_texts())  # with the finding in the same block
    assert len(places) > 10
    assert [t for t, y in places if float(y) < MARGIN + ROOM and t.decode("latin1") not in folded] == []
