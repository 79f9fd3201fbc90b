"""A lens that is fitted is nearer to the model than the plain one where a map can be, and its rows are plain KLs."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny
from torch.testing import assert_close

import interp
from interp.batch import Batch
from interp.decompose import read_out
from interp.edits import Ablate, Add, Replace
from interp.errors import SchemaError, SiteError, TaskError
from interp.lenses import jacobian_lens, tuned_lens
from interp.lenses._tuned import _descend, _loss, _start
from interp.lenses.lens import halves, streams

PASSIVE = [Ablate("L1.attn_out"), Ablate("L1.mlp_out")]
"""The last layer adds nothing, so that its stream is the first one's."""


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 64, (16, 7), generator=torch.Generator().manual_seed(0))


def test_a_shift_that_the_last_layer_adds_is_learned(ids):
    model, shift = tiny("llama"), 3 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    lens = tuned_lens(model, ids, edits=[*PASSIVE, Add("L1.resid_post", shift)], steps=20)
    tuned, plain = lens.rows.to_dict("records")
    assert (tuned["variant"], plain["variant"]) == ("tuned", "plain")
    assert tuned["value"] < 0.02 * plain["value"]
    assert tuned["value"] < 0.2 * tuned["null"]
    assert tuned["q"] < 1e-3
    assert tuned["ci_low"] <= tuned["value"] <= tuned["ci_high"]
    assert_close(lens(0, torch.zeros(64)), shift, atol=0.3, rtol=0.1)
    assert len(lens.plot().data) == 3


def test_training_comes_nearer_from_the_identity_and_least_squares_is_a_better_start(ids):
    model = tiny("gpt2")
    x = streams(model, model.batch(ids), [0], torch.ones_like(ids, dtype=torch.bool), 8)
    start = torch.eye(64)[None], torch.zeros(1, 64)
    with model.frozen():
        trained = _descend(model, x, *start, 20, 1e-2, 32, seed=0)
        losses = [float(_loss(model, x, *maps, gradients=False)) for maps in (start, trained, _start(model, x))]
    assert losses[1] < 0.5 * losses[0]
    assert losses[2] < 0.2 * losses[0]
    assert losses[0] == pytest.approx(float(interp.logit_lens(model, ids).kl[0].mean()), rel=1e-4)


def test_rows_are_divergences_of_the_prompts_held_out(ids):
    model = tiny("gemma2")
    rows = [row[: 5 + i % 3].tolist() for i, row in enumerate(ids)]
    lens = tuned_lens(model, rows, steps=2, seed=4)
    train, test = halves(model, rows, 0.25, seed=4)
    for translate, value in zip((lens, None), lens.rows["value"], strict=True):
        kl = interp.logit_lens(model, test, translate=translate).kl[0]
        expected = [float(kl[b][test.mask[b]].mean()) for b in range(4)]
        assert value == pytest.approx(np.mean(expected), rel=1e-4)
    p = model.run(train).logits.float().softmax(-1)[train.mask].mean(0)
    final = model.run(test).logits.float().log_softmax(-1)
    kl = (final.exp() * (final - p.log())).sum(-1)
    assert lens.rows["null"].iloc[0] == pytest.approx(
        np.mean([float(kl[b][test.mask[b]].mean()) for b in range(4)]), rel=1e-4
    )
    assert lens.read(model, test).table().shape == interp.logit_lens(model, test).table().shape
    assert lens.provenance["data"]["n_held_out"] == 4
    assert_close(lens(1, torch.ones(64)), torch.ones(64))  # the last layer's stream is what it translates to


@pytest.mark.parametrize(("skip", "final"), [(0, True), (1, False)])
def test_jacobians_are_autograd_s_summed_over_targets_and_averaged_over_sources(ids, skip, final):
    model = tiny("gpt2")
    rows = [ids[0].tolist(), ids[1, :5].tolist(), *ids[2:5].tolist()]
    lens = jacobian_lens(model, rows, skip=skip, final=final, held_out=0.6, seed=1)
    train, _ = halves(model, rows, 0.6, seed=1)
    means = []
    for row, mask in zip(train.ids, train.mask, strict=True):
        own = Batch.of([row[mask].tolist()])

        def last(x, own=own):
            edit = Replace("L0.resid_post", x)
            return model.run(own, edits=[edit], capture=["L1.resid_post"], gradients=True)["L1.resid_post"].sum(0)

        with model.frozen():
            full = torch.autograd.functional.jacobian(last, model.run(own, capture=["L0.resid_post"])["L0.resid_post"])
        places = range(skip, int(mask.sum()) - (not final))  # pos d_out 1 pos d_in
        means.append(sum(full[t, :, 0, s] for s in places for t in places) / len(places))
    assert_close(lens.matrices[0], torch.stack(means).mean(0), atol=1e-5, rtol=1e-4)
    assert not lens.offsets.any()


def test_where_nothing_follows_the_jacobian_is_the_identity(ids):
    lens = jacobian_lens(tiny("llama"), ids[:6], held_out=0.5, edits=PASSIVE)
    assert_close(lens.matrices[0], torch.eye(64), atol=1e-5, rtol=0)
    assert_allclose(lens.rows["value"], 0, atol=1e-5)
    assert list(lens.rows["variant"]) == ["jacobian", "plain"]


def test_gradients_reach_what_is_read_out():
    model, x = tiny("llama"), torch.randn(2, 64)
    step = 1e-2 * torch.randn(2, 64)
    with model.frozen():
        x.requires_grad_()
        read_out(model, x, gradients=True)[:, 5].sum().backward()
        ahead, back = (read_out(model, (x + s).detach())[:, 5].sum() for s in (step, -step))
    assert (x.grad * step).sum() == pytest.approx(float(ahead - back) / 2, rel=1e-2)
    assert not read_out(model, x).requires_grad


def test_refusals(ids):
    model = tiny("gpt2")
    with pytest.raises(SiteError, match="layers 0 to 0"):
        tuned_lens(model, ids, layers=[1])
    with pytest.raises(TaskError, match="held out"):
        jacobian_lens(model, ids[:3])
    with pytest.raises(SchemaError, match="between 0 and 1"):
        tuned_lens(model, ids, held_out=1.0)
    with pytest.raises(TaskError, match="no position that counts"):
        jacobian_lens(model, ids, skip=9)
    with pytest.raises(SiteError, match="maps of layers"):
        tuned_lens(model, ids, steps=0)(5, torch.ones(64))
