"""The view of a feature: what it shows is what was measured, and text of a corpus cannot become part of the page."""

from dataclasses import replace

import pytest
import torch
from dictionaries_made import random_dictionary

import interp
from interp.dictionaries import random_pushes, top_examples
from interp.reports.features import feature_view


@pytest.fixture(scope="module")
def model():
    return interp.load("zoo:sibling")


def test_the_page_shows_examples_histogram_and_logits(model, tmp_path):
    width = model.info.d_model
    d, text = random_dictionary("L0.resid_post", d_in=width, d_out=width), ["the <b>dog</b> and the cat sat down ."] * 2
    record = top_examples(model, d, 3, text)[3]
    view = feature_view(model, d, 3, text)
    assert view.record == record
    page = view.save(tmp_path / "feature.html").read_text(encoding="utf-8")
    assert f"active at {record.n_active} of {record.n_tokens} tokens" in page
    assert page.count("<rect") == len(view.bars)
    assert sum(n for _, n, _ in view.bars) == record.n_active
    assert page.count('class="place"') == len(record.examples)
    assert "<b>dog" not in page
    up, down = view.sides
    assert len(up.tokens) == len(down.tokens) == 8
    assert up.tokens[0][1] > 0 > down.tokens[0][1]
    ends = random_pushes(model, d, 3)
    for side, reached, mean in (
        (up, ends[:, 1] >= up.tokens[0][1], ends[:, 1].mean()),
        (down, ends[:, 0] <= down.tokens[0][1], ends[:, 0].mean()),
    ):
        assert (side.control.reached, side.control.n) == (int(reached.sum()), 100)
        assert side.control.mean == pytest.approx(float(mean))
        assert f"{side.control.mean:+#.3g} at the most pushed token".replace("-", "−") in page
    assert "sandbox" in view._repr_html_()
    shares = [chip.share for example in view.examples for chip in example]
    assert max(shares) == 1.0


def test_views_are_a_section_of_the_report(model, tmp_path):
    width = model.info.d_model
    d = random_dictionary("L0.resid_post", d_in=width, d_out=width)
    views = [feature_view(model, d, number, ["the dog and the cat sat down ."]) for number in (3, 5)]
    path = interp.report(model, analyses=["previous_token"], features=views, path=tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert page.count('class="feature-view"') == 2 and 'href="#features"' in page
    other = replace(views[0], model="another")
    for wrong, message in ((other, "of another, and the report of"), ([3], "what feature_view returns")):
        with pytest.raises(interp.errors.SchemaError, match=message):
            interp.report(model, features=wrong, path=tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_what_pushes_no_logits_says_so_and_a_dead_feature_too(model):
    width = model.info.d_model
    d = random_dictionary("L0.mlp_in", d_in=width, d_out=width)
    dead = type(d)(d.w_enc, d.w_dec, torch.full_like(d.b_enc, -1e6), d.b_dec).at("L0.mlp_in")
    page = feature_view(model, dead, 3, ["the dog"])._page()
    assert "by no matrix" in page
    assert "active nowhere" in page
