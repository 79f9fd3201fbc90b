"""A task as tensors: what is put side by side, its roles, and metrics of it by hand."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import interp
from interp.errors import TaskError
from interp.tasks import metrics
from interp.tasks.prompt import collate


def small_task():
    return collate(
        "small",
        [([1, 2, 3], [1, 4, 3]), ([5, 6], [5, 7])],
        answers=[[0, 1], [2]],
        wrong=[[2], [3, 4]],
        roles=[{"A": 1}, {}],
        templates=["long", "short"],
        corruption="c",
        metric="logit_diff",
    )


def test_metrics_by_hand():
    task = small_task()
    logits = torch.zeros(2, 3, 5)
    logits[0, 2], logits[1, 1] = torch.tensor([1.0, 2, 4, 0, 0]), torch.tensor([0.0, 0, 3, 1, 2])
    p = torch.stack([logits[0, 2], logits[1, 1]]).softmax(-1)
    values = {
        "logit_diff": [1.5 - 4, 3 - 1.5],
        "logit_margin": [1.5 - 4, 3 - 2.0],
        "prob": [p[0, :2].sum(), p[1, 2]],
        "prob_diff": [p[0, :2].sum() - p[0, 2], p[1, 2] - p[1, 3:].sum()],
        "loss_nats": [-p[0, :2].sum().log(), -p[1, 2].log()],
        "rank": [1.0, 0.0],
        "accuracy": [0.0, 1.0],
    }
    for name, expected in values.items():
        assert_close(metrics.by_name(name)(logits, task), torch.tensor(expected))
    assert_close(task.value(logits), torch.tensor(values["logit_diff"]))
    assert_close(metrics.kl(logits, task, reference=logits), torch.zeros(2))
    flat = torch.full((5,), 0.2)  # what is expected is the reference's
    assert_close(metrics.kl(logits, task, reference=0 * logits), (flat * (flat / p).log()).sum(-1))
    assert_close(metrics.kl(0 * logits, task, reference=logits), (p * (p / flat).log()).sum(-1))
    with pytest.raises(TaskError, match="did you mean 'logit_diff'"):
        metrics.by_name("logit_dif")


@cache
def years():
    """A task with several answers of each kind, and the size of its vocabulary."""
    model = interp.load("zoo:default")
    return interp.task("greater_than", model, n=6), model.info.d_vocab


@settings(max_examples=20)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_metrics_do_not_depend_on_the_batch(order, size):
    task, d_vocab = years()
    logits = torch.randn(6, d_vocab, generator=torch.Generator().manual_seed(0), requires_grad=True)
    chosen = torch.tensor(order[:size])
    part = task.select(chosen)
    assert part.clean.mask.any(0).all()
    for name in ("logit_diff", "logit_margin", "prob_diff", "prob", "loss_nats"):
        whole = metrics.by_name(name)(logits, task)
        assert_close(metrics.by_name(name)(logits[chosen], part), whole[chosen])
        (gradient,) = torch.autograd.grad(whole.sum(), logits, retain_graph=True)
        assert gradient.abs().sum(1).gt(0).all()


def test_tasks_that_do_not_stand_side_by_side_are_refused():
    with pytest.raises(TaskError, match="3 tokens has a corrupt one of 2"):
        collate("x", [([1, 2, 3], [1, 2])], answers=[[1]], wrong=[[2]], roles=[{}], templates=["t"])
    with pytest.raises(TaskError, match="role 'A' stands at 3, outside 2"):
        collate("x", [([1, 2], [1, 3])], answers=[[1]], wrong=[[2]], roles=[{"A": 3}], templates=["t"])
    with pytest.raises(TaskError, match="has no role 'B'"):
        small_task().role("B")
