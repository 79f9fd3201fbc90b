"""First-token sinks: the closed form of uniform attention, for every variant."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from probe_cases import blind, column, variant

import interp
from interp import tasks


def test_uniform_attention_has_the_closed_form_in_every_variant():
    model, n, length = blind(), 4, 32
    found = interp.analyze(model, "sink", n_prompts=n, length=length, seed=1)
    # alpha_k: what a key gets, 1/i of every query i >= k, over the queries that see it
    alpha = np.array([(1 / np.arange(k, length + 1)).sum() / (length - k + 1) for k in range(1, length + 1)])
    assert 0.1 < alpha[0] < 0.2
    for name in ("first_token", "first_token_without_bos"):
        assert_allclose(column(found, name), alpha[0], rtol=1e-5)
        assert_allclose(column(found, name, "null"), alpha[0], rtol=1e-12)
    for epsilon, share in ((0.1, 1), (0.2, 0), (0.3, 0), (0.5, 0)):
        assert_array_equal(column(found, f"rate_{epsilon}"), share)
    assert_allclose(column(found, "strongest_elsewhere"), alpha[1:].max(), rtol=1e-5)
    assert_array_equal(column(found, "strongest_elsewhere", "position"), 1)
    assert not variant(found, "first_token")["label"].any()
    assert (
        column(found, "first_token", "p") > 0.99
    ).all()  # no more over its uniform value than other keys over theirs

    batch = tasks.random_prompts(model, n=n, length=length, bos="default", seed=1)
    for layer in range(model.info.n_layers):
        norms = model.run(batch, capture=[f"L{layer}.v"])[f"L{layer}.v"].norm(dim=-1).double().numpy()
        ratio = (norms[:, 0] / np.sort(norms[:, 1:], axis=1)[:, (length - 2) // 2]).mean(0)
        rows = variant(found, "value_norm_ratio")
        group = model.info.n_heads // model.info.n_kv_heads
        assert_allclose(rows.loc[rows["layer"] == layer, "value"], np.repeat(ratio, group), rtol=1e-5)
