"""Passes of analyses: counted as they run, foretold before anything does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import interp
from interp.measurement import cost
from interp.measurement.registry import analyses

SCRIPT = Path(__file__).parents[1] / "bench" / "analysis_counts.py"


@pytest.fixture(scope="module")
def model():
    return interp.load("zoo:planted-induction")


def test_passes_are_counted_in_part_where_they_end_early(model):
    with cost.counted(model) as counter:
        model.run([[1, 2, 3], [4, 5, 6]])
        model.run([1, 2, 3, 4], stop=0)
    assert (counter.forwards, counter.token_layers) == (2, 2 * 6 + 4)
    assert (counter.batch, counter.width) == (6, 3)
    model.run([1, 2, 3])
    assert counter.forwards == 2


def test_an_analysis_is_counted(model):
    few, many = (cost.forwards(model, "previous_token", n_prompts=n) for n in (4, 8))
    assert many.tokens == 2 * few.tokens > 0
    assert few.equivalents == few.tokens / 1024


def test_what_is_foretold_scales_with_prompts_and_runs_one_pass(model, monkeypatch):
    known = {"forwards": 1, "tokens": 2048, "batch": 1024, "width": 64, "factor": 2.0, "n_prompts": 16}
    monkeypatch.setattr(cost, "stored", lambda: {"previous_token": known})
    monkeypatch.setattr(cost, "seconds_per_token", lambda model: 0.5)
    with cost.counted(model) as counter:
        plain = cost.plan(model, ["previous_token", "induction"])
        half = cost.plan(model, "previous_token", options={"previous_token": {"n_prompts": 8}})
        own = cost.plan(model, "previous_token", prompts=[[1, 2, 3, 4]] * 2)
    first, unknown = plain.table.to_dict("records")
    assert (first["forwards"], first["shape"], first["seconds"]) == (2.0, "16 x 64", 2048.0)
    assert unknown["forwards"] != unknown["forwards"]
    assert "not known" in str(plain) and "Estimates." in str(plain)
    assert half.table["seconds"].item() == 1024.0
    assert (own.table["forwards"].item(), own.table["shape"].item()) == (16 / 1024, "2 x 4")
    assert counter.forwards == 0


def test_longer_prompts_cost_more_for_each_token(model, monkeypatch):
    known = {"forwards": 1, "tokens": 1024, "batch": 1024, "width": 1024, "factor": 1.0, "n_prompts": None}
    monkeypatch.setattr(cost, "stored", lambda: {"previous_token": known})
    monkeypatch.setattr(cost, "seconds_per_token", lambda model: 1.0)
    d = model.info.d_model
    seconds = cost.plan(model, "previous_token").table["seconds"].item()
    assert seconds == pytest.approx(1024 * (12 * d + 1024) / (12 * d + 64))


def test_the_one_pass_is_small(model):
    with cost.counted(model) as counter:
        assert cost.seconds_per_token(model) > 0
    assert counter.forwards == 2 and counter.batch <= 16 * 64


def test_counts_are_of_analyses_that_there_are():
    assert set(cost.stored()) <= set(analyses())
    assert all(count["tokens"] > 0 for count in cost.stored().values())


@pytest.mark.slow
def test_counts_are_kept_true():
    stored, new = cost.stored(), runpy.run_path(str(SCRIPT))["measure_counts"]()
    assert {name: new[name]["tokens"] for name in new} == {name: c["tokens"] for name, c in stored.items()}
