"""Attribution at every position, layer and direction, and accumulated: against sums written out in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from tiny_models import D_MODEL, N_LAYERS, ragged, tiny
from torch.testing import assert_close

from interp.decompose import attribute, decompose, read_out
from interp.errors import SiteError, TaskError

CLOSE = {"atol": 2e-4, "rtol": 2e-4}
NAMES = ("gpt2", "gpt_neox", "gemma2")


@pytest.mark.parametrize("side", ["right", "left"])
def test_at_every_position_it_is_the_attribution_of_that_position(side):
    model, batch = tiny("gpt2"), ragged(6, side, lengths=(6, 4))
    whole = attribute(model, batch, [5, 9], 7, position=None)
    assert whole.values.shape == (len(whole.terms), 2, 6)
    assert torch.equal(whole.mask, batch.mask)
    for position in (0, 3):
        at = attribute(model, batch, [5, 9], 7, position=position)
        for b in range(2):
            column = int(batch.mask[b].nonzero()[position])
            assert_close(whole.values[:, b, column], at.values[:, b], **CLOSE)
            assert whole.positions[b, column] == at.positions[b] == position
    assert whole.values[:, ~batch.mask].isnan().all()
    table = whole.table()
    assert len(table) == len(whole.terms) * 10
    assert table.groupby(["prompt", "position"])["value"].sum().tolist() == pytest.approx(
        [float(whole.logit[b][batch.mask[b]][i]) for b, n in ((0, 6), (1, 4)) for i in range(n)], abs=1e-3
    )
    assert_close(whole.heads[..., -1][..., 0], attribute(model, batch, [5, 9], 7).heads[..., 0], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_without_an_answer_it_is_the_logit_of_the_token_that_comes_next(name):
    model, batch = tiny(name), ragged(6, "right", lengths=(6, 4))
    found, logits = attribute(model, batch, position=None), model.run(batch).logits
    for b, n in ((0, 6), (1, 4)):
        assert found.mask[b].tolist() == [i < n - 1 for i in range(6)]
        for i in range(n - 1):
            assert_close(found.capped[b, i], logits[b, i, batch.ids[b, i + 1]], **CLOSE)
            assert_close(found.values[:, b, i].sum(), found.logit[b, i], **CLOSE)
    assert torch.equal(found["L1H3"][:, 0], found.heads[1, 3][:, 0])
    early = attribute(model, batch, position=1)
    assert_close(early.values, found.values[:, :, 1], **CLOSE)
    with pytest.raises(TaskError, match="no token comes next"):
        attribute(model, batch)


@pytest.mark.parametrize("name", NAMES)
def test_at_a_layer_it_sums_to_the_read_out_of_its_stream(name):
    model, batch = tiny(name), ragged(6, "unpadded", lengths=(6, 6))
    resid = model.run(batch, capture=["L0.resid_post"])["L0.resid_post"][:, -1]
    found, logits = attribute(model, batch, 5, 9, layer=0), read_out(model, resid)
    assert {c.layer for c in found.terms} == {None, 0}
    assert_close(found.capped, logits[:, 5] - logits[:, 9], **CLOSE)
    if name != "gemma2":
        assert_close(found.values.sum(0), found.capped, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_along_a_direction_it_is_the_dot_product_of_what_was_written(name):
    model, batch = tiny(name), ragged(6, "unpadded", lengths=(6, 6))
    d = torch.randn(D_MODEL)
    for layer in (0, None):
        found, parts = (
            attribute(model, batch, direction=d, layer=layer, position=None),
            decompose(model, batch, layer=layer, position=None),
        )
        assert [c.name for c in found.terms] == list(parts.names)
        assert_close(found.values, parts.vectors @ d, atol=1e-3, rtol=1e-3)
        assert_close(found.logit, parts.residual @ d, atol=1e-3, rtol=1e-3)
        assert found.table()["unit"].unique().tolist() == ["stream"]
    own = torch.stack([d, 2 * d])
    at = attribute(model, batch, direction=own, neurons=[0] if name == "gpt2" else [])
    assert_close(at.logit, (parts.residual[:, -1] * own).sum(-1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_accumulated_is_the_stream_at_each_place_through_the_frozen_norm(name):
    """As the course does it: the places of the stream over the last divisor, by the difference of two columns."""
    model, batch = tiny(name), ragged(6, "unpadded", lengths=(6, 6))
    found, weights = attribute(model, batch, 5, 9), model.weights()
    norm, w = weights.final_norm, weights.w_u[:, 5] - weights.w_u[:, 9]
    run = model.run(batch, capture=["resid_pre", "attn_out", "resid_post"])
    last = run[f"L{N_LAYERS - 1}.resid_post"][:, -1]
    bias = norm.bias @ w + (weights.b_u[5] - weights.b_u[9])
    sites = {"L0.resid_pre": run["L0.resid_pre"][:, -1]}
    for layer in range(N_LAYERS):
        sites[f"L{layer}.resid_mid"] = (run[f"L{layer}.resid_pre"] + run[f"L{layer}.attn_out"])[:, -1]
        sites[f"L{layer}.resid_post"] = run[f"L{layer}.resid_post"][:, -1]
    table = found.accumulated()
    assert list(dict.fromkeys(table["site"])) == list(sites)
    for site, x in sites.items():
        want = norm.linear(x) / norm.divisor(last) @ w + bias
        assert_close(torch.tensor(table[table["site"] == site]["value"].to_list()), want, **CLOSE)
    assert_close(torch.tensor(table["value"].to_list()[-2:]), found.logit, **CLOSE)


def test_a_stream_of_any_leading_shape_is_read_out():
    model, batch = tiny("gpt2"), ragged(6, "unpadded", lengths=(6, 6))
    run = model.run(batch, capture=[f"L{N_LAYERS - 1}.resid_post"])
    resid = run[f"L{N_LAYERS - 1}.resid_post"]
    assert_close(read_out(model, resid[0, -1]), run.logits[0, -1], **CLOSE)
    assert_close(read_out(model, resid[None, :, None]), run.logits[None, :, None], **CLOSE)
    for bad in (resid[:0], torch.tensor(1.0), [0.0] * D_MODEL):
        with pytest.raises(SiteError, match="residual stream is 64"):
            read_out(model, bad)


def test_questions_that_are_none_are_refused():
    model, batch = tiny("gpt2"), ragged(6, "unpadded", lengths=(6, 6))
    with pytest.raises(TaskError, match="leave one of them out"):
        attribute(model, batch, 5, direction=torch.zeros(D_MODEL))
    with pytest.raises(SiteError, match=r"direction: expected a tensor \[64\] or \[2 64\]"):
        attribute(model, batch, direction=torch.zeros(3))
