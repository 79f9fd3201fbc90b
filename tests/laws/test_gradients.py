"""A gradient is the limit of what edits do: central differences of `Add`, in float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny_models import ARCHITECTURES, N_HEADS, N_LAYERS, build, ragged
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

import interp
from interp.attention import Pairs
from interp.edits import Ablate, Add
from interp.errors import SiteError, TaskError
from interp.gradients import gradients, pair_gradients

PARALLEL = ("gpt_neox", "phi")
FLOAT64 = ("gpt2", "gpt_neox", "opt", "phi")  # the others' RMSNorm computes in float32 whatever the model's dtype


@cache
def precise(name):
    module = build(name)
    return interp.load(module if name == "gpt_oss" else module.double())  # its experts have no float64


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


def metric(logits):
    return logits[:, -1, 5] - logits[:, -2, 7]


def sites(name):
    kinds = ["resid_pre", "resid_post", "q", "k", "v", "pattern", "z", "head_out", "attn_out", "mlp_in", "mlp_out"]
    kinds += [] if name in PARALLEL else ["resid_mid"]
    kinds += [] if name == "gpt_oss" else ["mlp_post"]
    return ["embed", *(f"L{i}.{kind}" for i in range(N_LAYERS) for kind in kinds)]


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "gpt_oss"])
def test_a_gradient_is_the_limit_of_edits(name):
    model, batch = precise(name), ragged(6, "unpadded", lengths=(6, 6))
    step, error = (1e-5, 1e-5) if name in FLOAT64 else (1e-3, 2e-3)
    found = gradients(model, batch, metric, sites(name))
    assert_close(found.value, metric(model.run(batch).logits), atol=1e-9, rtol=1e-9)
    for site, grad in found.grads.items():
        direction = torch.randn(grad.shape, dtype=grad.dtype)
        if site.kind == "pattern":
            direction = direction.tril()
        up, down = (metric(model.run(batch, edits=[Add(site, sign * step * direction)]).logits) for sign in (1, -1))
        expected = (grad * direction).flatten(1).sum(1)
        atol = error * float(grad.norm())
        assert_close((up - down) / (2 * step), expected, atol=atol, rtol=error, msg=lambda m, s=site: f"{s}: {m}")


def test_heads_and_positions_of_a_gradient(name):
    model, batch = precise(name), ragged(7, "left", lengths=(7, 4))
    whole = gradients(model, batch, metric, ["L0.z", "L0.pattern", "L1.resid_pre", "L1.head_out"])
    part = gradients(model, batch, metric, ["L0H3.z", "L1.resid_pre@0", "L1H2.head_out@-1"])
    rows = torch.arange(2)
    assert_close(part["L0H3.z"], whole["L0.z"][:, :, 3])
    assert_close(part["L1.resid_pre@0"], whole["L1.resid_pre"][rows, torch.tensor([0, 3])])
    assert_close(part["L1H2.head_out@-1"], whole["L1.head_out"][:, -1, 2])
    part = gradients(model, batch, metric, ["L0H3.pattern", "L0H1.pattern@-1"])
    assert_close(part["L0H3.pattern"], whole["L0.pattern"][:, 3])
    assert_close(part["L0H1.pattern@-1"], whole["L0.pattern"][:, 1, -1])


def test_gradients_of_pairs_need_no_pattern(name):
    model, batch = precise(name), ragged(7, "unpadded", lengths=(7, 7))
    dense = gradients(model, batch, metric, ["pattern"])
    b, i, j = torch.tensor([[0, 0, 1, 1, 1], [3, 6, 0, 5, 5], [1, 6, 0, 4, 2]])
    found = pair_gradients(model, batch, metric, Pairs(b, i, j))
    assert found.shape == (N_LAYERS, N_HEADS, 5)
    for layer in range(N_LAYERS):
        assert_equal_to_rounding(found[layer], dense[f"L{layer}.pattern"][b, :, i, j].T, dtype=found.dtype)


def test_gradients_under_edits():
    model, batch = precise("llama"), ragged(6, "unpadded", lengths=(6,))
    found = gradients(model, batch, metric, ["L0.z", "L1.resid_post"], edits=[Ablate("L1.attn_out")])
    plain = gradients(model, batch, metric, ["L0.z"])
    assert (found["L0.z"] - plain["L0.z"]).abs().max() > 1e-3
    cut = gradients(model, batch, metric, ["L0.resid_pre", "L0.resid_post"], edits=[Ablate("L0.resid_post")])
    assert not cut["L0.resid_pre"].any()
    assert cut["L0.resid_post"].any()


def test_a_frozen_model_has_gradients_all_the_same():
    module = build("gpt2").requires_grad_(False)
    model, ids = interp.load(module), torch.arange(6)[None]
    found = gradients(model, ids, metric, ["embed", "L1.resid_mid"])
    expected = gradients(interp.load(build("gpt2")), ids, metric, ["embed", "L1.resid_mid"])
    for site, grad in expected.grads.items():
        assert_equal_to_rounding(found[site], grad)
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": lambda x: x.mean()}, TaskError, r"gave shape \(\); expected one value per prompt, \(2,\)"),
        ({"metric": lambda x: x.detach()[:, 0, 0]}, TaskError, "does not depend on the logits"),
        ({"sites": ["norm_scale"]}, SiteError, "norm_scale: the divisor of a norm is read off"),
        ({"sites": ["L7.z"]}, SiteError, "layer 7 is out of range"),
    ],
)
def test_refusals(options, error, message):
    call = {"metric": metric, "sites": ["L0.z"], **options}
    with pytest.raises(error, match=message):
        gradients(precise("llama"), torch.arange(10).view(2, 5), call["metric"], call["sites"])
