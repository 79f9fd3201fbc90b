"""Accuracy beside chance, and by how much a model does better than what is left of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import binom

import interp
from interp.measurement.ability import Ability, ability, advantage
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
