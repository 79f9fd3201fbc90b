"""fused = naive for every statistic and architecture, and our attention = the model's own."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, SIDES, SPANNING, VARIANTS, WINDOWED, make_call, padding, questions, ragged, tiny
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

from interp.attention import fused, masks, measure, streamed
from interp.batch import Batch

STATISTICS = tuple(questions(Batch.of(torch.zeros(1, 4, dtype=torch.long))))


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny(request.param)


@pytest.fixture(params=SPANNING)
def spanning(request):
    """Tiles and calls are the same whatever the architecture: those that differ in what attention gets are enough."""
    return tiny(request.param)


def assert_methods_agree(model, batch):
    asked, depth = questions(batch), batch.ids.shape[1] * model.info.d_head  # a sum over keys, each score over d_head
    naive = model.attention(batch, asked, method="naive")
    ours = model.attention(batch, asked, method="fused")
    assert naive.layers == ours.layers == (0, 1)
    for name in STATISTICS:
        scale = 1.0 if name.startswith("top") else None  # (probability, key): keys are exact, and larger
        assert_equal_to_rounding(ours[name], naive[name], depth=depth, scale=scale, equal_nan=True, msg=name)


@pytest.mark.parametrize("side", SIDES)
def test_fused_is_naive(model, side):
    assert_methods_agree(model, ragged(70, side))


@pytest.mark.parametrize("side", SIDES)
def test_fused_is_naive_in_small_tiles(spanning, side, monkeypatch):
    monkeypatch.setattr(masks, "BLOCK", 16)
    monkeypatch.setattr(fused, "PAIR_CHUNK", 1000)
    assert_methods_agree(spanning, ragged(50, side))


@pytest.mark.parametrize("side", SIDES)
def test_fused_is_naive_in_tiles_of_a_few_keys(spanning, side, monkeypatch):
    monkeypatch.setattr(masks, "BLOCK", 16)
    monkeypatch.setattr(streamed, "KEYS", 7)
    monkeypatch.setattr(streamed, "TILE", 300)
    assert_methods_agree(spanning, ragged(50, side))


@pytest.mark.parametrize("side", SIDES)
def test_one_more_fused_call_each_is_naive(spanning, side, monkeypatch):
    """What other devices than a CPU do."""
    monkeypatch.setattr(fused, "TILED", frozenset())
    assert_methods_agree(spanning, ragged(50, side))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", WINDOWED)
def test_fused_is_naive_beyond_one_block(name, side):
    assert_methods_agree(tiny(name), ragged(masks.BLOCK + 44, side))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_patterns_are_far_from_uniform(name):
    """What the tests above compare is not trivial: attention is sharp, and some answers are NaN."""
    batch = ragged(70, "left")
    answers = tiny(name).attention(batch, questions(batch))
    uniform = torch.arange(1, 71).log()
    assert (answers["entropy"][:, 0] / uniform)[..., 20:].min() < 0.75
    assert 0 < answers["offset 1"].isnan().double().mean() < 0.6


def eager_logits(model, batch):
    with torch.no_grad():
        module = model.torch_module
        assert module.config._attn_implementation == "eager"
        positions = {"position_ids": batch.positions}
        return module(batch.ids, attention_mask=batch.mask.long(), use_cache=False, **positions).logits


@pytest.mark.parametrize("side", SIDES)
def test_logits_are_the_models_own(model, side):
    batch = ragged(70, side)
    assert_equal_to_rounding(model.run(batch).logits[batch.mask], eager_logits(model, batch)[batch.mask])


ROWS = {name: q for name, q in questions(ragged(70, "unpadded", lengths=(70, 70))).items() if "readout" not in name}
PROBABILITIES = [
    name for name in ROWS if name not in ("distance", "entropy", "mean of entropy") and "received" not in name
]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_probabilities_are_those_of_its_inputs(variant, side):
    real = None if side == "unpadded" else padding(70, (70, 41), side)
    call = make_call(70, **VARIANTS[variant], real=real, dtype=torch.bfloat16)
    asked = {name: ROWS[name] for name in PROBABILITIES}
    output, ours = measure(call, asked, method="fused")
    expected, naive = measure(call.to(torch.float64), asked, method="naive")
    assert output.dtype == torch.bfloat16
    for name in asked:
        got, want = ours[name].double(), naive[name]
        if name.startswith("top"):  # (probability, key): the keys must be the same where probabilities are not tied
            got, want = got[..., 0], want[..., 0]
        assert_close(got, want, atol=2e-3, rtol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")
    rows = call.mask.real()[:, None, :, None].expand_as(expected)
    assert_close(output.double()[rows], expected[rows], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_and_dtype(variant, dtype):
    call = make_call(70, **VARIANTS[variant], dtype=dtype)
    fused_output, _ = measure(call, {}, method="fused")
    naive_output, _ = measure(call, {}, method="naive")
    assert fused_output.dtype == dtype
    assert_equal_to_rounding(fused_output, naive_output, dtype=dtype)
