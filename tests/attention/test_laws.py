"""Identities that hold for any attention pattern."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    VARIANTS,
    make_call,
    ragged,
    tiny,
)
from tolerance import assert_equal_to_rounding, rounding
from torch.testing import assert_close

from interp.attention import (
    Call,
    CausalMask,
    Distance,
    Entropy,
    KeyMass,
    Offset,
    Pairs,
    Received,
    SumSquares,
    TopKeys,
    kernels,
    measure,
)
from interp.sites import Site

METHODS = ("fused", "naive")


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny(request.param)


def everything(batch):
    return torch.ones(batch.ids.shape)


@pytest.mark.parametrize("side", ["unpadded", "left"])
def test_rows_sum_to_one_or_to_what_the_sink_leaves(model, side):
    batch = ragged(40, side)
    asked = {"mass": KeyMass(everything(batch))} | {str(d): Offset(d) for d in range(40)}
    answers = model.attention(batch, asked)
    mass = answers["mass"]
    real = batch.mask[None, :, None].expand_as(mass)
    assert mass[~real].isnan().all()
    if model.info.sink_logits:
        assert mass[real].max() <= 1 + rounding(1)
        assert mass[real].mean() < 0.95
    else:
        assert_equal_to_rounding(mass[real], torch.ones_like(mass[real]))
    over_offsets = torch.stack([answers[str(d)] for d in range(40)]).nansum(0)
    assert_equal_to_rounding(over_offsets[real], mass[real])


def test_the_sink_slot_of_a_model_takes_its_share():
    model, batch = tiny("gpt_oss"), ragged(5, "unpadded")
    acts = model.run(batch, capture=["q", "k"]).acts
    mass = model.attention(batch, {"mass": KeyMass(everything(batch))})["mass"]
    for layer, part in enumerate(model.anatomy.attention):
        q, k = acts[Site("q", layer)][:, 0], acts[Site("k", layer)][:, 0].repeat_interleave(4, dim=1)
        odds = ((q * k).sum(-1) * part.module.scaling - part.module.sinks).exp()  # of itself against the slot
        assert_equal_to_rounding(mass[layer, :, :, 0], odds / (1 + odds))


@pytest.mark.parametrize("side", ["unpadded", "right"])
def test_what_keys_receive_is_what_queries_give(model, side):
    batch = ragged(40, side)
    received = model.attention(batch, {"received": Received(), "mass": KeyMass(everything(batch))})
    given = received["mass"].nansum(-1)
    assert_close(received["received"].nansum(-1), given, atol=2e-4, rtol=0)
    if not model.info.sink_logits:
        assert_close(given, batch.mask.sum(1).float()[None, :, None].expand_as(given), atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sink_share_completes_the_row(variant, method):
    call = make_call(40, **VARIANTS[variant], dtype=torch.float64)
    ones = torch.ones(2, 40, dtype=torch.float64)
    mass = measure(call, {"mass": KeyMass(ones)}, method=method)[1]["mass"]
    keys = call.key.repeat_interleave(2, dim=1)
    score = call.scale * call.query @ keys.mT
    if call.softcap is not None:
        score = call.softcap * torch.tanh(score / call.softcap)
    i, j = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    width = VARIANTS[variant].get("width", 40)
    seen = (j < i + width if VARIANTS[variant].get("both") else j <= i) & (j > i - width)
    weight = score.exp().masked_fill(~seen, 0.0).sum(-1)
    slot = 0.0 if call.sinks is None else call.sinks.exp()[None, :, None]
    assert_close(mass, (weight / (weight + slot)).to(mass.dtype), atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("width", [None, 5])
def test_uniform_rows(method, width):
    call = make_call(20, width=width)
    call = Call(torch.zeros_like(call.query), call.key, call.value, call.scale, call.mask)
    asked = {"H": Entropy(), "squares": SumSquares(), "distance": Distance(), "same": Offset(0)}
    answers = measure(call, asked, method=method)[1]
    keys = torch.arange(1, 21).clamp(max=width or 20).double()  # how many each query sees
    expected = {"H": keys.log(), "squares": 1 / keys, "distance": (keys - 1) / 2, "same": 1 / keys}
    for name, value in expected.items():
        assert_equal_to_rounding(answers[name].double(), value.expand(2, 4, 20), msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_one_hot_rows(method):
    n = 12
    identity = torch.eye(n).expand(1, 2, n, n)
    call = Call(
        200 * identity.roll(1, dims=-2), identity, identity, 1.0, CausalMask(1, n, n)
    )  # query i wants key i - 1
    asked = {"H": Entropy(), "squares": SumSquares(), "previous": Offset(1), "distance": Distance()}
    answers = {k: v[..., 1:] for k, v in measure(call, asked, method=method)[1].items()}
    one = torch.ones(1, 2, n - 1)
    assert_close(answers["H"], 0 * one, atol=1e-4, rtol=0)
    for name in ("squares", "previous", "distance"):
        assert_equal_to_rounding(answers[name], one, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_sum_of_squares_and_entropy_bound_each_other(model, method):
    batch = ragged(40, "left")
    answers = model.attention(batch, {"squares": SumSquares(), "H": Entropy(), "mass": KeyMass(everything(batch))})
    real = batch.mask[None, :, None].expand_as(answers["H"])
    squares, entropy, mass = (answers[k][real].double() for k in ("squares", "H", "mass"))
    n_seen = (batch.positions + 1).double()[None, :, None].expand_as(real)[real]
    assert (squares <= mass**2 + 1e-5).all()
    assert (squares >= mass**2 / n_seen - 1e-6).all()
    assert (entropy >= -1e-5).all()
    assert (entropy <= (n_seen + model.info.sink_logits).log() + 1e-5).all()
    if not model.info.sink_logits:
        assert (squares >= (-entropy).exp() - 1e-5).all()  # Renyi-2 entropy is at most Shannon's


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_queries_after_a_cache_are_the_last_rows_of_the_whole(variant, method):
    n, cached = 40, 25
    whole = make_call(n, **VARIANTS[variant])
    mask = CausalMask(2, n - cached, n, predicate=whole.mask.predicate, offset=cached)
    tail = Call(whole.query[:, :, cached:], whole.key, whole.value, whole.scale, mask, whole.softcap, whole.sinks)
    half = torch.rand(2, n) < 0.5
    weight = torch.rand(2, n)
    weight[:, :cached] = 0
    rows = torch.tensor([[cached, n - 1], [cached + 3, -1]])
    b, i, j = torch.tensor([[0, 30, 28], [1, 39, 35], [1, 39, 30]]).T
    asked = {
        "H": Entropy(),
        "near": Offset(1),
        "far": Offset(30),
        "half": KeyMass(half),
        "distance": Distance(),
        "squares": SumSquares(),
    }
    of_whole = asked | {"pairs": Pairs(b, i, j), "received": Received(weight), "top": TopKeys(rows, k=2)}
    shifted = torch.where(rows < 0, rows, rows - cached)
    of_tail = asked | {
        "pairs": Pairs(b, i - cached, j),
        "received": Received(weight[:, cached:]),
        "top": TopKeys(shifted, k=2),
    }
    expected, got = measure(whole, of_whole, method="naive")[1], measure(tail, of_tail, method=method)[1]
    depth = n * whole.query.shape[-1]  # a sum over keys, each score over d_head
    for name, value in got.items():
        want = expected[name] if name in ("received", "top") else expected[name][..., cached:]
        scale = 1.0 if name == "top" else None  # (probability, key): keys are exact, and larger
        assert_equal_to_rounding(value, want, depth=depth, scale=scale, equal_nan=True, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_through_fused_attention_are_those_of_dense_attention(variant):
    call = make_call(**VARIANTS[variant], dtype=torch.float64)
    weight = torch.randn(
        *call.query.shape[:3], call.value.shape[-1], generator=torch.Generator().manual_seed(0)
    ).double()
    found = []
    for method in METHODS:
        inputs = [t.detach().requires_grad_() for t in (call.query, call.key, call.value)]
        given = replace(call, query=inputs[0], key=inputs[1], value=inputs[2])
        output, _ = measure(given, {}, method=method)
        found.append(torch.autograd.grad((output * weight).sum(), inputs))
    for fused, dense in zip(*found, strict=True):
        assert_close(fused, dense, atol=1e-10, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rows", ["all", "few"])
def test_gradients_of_values_alone_are_those_of_dense_attention(variant, rows, monkeypatch):
    """Patterns held: rows of the pattern in tiles, once for copies of a prompt, those alone that are asked about."""
    monkeypatch.setattr(kernels, "TILE", 128)
    call = make_call(**VARIANTS[variant], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*call.query.shape[:3], call.value.shape[-1], generator=generator).double()
    if rows == "few":
        weight[:, :, :-3] = 0.0
    copies = replace(call, query=call.query[:1].expand_as(call.query), key=call.key[:1].expand_as(call.key))
    for given in (call, copies):
        gradients = []
        for method in METHODS:
            value = given.value.detach().requires_grad_()
            output, _ = measure(replace(given, value=value), {}, method=method)
            gradients.append(torch.autograd.grad((output * weight).sum(), value)[0])
        assert_close(*gradients, atol=1e-10, rtol=0)
