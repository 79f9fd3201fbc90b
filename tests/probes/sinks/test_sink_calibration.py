"""Hidden sinks: one planted in the middle starves an answer; calibration finds its head and gives the answer back."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.batch import Batch
from interp.edits import AttentionBias
from interp.errors import TaskError
from interp.measurement.needle_answers import needle_accuracy
from interp.measurement.registry import analyze
from interp.measurement.rerun import Rerun
from interp.tasks import needles
from interp.zoo.planted import factory
from probes.sinks._sink_calibration import _part, random_columns, sink_columns

LENGTH, PLACE, HEAD = 48, 20, "L1H3"


@pytest.fixture(scope="module")
def model():
    made = factory.plant((factory.Retrieval(),), architecture="llama", seed=1)
    assert made.truth.parts("retrieval") == (HEAD,)
    return interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def sink():
    bias = torch.zeros(LENGTH)
    bias[PLACE] = 20.0
    return AttentionBias(f"{HEAD}.pattern", bias)


@pytest.fixture(scope="module")
def result(model, sink):
    return analyze(model, "sink_calibration", n_prompts=12, length=LENGTH, n_random=2, edits=[sink])


def test_the_planted_column_is_found_and_nothing_else(model, sink):
    hidden = needles.hide(model, n=6, length=LENGTH, n_needles=1, depths=[0.1], seed=3)
    with model.editing([sink]):
        columns = sink_columns(model, hidden.batch, 0.1)
    assert columns.nonzero().tolist() == [[1, b, 3, PLACE] for b in range(6)]
    left = Batch.of([ids[: LENGTH - 2 * i].tolist() for i, ids in enumerate(hidden.batch.ids[:3])], side="left")
    assert not sink_columns(model, left, 0.1)[:, torch.arange(3), :, left.first].any()


def test_the_head_with_the_sink_is_labelled_and_answers_come_back_on_held_out_prompts(result, model, sink):
    rows = result.table[result.table["variant"] == "gain"].set_index("component")
    assert rows.index[rows["label"].fillna(False)].tolist() == [HEAD]
    own = rows.loc[HEAD]
    assert own["value"] > 3 and abs(own["null"]) < 0.1 and own["columns"] == pytest.approx(1.0, abs=0.2)
    metrics = result.interventions.set_index("metric")
    assert set(metrics["control"]) == {"random columns"}  # no other head has columns
    assert metrics.loc["needle_accuracy", ["clean", "edited"]].tolist() == [0.0, 1.0]
    assert metrics.loc["needle_accuracy", "random_mean"] == 0.0
    assert metrics.loc["needle_loss_nats", "edited"] < 2.0
    hidden = needles.hide(model, n=12, length=LENGTH, n_needles=1, seed=0)
    clean = needle_accuracy(Rerun(model), _part(hidden, 6, 12), [sink])["needle_loss_nats"]
    assert metrics.loc["needle_loss_nats", "clean"] == pytest.approx(clean, rel=1e-6)
    chosen_on = needle_accuracy(Rerun(model), _part(hidden, 0, 6), [sink])["needle_loss_nats"]
    assert abs(clean - chosen_on) > 1e-3
    assert metrics.loc["needle_loss_nats", "random_mean"] > 4.5


def test_without_a_sink_no_head_is_labelled(model):
    table = analyze(model, "sink_calibration", n_prompts=12, length=LENGTH, n_random=2).table
    assert not table["label"].fillna(False).any()


def test_random_columns_are_as_many_others():
    own = torch.zeros(2, 9, dtype=torch.bool)
    own[0, 3], own[1, [4, 6]] = True, True
    mask = torch.ones_like(own)
    mask[1, :2] = False
    drawn = random_columns(own, Batch(torch.zeros(2, 9, dtype=torch.long), mask), torch.Generator().manual_seed(0))
    assert drawn.sum(1).tolist() == [1, 2]
    assert not (drawn & (own | ~mask)).any() and not drawn[0, 0] and not drawn[1, 2]
    half = torch.arange(9)[None].gt(0) & torch.arange(9)[None].lt(5)  # four of eight: the others are what is left
    whole = Batch(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool))
    for seed in range(3):
        rest = random_columns(half, whole, torch.Generator().manual_seed(seed))
        assert rest.nonzero()[:, 1].tolist() == [5, 6, 7, 8]


def test_too_few_prompts_are_refused(model):
    with pytest.raises(TaskError, match="too few to choose heads"):
        analyze(model, "sink_calibration", n_prompts=4)
