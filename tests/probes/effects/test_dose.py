"""Heads taken away by degrees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny

import interp
from interp.edits import Apply, ablate_heads
from interp.errors import SiteError, TaskError
from probes.effects._dose import dose_response
from probes.heads import ordinals as _ordinals


def test_lists_break_by_degrees_without_the_successor_heads_and_not_without_others():
    model = interp.load("zoo:default")
    classes, _ = _ordinals.find(model)
    asked = _ordinals.lists(model, classes, n=32, bos="default", seed=0)
    found = dose_response(model, ["L2H6", "L2H11"], asked.batch, asked.answers, at_end=True, n_random=3)
    accuracy = found[found["metric"] == "accuracy"].set_index("dose")
    assert accuracy["edited"].to_list() == sorted(accuracy["edited"], reverse=True)
    assert accuracy.loc[0.0, "edited"] > 0.95
    assert accuracy.loc[0.5, "edited"] > accuracy.loc[1.0, "edited"]
    assert accuracy.loc[1.0, "edited"] < 0.5
    assert (accuracy["random_mean"] > 0.9).all()
    loss = found[found["metric"] == "loss_nats"]["edited"].to_numpy()
    assert (np.diff(loss) > 0).all()


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_the_ends_of_the_scale_are_the_model_and_mean_ablation(architecture):
    model, ids = tiny(architecture), torch.arange(60).reshape(6, 10)
    answers = torch.arange(6)
    found = dose_response(model, ["L0H1", "L1H2"], ids, answers, doses=[0.0, 0.5, 1.0], n_random=0).set_index(
        ["dose", "metric"]
    )
    heads = [(0, 1), (1, 2)]
    mean = model.mean(ids)

    def half(layer, head):
        """Half of what it was and half of its mean."""

        def change(z):
            new = z.clone()
            new[:, :, head] = (z[:, :, head] + mean[layer, head]) / 2
            return new

        return Apply(f"L{layer}.z", change)

    cases = {0: [], 0.5: [half(*head) for head in heads], 1: ablate_heads(heads, how="mean", mean=mean)}
    for dose, edits in cases.items():
        logits = model.run(ids, edits=edits).logits[:, -1].float()
        loss = torch.nn.functional.cross_entropy(logits, answers)
        assert_allclose(found.loc[(dose, "loss_nats"), "edited"], float(loss), rtol=1e-4)
    assert found["random_mean"].isna().all()


def test_refusals():
    model, ids, answers = tiny("gpt2"), torch.arange(20).reshape(2, 10), torch.tensor([1, 2])
    with pytest.raises(TaskError, match="go from 0 to 1"):
        dose_response(model, ["L0H1"], ids, answers, doses=[0.0, 2.0])
    with pytest.raises(TaskError, match="one answer for each"):
        dose_response(model, ["L0H1"], ids, answers[:1])
    with pytest.raises(SiteError, match="out of range"):
        dose_response(model, ["L0H11"], ids, answers)
