"""Removing tokens in the order of a map: a map that is right, one that is wrong, one that says nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from tiny_models import D_VOCAB, ragged, tiny
from tolerance import assert_equal_to_rounding

import interp
from interp import tasks
from interp.errors import SchemaError, TaskError
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import FirstTokenSink, Induction
from probes.relevance import gradient_relevance, occlusion, rollout
from probes.relevance._perturbation import area, perturbation

FEW = {"n_steps": 5, "n_random": 4, "n_draws": 1}


@pytest.fixture(scope="module")
def planted():
    """A model that copies, with a sink; its prompts; and the two tokens that each answer hangs on."""
    made = factory.plant([Induction(), FirstTokenSink()], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    task = made.task("induction", seed=0, n=6)
    copied = [int((row[:-1] == answer).nonzero()[0, 0]) for row, answer in zip(task.tokens, task.answers, strict=True)]
    return model, task, copied


@pytest.fixture(scope="module")
def maps(planted):
    model, task, copied = planted
    rolled = rollout(model, task.tokens)
    right = rolled.blank()
    for prompt, at in enumerate(copied):
        right[prompt, 0, [at - 1, at]] = [1, 2]
    return {
        "rollout": rolled,
        "right": dataclasses.replace(rolled, method="right", value=right),
        "wrong": dataclasses.replace(rolled, method="wrong", value=-right),
        "nothing": dataclasses.replace(rolled, method="nothing", value=rolled.blank()),
    }


@pytest.fixture(scope="module")
def judged(planted, maps):
    model, task, _ = planted
    gradient = gradient_relevance(model, task.tokens, answers=task.answers[:, None])
    given = [*maps.values(), gradient]
    return perturbation(model, *given, answers=task.answers[:, None])


def of(found, variant):
    return found.table().query("variant == @variant").set_index("method")


def test_a_map_that_is_right_breaks_the_answer_at_once_and_keeps_it_to_the_end(judged):
    positive, negative, gap = (of(judged, v) for v in ("positive", "negative", "gap"))
    step = 1 / 10
    assert_allclose(positive.loc["right", "value"], step / 2, atol=0.03)  # gone at the first step: half a trapezoid
    assert_allclose(negative.loc["right", "value"], 1 - step / 2, atol=0.03)
    assert (gap.loc["right", "value"], gap.loc["right", "p"]) > (0.8, 0)
    assert gap.loc["right", "p"] < 0.001
    assert (positive.loc["right", "null"] > 0.2) & (positive.loc["right", "null"] < 0.6)


def test_the_wrong_way_round_it_is_as_bad_and_what_says_nothing_is_random(judged):
    gap = of(judged, "gap")
    assert_allclose(gap.loc["wrong", "value"], -gap.loc["right", "value"], atol=0.05)
    assert gap.loc["wrong", "p"] > 0.999
    assert gap.loc["nothing", "p"] > 0.01
    assert abs(gap.loc["nothing", "value"]) < 0.5 * gap.loc["right", "value"]


def test_gradients_miss_the_token_by_which_the_copied_one_is_found(planted, judged):
    """What misleads: they follow values alone. The word before the copied one is what the query is matched with."""
    model, task, copied = planted
    found = gradient_relevance(model, task.tokens, answers=task.answers[:, None]).value[:, 0]
    for row, at in zip(found, copied, strict=True):
        assert row[:-1].argmax() == at
        assert row[at - 1] < 1e-3 * row[at]
    positive, negative = of(judged, "positive"), of(judged, "negative")
    assert_allclose(positive.loc["gradient relevance", "value"], positive.loc["right", "value"], atol=0.02)
    assert negative.loc["gradient relevance", "value"] < negative.loc["right", "value"] - 0.1


def test_gradients_beat_rollout_on_repeats_in_the_trained_model():
    model = interp.load("zoo:default")
    (group,) = tasks.repeated_random(model, lengths=[10], n_each=6, bos="default", seed=0)
    at = group.start + group.length + 5
    prompts, answers = group.batch.ids[:, :at], group.batch.ids[:, at : at + 1]
    given = [rollout(model, prompts), gradient_relevance(model, prompts, answers=answers)]
    found = perturbation(model, *given, answers=answers, metric="log_prob", **FEW)
    gap = of(found, "gap")
    assert (gap["p"] < 0.01).all()
    assert gap.loc["gradient relevance", "value"] > gap.loc["rollout", "value"]


def test_a_bos_stays_unless_it_is_told_to_go(planted, maps):
    _, task, _ = planted
    given = {"answers": task.answers[:, None], **FEW}
    default, kept, gone = (
        perturbation(planted[0], maps["rollout"], **given, **more) for more in ({}, {"keep": 1}, {"keep": 0})
    )
    assert_array_equal(default.ordered, kept.ordered)
    assert abs(default.ordered - gone.ordered).max() > 1e-3


def test_curves_start_at_the_whole_prompt_and_end_together(planted, judged):
    model, task, _ = planted
    whole = model.run(task.tokens).logits[:, -1].double().softmax(-1).gather(1, task.answers[:, None])[:, 0]
    assert_allclose(judged.ordered[..., 0], np.broadcast_to(whole, judged.ordered.shape[:3]), atol=1e-5)
    assert_allclose(judged.random[..., 0], np.broadcast_to(whole, judged.random.shape[:2]), atol=1e-5)
    ends = np.concatenate([judged.ordered[..., -1].reshape(-1, 6), judged.random[..., -1]])
    assert_equal_to_rounding(ends, np.broadcast_to(ends[0], ends.shape), scale=1.0)  # the same replacements everywhere
    curves = judged.curves()
    assert set(curves["order"]) == {"positive", "negative", "random"}
    assert len(curves) == (2 * 5 + 1) * 11
    table = judged.table()
    assert (table["ci_low"] <= table["value"]).all() and (table["value"] <= table["ci_high"]).all()


def test_occlusion_wins_where_each_token_counts_alone(planted):
    model, task, _ = planted
    removed = occlusion(model, task.tokens, answers=task.answers[:, None], n_draws=1)
    found = perturbation(model, removed, answers=task.answers[:, None], metric="log_prob", **FEW)
    rows = of(found, "gap")
    assert rows.loc["occlusion", "p"] < 0.01
    assert rows.loc["occlusion", "unit"] == "nats"


def test_padding_on_either_side_changes_nothing():
    model, tables = tiny("llama"), []
    for side in ("right", "left"):
        batch = ragged(16, side, lengths=(16, 12, 9))
        tables.append(perturbation(model, rollout(model, batch, rows=[-1, 6]), metric="log_prob", **FEW).table())
    assert_allclose(tables[0]["value"], tables[1]["value"], atol=1e-4)


def test_area_by_hand():
    assert_allclose(area(np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), np.array([0, 0.5, 1.0])), [0.25, 0.75])


def test_refusals():
    model, ids = tiny("gpt2"), torch.arange(40).reshape(4, 10) % D_VOCAB
    rolled = rollout(model, ids)
    with pytest.raises(TaskError, match="no relevance map"):
        perturbation(model)
    with pytest.raises(TaskError, match="not of the same rows"):
        perturbation(model, rolled, rollout(model, ids, rows=[4]))
    with pytest.raises(TaskError, match="2 prompts are too few"):
        perturbation(model, rollout(model, ids[:2]))
    with pytest.raises(TaskError, match="1 tokens before it can go"):
        perturbation(model, rollout(model, ids, rows=[1]))
    with pytest.raises(SchemaError, match="did you mean 'log_prob'"):
        perturbation(model, rolled, metric="logprob")
