"""Attention in which queries see later keys: whatever the predicate, both methods agree; such models come in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import SIDES, encoder, make_call, padding, questions, ragged
from tolerance import assert_equal_to_rounding

import interp
from interp.attention import Call, CausalMask, Entropy, Offset, measure
from interp.attention.masks import everything
from interp.batch import Batch
from interp.errors import BackendError, NotApplicable, TaskError
from interp.measurement.checks import check_backend
from interp.measurement.prompts import visible_keys

LATER = {
    "all": everything,
    "one more": lambda b, h, q, k: k <= q + 1,
    "a prefix": lambda b, h, q, k: (k <= q) | (k < 30),
    "fewer and fewer": lambda b, h, q, k: (k <= 300 - q) | (k == q),
    "with holes": lambda b, h, q, k: (k - q) % 3 != 1,
    "in the middle": lambda b, h, q, k: (k <= q + 90) & (k <= 310 - q) | (q == k),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", LATER)
def test_methods_agree_whatever_is_seen(name, side):
    n = 300  # more than one tile
    real = None if side == "unpadded" else padding(n, (n, 270), side)
    call = make_call(n, real=real)
    mask = CausalMask(2, n, n, predicate=LATER[name], padding=real)
    call = Call(call.query, call.key, call.value, call.scale, mask)
    asked = questions(ragged(n, side, lengths=(n, n if side == "unpadded" else 270)))
    (z, fused), (expected, naive) = (measure(call, asked, method=method) for method in ("fused", "naive"))
    rows = mask.real()[:, None, :, None].expand_as(z)
    assert_equal_to_rounding(z[rows], expected[rows], depth=n)
    for question, value in naive.items():
        if not question.startswith("top"):
            assert_equal_to_rounding(fused[question], value, depth=8 * n, equal_nan=True, msg=question)


@pytest.mark.parametrize("side", SIDES)
def test_an_encoder_gives_its_own_logits_and_patterns(side):
    module = encoder()
    model, batch = interp.load(module), ragged(12, side, lengths=(12, 12) if side == "unpadded" else (12, 7))
    assert not model.info.causal
    with torch.no_grad():
        own = module(batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, output_attentions=True)
    run = model.run(batch, capture=["pattern"])
    assert_equal_to_rounding(run.logits[batch.mask], own.logits[batch.mask], depth=64)
    for layer, pattern in enumerate(own.attentions):
        ours, theirs = (x.transpose(1, 2)[batch.mask] for x in (run[f"L{layer}.pattern"], pattern))
        assert_equal_to_rounding(ours, theirs, depth=64)
    entropy = model.attention(batch, {"H": Entropy()})["H"][1].transpose(1, 2)[batch.mask]
    assert_equal_to_rounding(
        entropy, torch.special.entr(own.attentions[1]).sum(-1).transpose(1, 2)[batch.mask], depth=64
    )


def test_every_query_sees_the_whole_prompt():
    batch = Batch.of([[5] * 7, [5] * 4])
    keys = visible_keys(interp.load(encoder()), batch)
    assert keys.shape == (2, 2, 7)
    assert set(keys[:, 0].flat) == {7.0}
    assert set(keys[:, 1].flat) == {4.0}


def test_analyses_that_presume_causality_say_so():
    model = interp.load(encoder())
    for name in ("induction", "echo_induction"):
        with pytest.raises(NotApplicable, match=f"'{name}' presumes causal attention"):
            interp.analyze(model, name)
    result = interp.detect(model)
    assert {"entropy", "previous_token", "sink", "duplicate_token"} <= set(result.table["analysis"])
    assert "presumes causal attention" in result.provenance["left_out"]["induction"]


def test_entropy_is_held_against_the_keys_of_both_sides():
    table = interp.analyze(interp.load(encoder(uniform=True)), "entropy", n_prompts=4, length=20).table
    assert table[table["variant"] == "focus"]["value"].abs().max() < 1e-5


@pytest.mark.parametrize("name", ["previous_token", "duplicate_token", "sink"])
def test_uniform_attention_both_ways_is_the_null(name):
    table = interp.analyze(interp.load(encoder(uniform=True)), name, n_prompts=4).table
    rows = table[table["p"].notna()]
    assert len(rows) == 8
    assert_allclose(rows["value"].to_numpy(float), rows["null"].to_numpy(float), atol=1e-6)
    assert not rows["label"].any()
    elsewhere = table[table["variant"] == "strongest_elsewhere"]["value"].to_numpy(float)
    assert_allclose(elsewhere, np.full(len(elsewhere), rows["null"].iloc[0]), atol=1e-6)


def test_offsets_count_back_all_the_same():
    call = make_call(6, both=True)
    with pytest.raises(TaskError, match="later key"):
        measure(call, {"next": Offset(-1)})


def test_cross_attention_is_refused():
    from interp.attention.hook import attention

    module = torch.nn.Identity()
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    with pytest.raises(BackendError, match="3 queries to 5 keys of something else"):
        attention(module, query, key, key, None, is_causal=False)


def test_every_law_of_models_holds():
    assert check_backend(interp.load, modules={"both ways": encoder}) == {}
