"""A result in at most twenty lines of eighty columns, with nothing cut."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import interp
from interp import zoo
from interp.components import head_name
from interp.measurement.registry import find
from interp.results.results import INTERVENTION_COLUMNS, Result, frame
from interp.studies.summary import reasons, summary

LAYERS = HEADS = 32


def rows_of(name, labelled, *, order=0):
    """A row for each head of a large model, some of them labelled."""
    heads = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    value = np.linspace(0, 0.5, len(heads))
    rows = pd.DataFrame({"analysis": name, "variant": find(name).headline, "unit": "fraction", "value": value})
    rows["layer"], rows["head"] = zip(*heads, strict=True)
    rows["component"] = [head_name(*head) for head in heads]
    chosen = np.random.default_rng(order).permutation(len(heads))[:labelled]
    rows["label"] = pd.Series(np.isin(np.arange(len(heads)), chosen), dtype="boolean")
    return rows.assign(null=0.0, p=0.5, q=0.5, n=8)


@pytest.fixture(scope="module")
def large():
    """32 x 32 heads: 170 sinks, 14 induction and 6 previous-token heads and more, every analysis with an effect."""
    counts = {
        "sink": 170, "induction": 14, "previous_token": 6, "copying": 9, "successor": 7, "movers": 12, "retrieval": 20,
        "entropy": 300, "offset_profile": 90, "lag_profile": 14, "duplicate_token": 0, "copy_suppression": 0,
        "temporal": 0, "echo_induction": 11, "text_induction": 5, "direct_attribution": 8, "distraction": 40,
    }  # fmt: skip
    table = pd.concat([rows_of(name, n, order=i) for i, (name, n) in enumerate(counts.items())], ignore_index=True)
    effects = []
    for name, n in counts.items():
        own = table[(table["analysis"] == name) & table["label"]]["component"]
        row = ("mean: " + " ".join(own), n, "same layers", "needle_accuracy", 1.0, n / 300, 1.0, 0.0, 5)
        effects += [dict(zip(list(INTERVENTION_COLUMNS)[1:], row, strict=True), analysis=name)] if n else []
    calls = [{"call": {"analysis": name}, "data": {"task": "random tokens"}} for name in counts]
    movers = next(call for call in calls if call["call"]["analysis"] == "movers")
    movers["ability"] = {"ioi": {"accuracy": 0.48, "chance": 0.5, "n": 48, "p": 0.7, "contrasted": True}}
    model = {"name": "planted/large-32x32", "n_layers": LAYERS, "n_heads": HEADS}
    reason = "takes no prompts of one's own: what it measures is defined on prompts that it makes itself: {}"
    left_out = {f"analysis_{i}": reason.format("x" * i) for i in range(30)}
    left_out |= {"temporal_9": "needs a tokenizer; this checkpoint has none"}
    provenance = {"model": model, "seed": 3, "calls": calls, "left_out": left_out}
    return Result(frame(table, extra={"label": "boolean"}), provenance, frame(effects, interventions=True))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_at_most_twenty_lines_of_any_model(large, width):
    lines = summary(large, width=width, more=["report: r.html"])
    assert len(lines) <= 20
    assert max(map(len, lines)) <= width
    assert lines[-1] == "report: r.html"


def test_first_what_was_measured_then_what_does_most(large):
    lines = summary(large)
    text = " ".join(line.strip() for line in lines)
    assert lines[0] == "planted/large-32x32 (32 layers x 32 heads): 17 analyses, seed 3"
    assert lines[1].startswith("  5 induction heads on text: ")  # before 170 sinks, which are no function
    assert "needle accuracy 1.000 -> 0.017 (random sets 1.000)" in text
    places = [text.index(f"{n} {what}") for n, what in ((5, "induction"), (6, "previous"), (7, "succ"), (9, "copying"))]
    assert places == sorted(places)  # the largest change first


def test_what_does_not_fit_is_counted_and_the_rest_has_its_line(large):
    lines = summary(large)
    text = " ".join(line.strip() for line in lines)
    assert "170 first-token sinks" in text
    assert "Nothing found: duplicate-token heads, copy suppression, temporal heads" in text
    assert "Left out: 31, as: takes no prompts of one's own (30); needs a tokenizer (1)" in text
    assert text.count(" more") >= 1
    assert any(line.startswith("Roles: ") for line in lines)


def test_a_task_at_chance_is_said_with_the_finding(large):
    text = " ".join(line.strip() for line in summary(large, lines=60))
    assert "(the model does this task at chance: .48 of .50)" in text
    assert text.count("at chance") == 1


def test_reasons_are_grouped_by_their_beginning(large):
    assert reasons(large) == {"takes no prompts of one's own": 30, "needs a tokenizer": 1}


def test_a_planted_model():
    result = interp.detect(interp.load("zoo:planted-induction"), ["previous_token", "duplicate_token", "sink"])
    ((layer, head),) = zoo.truth("planted-induction").roles["previous_token"]
    lines = summary(result)
    assert lines[0] == "zoo:planted-induction (2 layers x 8 heads): 3 analyses, seed 0"
    assert lines[1] == f"  1 previous-token head: L{layer}H{head}"
    assert lines[2:] == [
        f"Roles: 1 of 16 heads: L{layer}H{head} previous token",
        "Nothing found: duplicate-token heads, first-token sinks",
    ]
