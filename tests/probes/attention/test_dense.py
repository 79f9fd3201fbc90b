"""Attention as science agrees with the model's own dense patterns, padded or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import LENGTH, column, eager, variant
from tiny_models import MOST, WINDOWED, build, ragged, tiny
from tolerance import assert_equal_to_rounding

import interp
from interp.measurement.prompts import T0, visible_keys
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import FirstTokenSink, Induction
from probes.effects._undifferentiated import uniform_outputs
from probes.relevance import divergence_map, flow, gradient_relevance, rollout
from probes.relevance._divergence import jensen_shannon
from probes.relevance._flow import max_flows, rolled_out


@pytest.fixture(params=MOST)
def model(request):
    return tiny(request.param)


def slotted(pattern):
    return np.concatenate([pattern, np.maximum(1 - pattern.sum(-1, keepdims=True), 0)], -1)


def test_entropy_and_offsets_are_those_of_dense_patterns(model, prompts):
    batch = model.batch(prompts)
    pattern = eager(model, batch)
    full = slotted(pattern)
    nats = -np.where(full > 0, full * np.log(np.maximum(full, 1e-300)), 0).sum(-1)[..., T0:].mean((1, 3))
    found = interp.analyze(model, "entropy", prompts=prompts)
    assert_allclose(column(found, "nats"), nats.ravel(), atol=2e-4)
    outcomes = visible_keys(model, batch)[:, :, None, T0:] + model.info.sink_logits
    by_row = -np.where(full > 0, full * np.log(np.maximum(full, 1e-300)), 0).sum(-1)[..., T0:] / np.log(outcomes)
    assert_allclose(column(found, "normalised"), by_row.mean((1, 3)).ravel(), atol=1e-4)
    assert_allclose(column(found, "focus"), 1 - column(found, "normalised"), atol=1e-12)

    profile = interp.analyze(model, "offset_profile", prompts=prompts, furthest=6)
    for d in range(7):
        dense = np.stack([pattern[..., i, i - d] for i in range(6, LENGTH)], -1).mean((1, 3))
        rows = variant(profile, "profile")
        assert_allclose(rows[rows["position"] == d]["value"], dense.ravel(), atol=1e-4)


def test_focus_without_the_first_token_is_that_of_the_row_without_it(model, prompts):
    full = slotted(eager(model, model.batch(prompts)))[..., T0:, :]
    seen = visible_keys(model, model.batch(prompts))[:, :, None, T0:]
    first_seen = seen >= np.arange(T0 + 1, LENGTH + 1)
    rest = full[..., 1:] / full[..., 1:].sum(-1, keepdims=True)
    nats = -np.where(rest > 0, rest * np.log(np.maximum(rest, 1e-300)), 0).sum(-1)
    expected = 1 - nats / np.log(seen + model.info.sink_logits - first_seen)
    found = interp.analyze(model, "entropy", prompts=prompts)
    assert_allclose(column(found, "focus_without_first"), expected.mean((1, 3)).ravel(), atol=2e-3)


def test_divergences_are_those_of_dense_patterns(model, prompts):
    found = divergence_map(model, prompts=prompts, n_rows=5, seed=3)
    rows = found.data["rows"]
    pattern = slotted(eager(model, model.batch(prompts)))[..., rows, :].transpose(1, 0, 2, 3, 4)
    pattern = pattern.reshape(len(prompts), -1, len(rows), LENGTH + 1)
    assert_allclose(found.value, np.mean([jensen_shannon(p, p) for p in pattern], 0), atol=1e-4)
    nulls = [jensen_shannon(p, q) for p, q in zip(pattern, np.roll(pattern, -1, 0), strict=True)]
    assert_allclose(found.null, (np.mean(nulls, 0) + np.mean(nulls, 0).T) / 2, atol=1e-4)
    assert_equal_to_rounding(np.diag(found.value), 0, scale=np.log(LENGTH))  # a difference of entropies


def test_rollout_and_flow_are_those_of_dense_patterns(model, prompts):
    batch = model.batch(prompts[:2])
    pattern = eager(model, batch).mean(2)
    mixed = 0.5 * pattern / pattern.sum(-1, keepdims=True) + 0.5 * np.eye(LENGTH)
    rolled, flowed = (f(model, batch, rows=[-1, 20]) for f in (rollout, flow))
    for prompt in range(2):
        product = rolled_out(mixed[:, prompt])
        assert_allclose(np.nan_to_num(rolled.value[prompt]), product[[-1, 20]], atol=1e-4)
        assert_allclose(np.nan_to_num(flowed.value[prompt, 1]), max_flows(mixed[:, prompt], 20), atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "mistral"])
def test_gradient_relevance_is_that_of_dense_patterns(architecture, prompts):
    """Patterns and their gradients by autograd through transformers' own eager attention, in float64."""
    model = interp.load(build(architecture).double())
    batch = model.batch(prompts[:2])
    found = gradient_relevance(model, batch, rows=[-1, 20])
    expected = np.zeros((2, 2, LENGTH))
    for r, row in enumerate((LENGTH - 1, 20)):
        run = model.torch_module(batch.ids, output_attentions=True, use_cache=False)
        at_row = run.logits[:, row].log_softmax(-1)
        slopes = torch.autograd.grad(at_row.max(-1).values.sum(), run.attentions)
        for prompt in range(2):
            relevance = torch.eye(LENGTH, dtype=torch.float64)
            for pattern, slope in zip(run.attentions, slopes, strict=True):
                relevance = relevance + (pattern * slope)[prompt].relu().mean(0) @ relevance
            expected[prompt, r] = relevance[row].detach().numpy()
    assert_allclose(np.nan_to_num(found.value), expected, atol=1e-6)


def test_gradient_relevance_finds_what_is_copied_and_not_the_sink():
    made = factory.plant([Induction(), FirstTokenSink()], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    task = made.task("induction", seed=0, n=6)
    found = gradient_relevance(model, task.tokens, answers=task.answers[:, None])
    value = found.value[:, 0, :-1]
    copied = [int((row[:-1] == answer).nonzero()[0, 0]) for row, answer in zip(task.tokens, task.answers, strict=True)]
    assert value.argmax(-1).tolist() == copied
    assert (value[:, 0] < 0.1 * value.max(-1)).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", *WINDOWED])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(architecture, side):
    model = tiny(architecture)
    batch = ragged(40, side, lengths=(40, 31, 23))
    own = [batch.ids[i][batch.mask[i]] for i in range(3)]
    focus = interp.analyze(model, "entropy", prompts=batch)
    alone = [interp.analyze(model, "entropy", prompts=row.expand(3, -1)) for row in own]
    assert_allclose(column(focus, "nats"), np.mean([column(a, "nats") for a in alone], 0), atol=1e-4)
    for method in (rollout, flow):
        found = method(model, batch, rows=[-1])
        for i, row in enumerate(own):
            single = method(model, row, rows=[-1])
            assert_allclose(found.value[i, 0][batch.mask[i]], single.value[0, 0], atol=1e-4)
            assert_equal_to_rounding(found.null[i, 0][batch.mask[i]], single.null[0, 0])


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_head_made_uniform_writes_the_mean_of_what_it_may_see(architecture):
    batch = ragged(30, "left", lengths=(30, 25))
    values = torch.randn(2, 30, 2, 4)
    for window in (None, 7):
        found = uniform_outputs(values, batch.mask, window)
        for row, first in enumerate((0, 5)):
            for i in range(first, 30):
                low = first if window is None else max(first, i - window + 1)
                torch.testing.assert_close(found[row, i], values[row, low : i + 1].mean(0), atol=1e-5, rtol=1e-5)
