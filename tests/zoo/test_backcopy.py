"""The shipped bigram-backcopy models: with a softmax the head learns to rest on `<bos>`, with ReLU it need not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import interp
from interp import zoo
from interp.attention import KeyMass, Offset
from interp.batch import Batch
from interp.zoo.trained import backcopy

NAMES = ("bigram-backcopy", "bigram-backcopy-relu")


@pytest.fixture(scope="module")
def text():
    return backcopy.draw(backcopy.language(), 24, torch.Generator().manual_seed(5)).tokens


def test_behind_a_trigger_the_word_before_comes_again(text):
    triggers = backcopy.at_trigger(text)
    assert not triggers[:, :2].any()
    assert not (triggers[:, 1:] & triggers[:, :-1]).any()
    row, at = triggers[:, :-1].nonzero().T
    assert len(row) > 100
    assert torch.equal(text[row, at + 1], text[row, at - 1])
    told = backcopy.language()
    assert_allclose(told.follows.sum(1), 1, rtol=1e-12)
    # the table, where no trigger is: how often triggers come
    expected = told.follows[:, told.triggers].sum(1)[text[:, 1:-1][~triggers[:, 1:-1]] - 4].mean()
    assert float(triggers[:, 2:][~triggers[:, 1:-1]].double().mean()) == pytest.approx(float(expected), abs=0.03)


def test_the_sink_emerges_with_a_softmax_and_not_with_relu():
    curves = {name: backcopy.read_curve(zoo.folder(name)) for name in NAMES}
    mean = {
        name: {key: np.mean([row[key] for row in rows if row["step"] > 0]) for key in rows[0]}
        for name, rows in curves.items()
    }
    soft, relu = (mean[name] for name in NAMES)
    assert soft["sink_elsewhere"] > 0.2
    assert soft["sink_at_triggers"] < 0.02
    assert soft["value_ratio"] < 0.3
    assert relu["sink_elsewhere"] < 0.01
    assert relu["sink_at_triggers"] < 0.01
    assert relu["value_ratio"] > 0.7
    first, *_, last = curves["bigram-backcopy"]
    assert first["sink_elsewhere"] < 0.1
    assert last["sink_elsewhere"] > 0.5
    assert last["backcopy_loss"] < 0.03
    assert abs(last["bigram_loss"] - backcopy.least_loss()) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_the_shipped_weights_are_those_of_the_curve_and_of_the_model_as_it_is_loaded(name, text):
    scores = backcopy.sink_scores(backcopy.saved(name, zoo.folder(name)))
    last = backcopy.read_curve(zoo.folder(name))[-1]
    assert {key: last[key] for key in scores} == pytest.approx(scores, abs=2e-3)

    model, batch = interp.load(f"zoo:{name}"), Batch.of(text)
    assert model.info.softmax_share == float(name == "bigram-backcopy")
    first = torch.zeros_like(batch.mask)
    first[:, 0] = True
    found = model.attention(batch, {"sink": KeyMass(first), "back": Offset(1)})
    triggers = backcopy.at_trigger(text)
    elsewhere = ~triggers & ~first
    sink, back = (found[key][0, :, 0] for key in ("sink", "back"))
    assert float(sink[elsewhere].mean()) == pytest.approx(scores["sink_elsewhere"], abs=0.03)
    assert float(sink[triggers].mean()) == pytest.approx(scores["sink_at_triggers"], abs=0.01)
    assert float(back[triggers].mean()) == pytest.approx(scores["backcopy_attention"], abs=0.05)
    v = model.run(batch, capture=["v"])["L0.v"][:, :, 0].norm(dim=-1)
    assert float(v[:, 0].mean() / v[:, 1:].mean()) == pytest.approx(scores["value_ratio"], abs=0.02)


def test_the_loss_is_taken_apart_where_triggers_are():
    tokens = torch.tensor([[0, 10, 4, 10, 11]])
    logits = torch.zeros(1, 5, 36)
    logits[0, 2, 10] = 3.0
    loss, parts = backcopy.text_loss(None, logits, backcopy.Text(tokens))
    behind = -float(logits[0, 2].log_softmax(-1)[10])
    assert float(parts["backcopy"]) == pytest.approx(behind)
    assert float(parts["bigrams"]) == pytest.approx(np.log(36))
    assert float(loss) == pytest.approx((behind + 2 * np.log(36)) / 3)


def test_publishing_writes_the_curve_and_leaves_the_checkpoints_out(tmp_path):
    from interp.zoo.trained.train import main

    main(["bigram-backcopy-relu", "--out", str(tmp_path), "--steps", "4"])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []
    rows = backcopy.read_curve(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    card = (tmp_path / "README.md").read_text()
    assert "ReluLlamaForCausalLM" in card
    assert f"{rows[-1]['bigram_loss']:.3f}" in card
    assert interp.load(tmp_path).info.family == "ReluLlamaForCausalLM"
