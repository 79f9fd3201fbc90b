"""Accuracy beside chance, and by how much a model does better than what is left of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import binom

import interp
from interp.measurement.ability import Ability, ability, advantage
from interp.measurement.needle_answers import needle_ability
from interp.patching.case import Case
from interp.tasks.metrics import accuracy, of_equal_logits, rank, right
from interp.tasks.prompt import collate


def task_of(wrong):
    """Ten prompts whose right answer is token 1."""
    n = 10
    return collate(
        "t",
        [([5, 6], [7, 6])] * n,
        answers=[[1]] * n,
        wrong=[wrong] * n,
        roles=[{}] * n,
        templates=["t"] * n,
        corruption="own",
        metric="logit_diff",
    )


def test_accuracy_is_against_every_wrong_answer_and_chance_counts_them():
    logits = torch.zeros(10, 8)
    logits[:7, 1], logits[7:, 2], logits[:2, 3] = 1.0, 2.0, 1.5
    one, two, none = (Ability.of(logits, task_of(wrong)) for wrong in ([2], [2, 3], []))
    assert_allclose([one.accuracy, one.chance], [0.7, 1 / 2])
    assert_allclose([two.accuracy, two.chance], [0.5, 1 / 3])
    assert_allclose([none.accuracy, none.chance], [0.5, 1 / 8])
    assert one.p == pytest.approx(binom.sf(6, 10, 0.5))
    assert not one.able and "not do this task better than chance" in one.caution
    assert none.able and none.caution == ""
    assert none.sentence() == "right in 0.50 of 10 prompts (chance 0.12)"


def test_few_prompts_cannot_tell():
    few = Ability.of(torch.eye(8)[[1, 1]], task_of([2]).select(slice(2)))
    assert (few.accuracy, few.able) == (1, False)
    assert "cannot be told from 2 prompts" in few.caution


def test_a_model_that_can_and_one_that_cannot():
    model = interp.load("zoo:default")
    task = interp.task("ioi", model, n=12)
    can = ability(model, task, batch_size=5)
    assert (can.accuracy, can.n, can.able) == (1, 12, True)
    turned = interp.pair(model, task.clean, task.corrupt, task.wrong[:, 0], task.answers[:, 0])
    assert ability(model, turned).accuracy == 0


def test_better_is_more_of_most_metrics_and_less_of_a_loss():
    full, empty = np.full(6, 3.0), np.full(6, 1.0)
    assert advantage(full, empty, "logit_diff").low == pytest.approx(2)
    assert advantage(full, empty, "loss_nats").low == pytest.approx(-2)
    assert advantage(empty, full, "my own").low == pytest.approx(2)  # without a direction: its size


def test_the_metric_stands_beside_that_of_equal_logits():
    logits = torch.zeros(10, 8)
    logits[:, 1] = 2.0
    one = Ability.of(logits, task_of([2]))
    assert (one.metric, one.value, one.value_by_chance) == ("logit_diff", 2.0, 0.0)
    assert one.whole_sentence() == "right in 1.00 of 10 prompts (chance 0.5); logit_diff 2 (by chance 0)"
    task = task_of([])
    by_chance = {name: float(of_equal_logits(name, task, 8)[0]) for name in ("prob", "loss_nats", "rank", "accuracy")}
    assert_allclose(list(by_chance.values()), [1 / 8, np.log(8), 7 / 2, 1 / 8])
    assert_allclose(of_equal_logits("prob_diff", task_of([2, 3]), 8), -1 / 8)
    assert of_equal_logits("kl", task, 8).isnan().all()


def test_ranks_by_chance_are_those_of_random_orders():
    task = replace(task_of([]), answers=torch.tensor([[1, 4]] * 10))
    random = torch.rand(20_000, 8, generator=torch.Generator().manual_seed(0))
    many = task.select([0] * len(random))
    assert_allclose(rank(random, many).mean(), of_equal_logits("rank", task, 8)[0], rtol=0.02)
    assert_allclose(accuracy(random, many).mean(), of_equal_logits("accuracy", task, 8)[0], rtol=0.03)


def test_a_case_gives_it_without_a_pass_of_its_own(monkeypatch):
    model = interp.load("zoo:default")
    task = interp.task("ioi", model, n=8)
    case = Case.of(model, task)
    assert case.clean.shape == (8,)
    monkeypatch.setattr(type(model), "run", lambda *_, **__: pytest.fail("the model was run again"))
    own = Ability.of_case(case)
    monkeypatch.undo()
    assert own == ability(model, task)
    assert Ability.from_dict(json.loads(json.dumps(own.as_dict()))) == own


def test_a_few_words_for_a_finding():
    few, none = Ability.of_counts(1, 1, 0.5), Ability.of_counts(23, 48, 0.5)
    assert none.brief == "the model does this task at chance: .48 of .50"
    assert few.brief == "whether the model does this task cannot be told from 1 prompt"
    assert Ability.of_counts(48, 48, 0.5).brief == ""
    assert Ability.of_right(np.array([1, 0, 1, 1]), 0.25).accuracy == 0.75


def test_equal_logits_prefer_no_answer():
    assert not right(torch.zeros(10, 8), task_of([2])).any()


def test_of_needles_chance_is_that_of_a_token():
    own = needle_ability(np.array([1.0, 1.0, 0.0, 1.0]), interp.load("zoo:planted-induction"))["needles"]
    assert (own.accuracy, own.n, own.chance) == (0.75, 4, 1 / interp.load("zoo:planted-induction").info.d_vocab)
