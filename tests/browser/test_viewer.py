"""The attention viewer, used."""

import pytest

SUMMARY = "[data-part=summary]"


def at(page):
    return int(page.locator(".chips .query").get_attribute("data-j"))


def test_it_opens_quietly_fits_and_keeps_nobody_out(show, view_file, look):
    opened = show(view_file, **look)
    opened.quiet()
    assert opened.overflow() <= 0
    assert opened.barriers() == []


def test_it_reads_the_same_without_scripts(show, view_file):
    def read(page):
        parts = (".about", ".chips", SUMMARY, ".listed", ".why", ".legend")
        texts = {part: " ".join(page.locator(part).first.inner_text().split()) for part in parts}
        looks = "chips => chips.map(c => [[...c.classList].sort().join(' '), Number(c.style.getPropertyValue('--p'))])"
        return texts, page.locator(".chips .chip").evaluate_all(looks)

    without, with_scripts = show(view_file, scripts=False).page, show(view_file).page
    assert read(without) == read(with_scripts)
    assert without.get_by_role("button").count() == 0
    assert with_scripts.get_by_role("button").count() > 2


def test_hostile_tokens_are_text(show, view_file, hostile):
    opened = show(view_file)
    shown = opened.page.locator(".chips bdi").all_inner_texts()
    for word in hostile:
        assert shown.count(word) == 2, word
    opened.page.locator(".chips .chip").nth(1).click()
    assert hostile[0] in opened.page.locator(SUMMARY).inner_text()
    assert opened.page.locator(".attention-view script").count() == 1
    assert opened.page.locator("img").count() == 0
    opened.quiet()


def test_pointing_shows_a_row_and_a_click_holds_it(show, view_file):
    page = show(view_file).page
    chips = page.locator(".chips .chip")
    last = at(page)
    chips.nth(12).hover()
    assert at(page) == 12
    assert page.locator(SUMMARY).inner_text().startswith("From position 12 (")
    page.locator(".about").hover()
    assert at(page) == last
    chips.nth(10).click()
    chips.nth(3).hover()
    assert at(page) == 10
    assert page.locator("[data-part=pointed]").inner_text().startswith("position 3 (")
    chips.nth(20).hover()
    assert "not visible from position 10" in page.locator("[data-part=pointed]").inner_text()
    chips.nth(10).click()
    chips.nth(3).hover()
    assert at(page) == 3


def test_what_pointing_tells_is_what_is_listed(show, view_file):
    page = show(view_file).page
    page.get_by_label("Hold this row").check()
    entry = page.locator(".listed li").first
    key, listed = int(entry.locator("small").inner_text()), float(entry.locator("b").inner_text())
    page.locator(".chips .chip").nth(key).hover()
    told = page.locator("[data-part=pointed]").inner_text()
    assert abs(float(told.rpartition("= ")[2]) - listed) <= 0.005
    shares = [float(b) for b in page.locator(".listed b").all_inner_texts()]
    assert abs(sum(shares) - 1) <= 0.005 * len(shares)


def test_the_keyboard_alone_will_do(show, view_file):
    page = show(view_file).page
    last = at(page)
    page.locator(".chips input:checked").focus()
    page.keyboard.press("ArrowLeft")
    assert at(page) == last - 1
    page.keyboard.press("Home")
    assert at(page) == 0
    page.keyboard.press("ArrowLeft")
    assert at(page) == 0
    page.keyboard.press("ArrowRight")
    assert at(page) == 1
    assert page.evaluate("document.activeElement.value") == "1"
    assert page.locator(SUMMARY).inner_text().startswith("From position 1 (")
    page.locator(".heads input:checked").focus()
    page.keyboard.press("ArrowRight")
    assert " L2H1 " in page.locator(SUMMARY).inner_text()
    assert at(page) == 1


def test_a_position_can_be_typed_and_stepped_from(show, view_file):
    page = show(view_file).page
    page.get_by_label("Position", exact=True).fill("7")
    page.keyboard.press("Enter")
    assert at(page) == 7
    page.get_by_role("button", name="Next row").click()
    assert at(page) == 8
    page.get_by_role("button", name="Previous row").click()
    assert at(page) == 7


def test_shading_can_be_relative_to_the_largest(show, view_file):
    page = show(view_file).page
    most = "chips => Math.max(...chips.map(chip => Number(chip.style.getPropertyValue('--p'))))"
    page.get_by_role("radio", name="L0H0").check()
    assert page.locator(".chips .chip").evaluate_all(most) < 1
    page.get_by_label("Shade relative to the largest").check()
    assert page.locator(".chips .chip").evaluate_all(most) == 1


DRAWN = """canvas => {
    const pen = canvas.getContext('2d');
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    return data.reduce((n, x, i) => n + (i % 4 === 3 && x > 200), 0);
}"""


def test_all_heads_at_a_glance_lead_to_one(show, view_file):
    opened = show(view_file, scheme="dark")
    page = opened.page
    thumbs = page.locator(".grid button")
    assert thumbs.count() == 48
    assert page.locator(".grid [aria-pressed=true]").get_attribute("title") == "L3H6"
    diagonal, even = (page.locator(f".grid [title={name}] canvas") for name in ("L2H6", "L0H11"))
    assert diagonal.evaluate(DRAWN) > even.evaluate(DRAWN)
    page.locator(".grid [title=L2H6]").click()
    assert " L2H6 " in page.locator(SUMMARY).inner_text()
    assert page.locator("[data-part=chosen]").inner_text() == "L2H6"
    page.keyboard.press("ArrowUp")
    assert " L1H6 " in page.locator(SUMMARY).inner_text()
    page.get_by_role("radio", name="L2H1").check()
    assert " L2H1 " in page.locator(SUMMARY).inner_text()
    assert page.locator(".grid [aria-pressed=true]").get_attribute("title") == "L2H1"
    opened.quiet()


def test_the_matrix_is_pointed_at_clicked_and_walked(show, view_file):
    page = show(view_file).page
    matrix = page.locator(".matrix")
    assert matrix.evaluate(DRAWN) > 500
    box = matrix.bounding_box()
    matrix.click(position={"x": box["width"] * 0.4, "y": box["height"] * 0.6})
    query = at(page)
    assert 10 < query < 25
    assert page.get_by_label("Hold this row").is_checked()
    matrix.hover(position={"x": box["width"] * 0.4, "y": box["height"] * 0.6})
    assert page.locator("[data-part=pointed]").inner_text().startswith(f"From position {query} (")
    matrix.hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.6})
    assert "is not visible" in page.locator("[data-part=pointed]").inner_text()
    matrix.focus()
    page.keyboard.press("ArrowDown")
    assert at(page) == query + 1


def test_who_looks_at_a_token_is_the_column_of_the_rows(show, view_file):
    page = show(view_file).page
    page.get_by_label("Hold this row").check()
    page.locator(".listed button").first.click()
    key = int(page.locator(".chips .sought").get_attribute("data-j"))
    query, p = at(page), page.locator(".listed b").first.inner_text()
    page.get_by_label("Who looks at a token").check()
    page.locator(".chips .chip").nth(key).click()
    assert at(page) == key
    assert f"L3H6 looks at position {key} (" in page.locator(SUMMARY).inner_text()
    entry = page.locator(".listed li").filter(has=page.locator(f"[data-key='{query}']"))
    assert entry.locator("b").inner_text() == p
    assert page.locator(".chips .later").count() == key
    page.get_by_label("Where a token looks").check()
    assert page.locator(SUMMARY).inner_text().startswith(f"From position {key} (")


def test_a_notebook_shows_it_in_a_frame_that_works(show, notebook_file, evil):
    opened = show(notebook_file)
    frame = opened.page.frame_locator("iframe")
    frame.locator(".chips .chip").nth(1).hover()
    assert evil in frame.locator(SUMMARY).inner_text()
    assert opened.said == []
    assert opened.dialogs == []


def test_4096_tokens_are_a_small_page_that_moves_by_windows(show, long_view_file):
    assert long_view_file.stat().st_size <= 1 << 20
    opened = show(long_view_file)
    page = opened.page
    nodes = "document.querySelectorAll('*').length"
    assert page.evaluate(nodes) <= 5000
    assert at(page) == 4095
    page.get_by_role("button", name="Earlier tokens").click()
    assert page.locator("[data-part=shown]").inner_text() == "tokens 3584 to 3839 of 4096"
    page.get_by_role("button", name="To the query").click()
    assert at(page) == 4095
    box = page.locator(".matrix").bounding_box()
    page.locator(".matrix").click(position={"x": box["width"] * 0.2, "y": box["height"] * 0.5})
    shown = page.locator("[data-part=shown]").inner_text().split()
    assert int(shown[1]) <= at(page) <= int(shown[3]) < 3000  # the matrix of all tokens leads to a place
    entry = page.locator(".listed button").first
    key = entry.get_attribute("data-key")
    entry.click()
    assert page.locator(".chips .sought").get_attribute("data-j") == key
    page.get_by_label("Position", exact=True).fill("2000")
    page.keyboard.press("Enter")
    assert abs(at(page) - 2000) <= 16
    page.locator(".chips input:checked").focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("Number(document.activeElement.value)") == at(page) > 2000
    assert page.evaluate(nodes) <= 5000
    opened.quiet()


@pytest.mark.parametrize("width", [1280, 400])
def test_4096_tokens_fit_and_keep_nobody_out(show, long_view_file, width):
    opened = show(long_view_file, width=width, scheme="dark")
    assert opened.overflow() <= 0
    assert opened.barriers() == []
