"""The page of a circuit, opened and used."""

import pytest

NODES, EDGES = ".canvas .node", ".canvas .edge"
MEASURED = "[data-part=measured]"
TOLD = "[data-part=told]"
LIT = "items => items.filter(item => item.classList.contains('on')).length"
OVERLAPS = """() => {
    const boxes = [...document.querySelectorAll('.canvas .node rect')].map(rect => rect.getBoundingClientRect());
    const beside = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 1;
    const apart = (a, b) => beside(a, b) || beside(b, a);
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => !apart(a, b))).length;
}"""
UPWARDS = """() => [...document.querySelectorAll('.canvas .edge')].every(edge => {
    const [from, to] = [edge.getPointAtLength(0), edge.getPointAtLength(edge.getTotalLength())];
    return from.y > to.y;
})"""


def test_it_opens_quietly_fits_and_keeps_nobody_out(show, circuit_file, look):
    opened = show(circuit_file, **look)
    opened.page.wait_for_selector(NODES)
    opened.quiet()
    assert opened.overflow() <= 0
    assert opened.barriers() == []
    assert "edges do" in opened.page.locator("main .finding").inner_text()
    assert opened.page.evaluate(OVERLAPS) == 0
    assert opened.page.evaluate(UPWARDS)  # every arrow points to what reads later


def test_pointing_tells_what_an_edge_and_a_component_are(show, circuit_file):
    page = show(circuit_file).page
    node = page.locator(NODES, has_text="L0H4")
    node.hover()
    assert "L0H4 (previous token)\n" in page.locator(".tip").inner_text()
    page.locator("tbody tr").first.hover()
    assert page.locator(".edge.hot").count() == 1
    page.locator(".touch").last.dispatch_event("pointermove", {"bubbles": True, "clientX": 200, "clientY": 300})
    told = page.locator(".tip").inner_text()
    assert "→" in told and "score" in told and "95 % interval" in told


def test_a_click_isolates_and_escape_returns(show, circuit_file):
    page = show(circuit_file).page
    edges = page.locator(EDGES)
    assert edges.evaluate_all(LIT) == 0
    page.locator(NODES, has_text="M3").click()
    lit = edges.evaluate_all(LIT)
    assert 0 < lit < edges.count()
    assert page.locator("tbody tr.chosen").count() == lit
    assert page.locator(TOLD).inner_text().startswith("M3 ")
    page.keyboard.press("Escape")
    assert edges.evaluate_all(LIT) == 0
    assert page.locator(".isolated").count() == 0
    page.locator("tbody tr").nth(1).get_by_role("button").click()
    assert edges.evaluate_all(LIT) == 1
    assert page.locator(NODES).evaluate_all(LIT) == 2
    page.get_by_role("button", name="previous token (").click()
    assert edges.evaluate_all(LIT) > 1
    page.get_by_role("button", name="Show all").click()
    assert page.locator(".isolated").count() == 0


def test_the_keyboard_alone_will_do(show, circuit_file):
    page = show(circuit_file).page
    page.locator(f"{NODES}[tabindex='0']").focus()
    name = "document.activeElement.querySelector('text').textContent"
    assert page.evaluate(name) == "embed"
    page.keyboard.press("ArrowUp")
    assert page.evaluate(name) != "embed"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(name) == "embed"
    page.keyboard.press("Enter")
    assert page.locator(f"{NODES}[aria-pressed=true]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(f"{NODES}[aria-pressed=true]").count() == 0
    page.get_by_label("Edges shown").focus()
    count = page.locator(EDGES).count()
    page.keyboard.press("ArrowLeft")
    assert page.locator(EDGES).count() == count - 1
    assert page.evaluate(OVERLAPS) == 0


def test_the_slider_says_faithfulness_where_it_was_measured_and_only_there(show, circuit_file, found):
    page = show(circuit_file).page
    slider, said = page.get_by_label("Edges shown"), page.locator(MEASURED)
    assert f"Faithfulness of this circuit of {found.graph.n_edges} edges: {found.faithfulness:.2f}" in said.inner_text()
    sizes = found.page().steps
    page.locator(".sizes button").last.click()
    last = sizes[-1]
    assert page.locator(EDGES).count() == last.graph.n_edges == int(slider.input_value())
    assert f"{last.graph.n_edges} edges: {last.faithfulness:.2f} (95 % interval {last.low:.2f}" in said.inner_text()
    slider.fill(str(last.graph.n_edges - 1))
    assert "Faithfulness was not measured with these" in said.inner_text()
    assert page.locator("tbody tr").count() == last.graph.n_edges - 1
    assert page.evaluate(OVERLAPS) == 0


def test_the_table_is_sorted_and_filtered(show, circuit_file):
    page = show(circuit_file).page
    rows = page.locator("tbody tr")
    score = page.locator("thead th").nth(3)
    score.get_by_role("button").click()
    assert score.get_attribute("aria-sort") == "descending"
    values = [float(x) for x in rows.locator("td:nth-child(4)").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    page.get_by_label("Filter").fill("l0h4")
    texts = rows.all_inner_texts()
    assert 0 < len(texts) < len(values)
    assert all("L0H4" in text for text in texts)
    page.get_by_label("Filter").fill("previous")
    assert all("previous token" in text for text in rows.all_inner_texts())


def test_without_scripts_the_finding_and_the_table_are_there(show, circuit_file, found):
    page = show(circuit_file, scripts=False).page
    assert found.finding() == page.locator(".finding").inner_text()
    assert page.locator("tbody tr").count() == found.graph.n_edges
    assert page.get_by_role("button").count() == 0
    assert page.locator(".canvas").is_hidden()
    assert "L0H4 previous token" in page.locator("[data-part=roles]").inner_text()


@pytest.mark.parametrize("width", [1280, 400])
def test_a_thousand_heads_stay_readable(show, large_circuit_file, width):
    assert large_circuit_file.stat().st_size < 300_000
    opened = show(large_circuit_file, width=width, scheme="dark")
    page = opened.page
    assert page.locator(EDGES).count() == 100
    for n in (100, 600):
        page.get_by_label("Edges shown").fill(str(n))
        assert page.locator(EDGES).count() == n
        assert page.evaluate(OVERLAPS) == 0
    page.get_by_label("by layer").check()
    assert page.evaluate(OVERLAPS) == 0
    assert page.evaluate(UPWARDS)
    assert opened.overflow() <= 0
    opened.quiet()
