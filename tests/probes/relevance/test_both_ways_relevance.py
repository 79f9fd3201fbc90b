"""Relevance where queries see later tokens too: nothing of a prompt is out of reach, and nulls are of both sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import encoder

import interp
from interp.batch import Batch
from probes.relevance import flow, gradient_relevance, occlusion, rollout

PROMPTS = Batch.of([[5, 9, 12, 7, 30, 2], [8, 4, 6, 3]], side="left")


@pytest.mark.parametrize("method", [rollout, flow])
def test_uniform_attention_is_its_own_null(method):
    relevance = method(interp.load(encoder(uniform=True)), PROMPTS, rows=[1, -1])
    assert np.array_equal(
        np.isfinite(relevance.value), np.broadcast_to(PROMPTS.mask[:, None].numpy(), relevance.value.shape)
    )
    real = np.isfinite(relevance.value)
    np.testing.assert_allclose(relevance.value[real], relevance.null[real], atol=2e-6)
    np.testing.assert_allclose(np.nansum(relevance.value, -1), 1.0, atol=1e-5)


@pytest.mark.parametrize("method", [gradient_relevance, occlusion])
def test_later_tokens_are_within_reach(method):
    relevance = method(interp.load(encoder()), PROMPTS, rows=[0])
    assert np.isfinite(relevance.value[PROMPTS.mask[:, None].numpy()]).all()
    later = relevance.value[0, 0, 1:]
    assert (np.abs(later) > 0).any()


def test_rollout_is_the_product_of_patterns():
    model = interp.load(encoder())
    patterns = model.run(PROMPTS, capture=["pattern"]).stack("pattern")[:, 0].mean(1).double()
    product = torch.eye(6, dtype=torch.float64)
    for layer in patterns:
        product = (0.5 * layer + 0.5 * torch.eye(6)) @ product
    relevance = rollout(model, PROMPTS, rows=[2])
    np.testing.assert_allclose(relevance.value[0, 0], product[2].numpy(), atol=1e-5)
