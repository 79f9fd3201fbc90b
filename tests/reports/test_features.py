"""The view of a feature: what it shows is what was measured, and text of a corpus cannot become part of the page."""

import pytest
import torch
from dictionaries_made import random_dictionary

import interp
from interp.dictionaries import top_examples
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
    assert len(view.up) == len(view.down) == 8
    assert view.up[0][1] > 0 > view.down[0][1]
    assert "sandbox" in view._repr_html_()
    shares = [chip.share for example in view.examples for chip in example]
    assert max(shares) == 1.0


def test_what_pushes_no_logits_says_so_and_a_dead_feature_too(model):
    width = model.info.d_model
    d = random_dictionary("L0.mlp_in", d_in=width, d_out=width)
    dead = type(d)(d.w_enc, d.w_dec, torch.full_like(d.b_enc, -1e6), d.b_dec).at("L0.mlp_in")
    page = feature_view(model, dead, 3, ["the dog"])._page()
    assert "by no matrix" in page
    assert "active nowhere" in page
