"""Edits are what they say: next to the same change made by hand with a torch hook."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny_models import ARCHITECTURES, N_HEADS, N_LAYERS, ragged, tiny
from torch.testing import assert_close

from interp.attention import Entropy, Offset
from interp.edits import Ablate, ablate_heads
from interp.errors import SiteError
from interp.sites import Site


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny(request.param)


@contextlib.contextmanager
def overwritten(part, head, value):
    """Write `value` over a head's columns of what goes into the output projection."""
    columns = slice(head * part.d_value, (head + 1) * part.d_value)

    def hook(module, args):
        z = args[0].clone()
        z[..., columns] = value
        return (z, *args[1:])

    handle = part.output.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(("layer", "head"), [(0, 5), (1, 2)])
@pytest.mark.parametrize("side", ["unpadded", "left"])
def test_zero_ablation_zeroes_the_heads_columns(model, layer, head, side):
    batch = ragged(14, side)
    edited = model.run(batch, edits=ablate_heads([(layer, head)])).logits
    with overwritten(model.anatomy.attention[layer], head, 0.0):
        by_hand = model.run(batch).logits
    assert_close(edited[batch.mask], by_hand[batch.mask], atol=1e-6, rtol=0)
    assert (edited - model.run(batch).logits)[batch.mask].abs().max() > 1e-3


def test_mean_ablation_writes_the_mean(model):
    batch = ragged(14, "right")
    mean = model.mean(batch)
    assert mean.shape == (N_LAYERS, N_HEADS, model.info.d_head)
    edited = model.run(batch, edits=ablate_heads(["L1H3"], how="mean", mean=mean)).logits
    with overwritten(model.anatomy.attention[1], 3, mean[1, 3]):
        by_hand = model.run(batch).logits
    assert_close(edited[batch.mask], by_hand[batch.mask], atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["unpadded", "left"])
@pytest.mark.parametrize("kind", ["z", "q", "v"])
def test_the_mean_is_over_real_tokens(model, kind, side):
    batch = ragged(14, side)
    mean = model.mean(batch, kind)
    acts = model.run(batch, capture=[kind]).acts
    for layer in range(N_LAYERS):
        assert_close(mean[layer], acts[Site(kind, layer)][batch.mask].mean(0), atol=1e-5, rtol=1e-5)


def test_no_edits_is_identity(model):
    batch = ragged(14, "left")
    plain = model.run(batch)
    for edits in ([], (), ablate_heads([])):
        assert_close(model.run(batch, edits=edits).logits, plain.logits, atol=0, rtol=0)
    assert plain.acts == {}


def test_replacing_a_head_by_itself_is_identity(model):
    """A one-token prompt's mean is its own value."""
    ids = torch.tensor([[7]])
    mean = model.mean(ids)
    heads = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    edited = model.run(ids, edits=ablate_heads(heads, how="mean", mean=mean)).logits
    assert_close(edited, model.run(ids).logits, atol=1e-5, rtol=0)


def test_edits_change_the_attention_of_later_layers_only(model):
    batch = ragged(20, "unpadded")
    asked = {"H": Entropy(), "previous": Offset(1)}
    plain = model.attention(batch, asked)
    edited = model.attention(batch, asked, edits=[Ablate(Site("z", 0))])
    assert_close(edited["H"][0], plain["H"][0], atol=0, rtol=0)
    assert (edited["H"][1] - plain["H"][1]).abs().max() > 1e-3


def test_a_site_of_every_layer_is_every_head(model):
    batch = ragged(14, "unpadded")
    heads = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    whole = model.run(batch, edits=[Ablate(Site("z"))]).logits
    assert_close(whole, model.run(batch, edits=ablate_heads(heads)).logits, atol=0, rtol=0)


def test_captured_z_is_what_the_edit_left():
    model, batch = tiny("llama"), ragged(9, "unpadded")
    z = model.run(batch, capture=["L1.z"], edits=ablate_heads(["L1H2"])).acts[Site("z", 1)]
    assert_close(z[:, :, 2], torch.zeros_like(z[:, :, 2]), atol=0, rtol=0)
    assert z[:, :, 1].abs().min() > 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Ablate(Site("z", 0, head=N_HEADS)), "L0H8.z: head 8 is out of range; there are 8 heads"),
        (Ablate(Site("z", 2)), "L2.z: layer 2 is out of range; the model has 2 layers"),
        (Ablate(Site("z", 0, 5)), "layer 2 is out of range"),
        (Ablate(Site("mlp_out", 0)), "L0.mlp_out: edits are of z"),
        (Ablate(Site("z", 0, position=3)), "edits are of z, at all positions"),
    ],
)
def test_what_cannot_be_edited(edit, message):
    model = tiny("llama")
    for look in (
        lambda: model.run([5, 6], edits=[edit]),
        lambda: model.attention([5, 6], {"H": Entropy()}, edits=[edit]),
    ):
        with pytest.raises(SiteError, match=message):
            look()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("L9.z", "L9.z: layer 9 is out of range; the model has 2 layers"),
        ("resid_post", "'resid_post' is not captured by the hf backend; it captures q, k, v, z"),
        ("L0H3.z", "captures are of whole layers"),
        ("L0.zed", "unknown site kind 'zed'"),
    ],
)
def test_what_cannot_be_captured(site, message):
    with pytest.raises(SiteError, match=message):
        tiny("llama").run([5, 6], capture=[site])


def test_attention_of_a_layer_that_is_not_there():
    with pytest.raises(SiteError, match="layer 7 has no attention"):
        tiny("llama").attention([5, 6], {"H": Entropy()}, layers=[0, 7])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablate(Site("z", 0), "zer"), "unknown ablation 'zer'; did you mean 'zero'"),
        (lambda: Ablate(Site("z", 0), "mean"), "a mean ablation takes the mean"),
        (lambda: Ablate(Site("z", 0), "zero", torch.zeros(8)), "a zero ablation takes none"),
        (lambda: ablate_heads(["M3"]), "'M3' is not a head"),
        (lambda: ablate_heads(["L3"]), "cannot read component 'L3'"),
        (lambda: ablate_heads(["L0H1"], how="mean"), "takes the mean"),
    ],
)
def test_what_is_no_edit(make, message):
    with pytest.raises(SiteError, match=message):
        make()


@pytest.mark.parametrize("heads", [[(9, 0)], [(0, 99)], ["L9H0"]])
def test_a_mean_of_a_head_out_of_range_is_a_site_error(heads):
    model = tiny("llama")
    with pytest.raises(SiteError, match="out of range"):
        model.run([5, 6], edits=ablate_heads(heads, how="mean", mean=model.mean([5, 6])))
