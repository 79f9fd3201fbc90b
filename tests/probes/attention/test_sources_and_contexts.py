"""Decay of attention to a source, and contexts read apart: closed forms, Jacobians, masks, and planted heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from probe_cases import blind, column, eager, named, variant
from tiny_models import tiny

import interp
from interp.batch import Batch
from interp.edits import KnockOut
from interp.errors import NotApplicable, TaskError
from interp.tokens.losses import token_losses
from probes.attention._parallel_encoding import blocks
from probes.attention._source_decay import sensitivity, written


def test_uniform_attention_decays_as_n_over_n_plus_t():
    found = interp.analyze(blind(), "source_decay", n_prompts=3, length=12, n_steps=5, n_draws=1)
    rows = found.table[found.table["variant"] == "source_mass"]
    assert_allclose(rows["value"], 12 / (12 + rows["position"].astype(float)), rtol=1e-5)
    assert_allclose(rows["null"], 12 / (12 + rows["position"].astype(float)), rtol=1e-12)
    assert_allclose(column(found, "decay"), 12 / 13 - 12 / 17, rtol=1e-4)
    assert_allclose(column(found, "decay", "null"), 12 / 13 - 12 / 17, rtol=1e-12)
    assert not variant(found, "decay")["label"].any()


def test_a_window_hides_the_source():
    """Mistral's last layer sees 17 tokens: at step t of a source of 12, 17 - t of them or all."""
    found = interp.analyze(blind("mistral"), "source_decay", n_prompts=3, length=12, n_steps=8, n_draws=1)
    rows = found.table[found.table["variant"] == "source_mass"].astype({"position": float})
    t = rows["position"].to_numpy()
    assert_allclose(rows["null"], np.minimum(12, np.maximum(17 - t, 0)) / np.minimum(17, 12 + t), rtol=1e-12)
    assert_allclose(rows["value"], rows["null"], rtol=1e-5)


def test_masses_are_those_of_dense_patterns_of_what_is_written_or_given(prompts):
    model = tiny("llama")
    found = interp.analyze(model, "source_decay", prompts=prompts, n_source=30, n_steps=4, n_draws=1)
    pattern = eager(model, Batch.of(prompts))  # layer prompt head query key
    for t in range(1, 5):
        rows = found.table[(found.table["variant"] == "source_mass") & (found.table["position"] == t)]
        assert_allclose(rows["value"], pattern[..., 29 + t, :30].sum(-1).mean(1).ravel(), rtol=1e-4)
    fall = (pattern[..., 30, :30].sum(-1) - pattern[..., 33, :30].sum(-1)).mean(1).ravel()
    assert_allclose(column(found, "decay"), fall, rtol=1e-3, atol=1e-6)
    text = written(model, Batch.of([prompts[0, :20].tolist(), prompts[1, :15].tolist()]), 3)
    assert text.mask.sum(1).tolist() == [23, 18]
    for row, n in ((0, 20), (1, 15)):
        for step in range(3):
            logits = model.run(text.ids[row : row + 1, : n + step]).logits
            assert int(logits[0, -1].argmax()) == int(text.ids[row, n + step])


def test_sensitivity_is_the_norm_of_the_jacobian(prompts):
    model, text = tiny("gpt2"), Batch.of(prompts[:1, :10])
    source, columns = torch.arange(10)[None] < 8, torch.tensor([[8, 9]])
    found = sensitivity(model, text, source, columns, n_draws=150, seed=0)
    run = model.run(text, capture=["L0.resid_pre", "L1.resid_post"], gradients=True)
    x, out = run["L0.resid_pre"], run["L1.resid_post"]
    for i, column_ in enumerate((8, 9)):
        jacobian = [torch.autograd.grad(o, x, retain_graph=True)[0][0, :8] for o in out[0, column_]]
        exact = torch.stack(jacobian).double().square().sum().sqrt() / 8**0.5
        assert found[0, i] == pytest.approx(float(exact), rel=0.1)


def test_a_head_that_loses_the_source(planted):
    """The previous-token head sees the source at the first step alone; one that rests on `<bos>` keeps it."""
    made, model = planted
    ids = torch.cat([torch.zeros(12, 1).long(), made.vocab.draw(12, 20, generator=torch.Generator().manual_seed(0))], 1)
    rows = variant(interp.analyze(model, "source_decay", prompts=ids, n_source=12, n_steps=6, n_draws=1), "decay")
    assert list(rows.index[rows["label"].astype(bool)]) == named(made, "previous_token")
    assert rows["value"][named(made, "previous_token")[0]] > 0.95
    assert abs(rows["value"][named(made, "sink")[0]]) < 1e-3


def test_what_is_no_source(prompts):
    with pytest.raises(TaskError, match="give prompts as well"):
        interp.analyze(tiny("llama"), "source_decay", n_source=9)
    with pytest.raises(TaskError, match="a source of 39 tokens with 1 behind"):
        interp.analyze(tiny("llama"), "source_decay", prompts=prompts, n_source=39)


def test_blocks_are_apart_and_what_asks_sees_all():
    apart = blocks(9, 2, 2, 1, shared=True)
    assert not apart[:, 0].any()
    assert not apart[7:].any()
    assert_array_equal(apart[4, 1:7].numpy(), [True, True, True, False, False, False])
    assert_array_equal(apart[2, 1:7].numpy(), [False, False, False, True, True, True])
    alone = blocks(9, 2, 2, 1, shared=False)
    assert_array_equal((alone & ~apart).nonzero()[:, 1].unique().numpy(), [0])
    assert_array_equal(alone[:, 0].nonzero()[:, 0].numpy(), range(1, 7))


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_entropy_and_loss_are_those_of_dense_rows_under_the_mask(name, prompts):
    model = tiny(name)
    found = interp.analyze(model, "parallel_encoding", prompts=prompts[:3], n_blocks=(3,), n_ask=6, sinks=1)
    batch = Batch.of(prompts[:3])
    hidden = blocks(40, 3, 6, 1, shared=False).expand(3, -1, -1)
    edits = [KnockOut(f"L{i}.pattern", pairs=hidden, renormalise=True) for i in range(2)]
    run = model.run(batch, capture=["pattern"], edits=edits)
    loss = token_losses(run.logits, batch.ids, batch.mask)[:, 34:].mean(1)
    rows = found.table[found.table["variant"] == "loss"].set_index("position")
    assert rows["value"][3] == pytest.approx(float(loss.mean()), rel=1e-5)
    plain = token_losses(model.run(batch).logits, batch.ids, batch.mask)[:, 34:].mean()
    assert rows["value"][1] == rows["null"][3] == pytest.approx(float(plain), rel=1e-5)
    entropy = found.table[found.table["variant"] == "entropy"]
    for layer in range(2):
        p = run[f"L{layer}.pattern"][:, :, 34:].double().numpy()
        nats = -(p * np.log(np.maximum(p, 1e-30))).sum(-1)
        seen = np.arange(35, 41)
        if name == "gpt_oss":
            slot = np.maximum(1 - p.sum(-1), 1e-30)
            nats, seen = nats - slot * np.log(slot), np.minimum(seen, model.info.windows[layer] or 99) + 1
        own = entropy[(entropy["layer"] == layer) & (entropy["position"] == 3)]["value"]
        assert_allclose(own, (nats / np.log(seen)).mean((0, 2)), rtol=1e-4)


def test_uniform_rows_have_no_more_to_spread():
    found = interp.analyze(blind(), "parallel_encoding", n_prompts=3, length=48, n_blocks=(2, 4))
    assert_allclose(column(found, "entropy"), 1, rtol=1e-5)
    assert_allclose(column(found, "rise"), 0, atol=1e-5)
    assert not variant(found, "rise")["label"].any()


def test_the_induction_head_scatters_and_the_loss_goes_along(planted):
    """A pair that a block's edge cuts is not found again: its first was not seen by the head that marks the second."""
    made, model = planted
    found = interp.analyze(model, "parallel_encoding", n_prompts=12, n_blocks=(2, 4, 8))
    rows, (head,) = variant(found, "rise"), named(made, "induction")
    assert list(rows.index[rows["label"].astype(bool)]) == [head]
    assert variant(found, "rise_with_sinks")["value"][head] < rows["value"][head]
    assert variant(found, "correlation")["value"][head] > 0.7
    loss = found.table[found.table["variant"] == "loss"]["value"].to_numpy()
    assert (np.diff(loss) > 0.05).all()
    with_sinks = found.table[found.table["variant"] == "loss_with_sinks"]["value"].to_numpy()
    assert (with_sinks[1:] < loss[1:]).all()


def test_contexts_that_cannot_be_cut(prompts):
    with pytest.raises(NotApplicable, match="cannot be cut into"):
        interp.analyze(tiny("llama"), "parallel_encoding", prompts=prompts, n_blocks=(30,))
    ragged = [prompts[0].tolist(), prompts[1, :30].tolist(), prompts[2].tolist()]
    with pytest.raises(TaskError, match="several lengths"):
        interp.analyze(tiny("llama"), "parallel_encoding", prompts=ragged)
