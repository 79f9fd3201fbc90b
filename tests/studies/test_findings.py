"""What a result says first: sentences with the heads and what their removal does."""

from __future__ import annotations

import pandas as pd
import pytest

import interp
from interp import zoo
from interp.results.results import Result
from interp.studies.findings import Effect, Finding, _effect, findings


@pytest.fixture(scope="module")
def result():
    model = interp.load("zoo:planted-induction")
    options = {"induction": {"n_prompts": 24, "n_random": 4}}
    names = ("sink", "previous_token", "induction", "duplicate_token", "entropy")
    return Result.concat([interp.analyze(model, name, **options.get(name, {})) for name in names])


def test_functions_come_first_and_each_says_what_its_removal_does(result):
    found = findings(result)
    ((layer, head),) = zoo.truth("planted-induction").roles["induction"]
    first = found[0].sentence()
    assert first.startswith(f"1 induction head: L{layer}H{head}; without them second copy accuracy 1.000 → 0.0")
    assert first.endswith("(random sets 1.000)")
    last = {f.analysis: f.sentence() for f in found if not f.names}
    assert last["duplicate_token"] == "no duplicate-token heads"
    assert [f.analysis for f in found][-len(last) :] == list(last)  # what was not found is last
    patterns = [f.pattern for f in found if f.names]
    assert patterns == sorted(patterns)


def rows(*given):
    columns = ("set_id", "k", "metric", "clean", "edited", "random_mean", "n_random")
    return pd.DataFrame([dict(zip(columns, row, strict=True), analysis="a") for row in given])


def test_the_effect_is_of_all_labelled_heads_by_the_analysis_own_accuracy():
    table = rows(
        ("mean: L0H0", 1, "accuracy", 1.0, 0.9, 1.0, 5),
        ("mean: L0H0 L0H1", 2, "loss_nats", 0.1, 9.0, 0.1, 5),
        ("mean: L0H0 L0H1", 2, "ordinal_accuracy", 1.0, 0.5, 0.9, 5),
        ("mean: L0H0 L0H1", 2, "other_accuracy", 1.0, 0.0, 0.9, 5),
        ("mean: L0H0 L0H1 L3H3", 3, "accuracy", 1.0, 0.0, 0.9, 5),  # a head without the label
        ("zero: L0H0 L0H1", 2, "ordinal_accuracy", 1.0, 0.1, 0.9, 0),  # without a control
    )
    effect = _effect(table, "a", {"L0H0", "L0H1"})
    assert effect == Effect("mean", "ordinal accuracy", 1.0, 0.5, 0.9, 5)
    assert _effect(table, "b", {"L0H0"}) is None
    assert _effect(table, "a", set()) is None


def test_an_edit_that_is_no_removal_is_named():
    scaled = Effect("scaled by 3", "answers", 0.6, 0.9, 0.6, 5)
    assert scaled.sentence() == "scaled by 3: answers 0.600 → 0.900 (random sets 0.600)"


def test_many_heads_are_counted_and_some_named():
    found = Finding("sink", "First-token sinks", True, {"first_token": [f"L0H{i}" for i in range(9)]}, 9, None)
    assert found.sentence() == "9 first-token sinks: L0H0, L0H1, L0H2, L0H3 .."
    two = Finding("echo", "Echo heads", False, {"echo": ["L0H0"], "induction": ["L1H1", "L0H0"]}, 9, None)
    assert two.sentence() == "2 echo heads: 1 echo (L0H0); 2 induction (L1H1, L0H0)"


def test_stronger_effects_come_first(result):
    table = result.interventions.copy()
    assert len(table)
    weak = table.assign(edited=table["clean"], random_mean=table["clean"])
    again = findings(Result(result.table, result.provenance, weak))
    assert {f.analysis for f in again if f.names} == {f.analysis for f in findings(result) if f.names}
