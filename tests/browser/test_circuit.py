"""The drawing of a circuit, opened."""


def test_it_opens_quietly_fits_and_keeps_nobody_out(show, circuit_file, look):
    opened = show(circuit_file, **look)
    opened.page.wait_for_selector("#circuit svg.main-svg")
    opened.quiet()
    assert opened.overflow() <= 0
    assert opened.barriers() == []
    assert "faithfulness" in opened.page.locator("main").inner_text()


def test_pointing_at_an_edge_tells_its_ends_and_score(show, circuit_file):
    page = show(circuit_file).page
    marks = page.locator("#circuit .scatterlayer .point")
    marks.first.wait_for()
    box = marks.first.bounding_box()
    for shift in (2, 0):  # plotly answers to a pointer that moves
        page.mouse.move(box["x"] + box["width"] / 2 + shift, box["y"] + box["height"] / 2)
    told = page.locator("#circuit .hoverlayer .hovertext").first
    told.wait_for()
    assert "→" in told.text_content()
    assert "score" in told.text_content()
