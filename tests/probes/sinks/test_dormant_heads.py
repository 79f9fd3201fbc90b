"""Dormant heads: a planted head that rests unless a trigger is there, one that always rests, and uniform attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import blind, column, eager, named, variant
from tiny_models import ragged, tiny

import interp
from interp.errors import TaskError
from interp.measurement.prompts import prompt_set
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import Backcopy
from probes.sinks._dormant_heads import first_token_mass, switching

N, LENGTH = 16, 24


@pytest.fixture(scope="module")
def backcopy():
    made = factory.plant([Backcopy(at=(1, 4))], seed=0)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def domains(backcopy):
    """Words without triggers; and words behind each second of which a trigger stands and the word again."""
    vocab, generator = backcopy[0].vocab, torch.Generator().manual_seed(0)
    triggers = torch.tensor([vocab.word(i) for i in range(3)])
    quiet = vocab.draw(N, LENGTH, generator=generator, without=tuple(triggers.tolist()))
    busy = quiet.clone()
    busy[:, 1::3] = triggers[torch.randint(3, busy[:, 1::3].shape, generator=generator)]
    busy[:, 2::3] = busy[:, ::3]
    bos = torch.full((N, 1), vocab.bos)
    return {"quiet": torch.cat([bos, quiet], 1), "busy": torch.cat([bos, busy], 1)}


@pytest.fixture(scope="module")
def found(backcopy, domains):
    return interp.analyze(backcopy[1], "dormant_heads", domains=domains, n_permutations=2000, n_random=2)


def test_the_planted_head_alone_is_dormant_and_switches(found):
    rest, switch = variant(found, "sink_mass"), variant(found, "switch")
    assert list(rest.index[rest["label"].astype(bool)]) == ["L1H4"]
    assert rest.loc["L1H4", ["role", "domain"]].tolist() == ["active-dormant", "quiet"]
    assert rest["value"]["L1H4"] > 0.999
    # rows from position 2 on: 8 of 23 stand at a trigger
    assert switch["value"]["L1H4"] == pytest.approx(8 / 23, abs=1e-3)
    assert switch["domain"]["L1H4"] == "quiet > busy"
    assert switch["q"]["L1H4"] < 0.01
    assert switch["null"]["L1H4"] < 0.1
    assert (switch["value"].drop("L1H4") < 0.02).all()
    by_domain = found.table[found.table["variant"] == "by_domain"].set_index(["domain", "component"])
    assert by_domain.loc[("busy", "L1H4"), "value"] == pytest.approx(15 / 23, abs=1e-3)
    share = found.table[found.table["variant"] == "rest_share"].set_index(["domain", "component"])["value"]
    assert share[("quiet", "L1H4")] == 1
    assert share[("busy", "L1H4")] == 0


def test_it_is_missed_where_it_works_and_nowhere_else(found):
    rows = found.interventions.set_index("metric")
    assert (rows["set_id"] == "zero: L1H4").all()
    rise = rows["edited"] - rows["clean"]
    assert rise["loss_nats: busy"] > 0.5
    assert abs(rise["loss_nats: quiet"]) < 0.05
    assert ((rows["random_mean"] - rows["clean"]).abs() < 0.05).all()
    assert len(found.plot("dormant_heads", variant="by_domain").data) == 3  # two domains, and their null


def test_a_head_that_always_rests_is_dormant_and_does_not_switch(planted):
    made, model = planted
    rest = variant(interp.analyze(model, "dormant_heads", n_prompts=6, n_permutations=500, n_random=0), "sink_mass")
    assert list(rest.index[rest["label"].astype(bool)]) == named(made, "sink")
    assert set(rest["role"].dropna()) == {"dormant"}


def test_uniform_attention_is_its_null():
    model = blind()
    ids = torch.randint(3, 64, (6, 20), generator=torch.Generator().manual_seed(0))
    found = interp.analyze(model, "dormant_heads", domains={"a": ids[:3], "b": ids[3:]}, n_permutations=50)
    expected = np.mean([1 / (i + 1) for i in range(2, 20)])
    for name in ("sink_mass", "by_domain"):
        assert_allclose(column(found, name), expected, rtol=1e-5)
        assert_allclose(column(found, name, "null"), expected, rtol=1e-12)
    assert not variant(found, "sink_mass")["label"].any()
    assert_allclose(column(found, "switch"), 0, atol=1e-6)
    assert found.interventions.empty


def test_p_of_a_switch_is_a_share_of_exchanges():
    a, b = np.zeros((4, 1, 1)), np.ones((4, 1, 1))
    value, null, p = switching([a, b], 4000, seed=0)
    assert value.item() == 1
    # of the 70 ways of sharing eight prompts out, two are as far apart; the mean of |2k - 4| / 4 over them
    assert p.item() == pytest.approx(2 / 70, abs=0.01)
    ways = np.array([1, 16, 36, 16, 1]) / 70
    assert null.item() == pytest.approx(float((ways * np.abs(np.arange(5) - 2) / 2).sum()), abs=0.02)
    assert switching([a, a], 10, seed=0)[2].item() == 1


def test_rows_beyond_a_window_pay_nothing():
    model, batch = tiny("mistral"), ragged(24, "unpadded", lengths=(24,) * 4)
    data = prompt_set(model, batch.ids, n_prompts=4, length=24, bos="default", seed=0)
    rows = data.rows()[0].numpy()
    assert rows[20]  # beyond a window of 17
    wanted = eager(model, batch)[:, :, :, :, 0][..., rows].mean(-1).transpose(1, 0, 2)
    assert_allclose(first_token_mass(model, data), wanted, atol=1e-6)


def test_refusals(backcopy):
    model, ids = backcopy[1], torch.full((3, 12), 5)
    with pytest.raises(TaskError, match="1 domains; two"):
        interp.analyze(model, "dormant_heads", domains={"a": ids})
    with pytest.raises(TaskError, match="domain 'b' has 2 prompts; 3"):
        interp.analyze(model, "dormant_heads", domains={"a": ids, "b": ids[:2]})
    with pytest.raises(TaskError, match="at least 8"):
        interp.analyze(model, "dormant_heads", domains={"a": ids, "b": ids[:, :7]})
