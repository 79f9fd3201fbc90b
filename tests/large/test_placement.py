"""Layers on several devices or on disk: the same sites, edits and statistics as in one place."""

from __future__ import annotations

import accelerate
import pytest
import torch
from tiny_models import build, ragged, tiny
from tolerance import assert_equal_to_rounding

import interp
from interp.attention import Entropy, KeyMass, Offset, Received
from interp.edits import Ablate, KnockOut, Noise, Scale
from interp.errors import ModelLoadError

PLACES = {  # the second layer's weights are on disk but while it runs
    "llama": ["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm", "lm_head", "model.layers.1"],
    "gemma2": ["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm", "lm_head", "model.layers.1"],
    "gpt2": ["transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h.0", "transformer.ln_f", "lm_head"]
    + ["transformer.h.1"],
}


@pytest.fixture(params=PLACES)
def pair(request, tmp_path):
    """A model with a layer on disk, and the same model in one place."""
    module, name = build(request.param), request.param
    where = dict.fromkeys(PLACES[name], "cpu") | {PLACES[name][-1]: "disk"}
    accelerate.dispatch_model(module, device_map=where, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert any(p.is_meta for p in module.parameters())
    return interp.load(module), tiny(name)


def test_an_offloaded_layer_has_the_same_sites(pair):
    offloaded, plain = pair
    batch = ragged(9, "left", lengths=(9, 6))
    ours, theirs = (m.run(batch, capture="all") for m in (offloaded, plain))
    assert ours.acts.keys() == theirs.acts.keys()
    for site, x in theirs.acts.items():
        assert_equal_to_rounding(ours[site], x, msg=str(site))


def test_an_offloaded_layer_is_edited_and_left_out(pair):
    offloaded, plain = pair
    batch = ragged(9, "unpadded", lengths=(9, 9))
    edits = [
        Ablate("L1H3.z", rows=0),
        KnockOut("L1H2.pattern", keys=0),
        Scale("L1H5.head_out", -1.0),
        Noise("L0.k", 1.0),
    ]
    for edit in edits:
        ours, theirs = (m.run(batch, edits=[edit]).logits for m in (offloaded, plain))
        assert_equal_to_rounding(ours, theirs)
    resid = plain.run(batch, capture=["resid_pre"])
    for layer in (0, 1):
        start = (layer, resid[f"L{layer}.resid_pre"])
        assert_equal_to_rounding(offloaded.run(batch, start=start).logits, resid.logits)
    assert offloaded.run(batch, stop=0, capture=["L0.resid_post"]).logits is None
    run = offloaded.run(batch, capture=["L1.z"], gradients=True)
    (gradient,) = torch.autograd.grad(run.logits.sum(), [run["L1.z"]])
    assert gradient.abs().max() > 0
    assert_equal_to_rounding(offloaded.run(batch).logits, resid.logits)  # and put back as it was


def test_an_offloaded_layer_is_measured_and_read(pair):
    offloaded, plain = pair
    batch = ragged(9, "left", lengths=(9, 6))
    keys = torch.arange(9).expand(2, 9) < 2
    asked = {"previous": Offset(1), "entropy": Entropy(), "received": Received(), "first": KeyMass(keys)}
    ours, theirs = (m.attention(batch, asked) for m in (offloaded, plain))
    for name in asked:
        assert_equal_to_rounding(ours[name], theirs[name], equal_nan=True)
    assert_equal_to_rounding(offloaded.mean(batch), plain.mean(batch))
    ours, theirs = offloaded.ov_circuits(), plain.ov_circuits()
    for name in ("w_v", "w_o", "w_e", "w_u"):
        assert_equal_to_rounding(getattr(ours, name), getattr(theirs, name))
    edits = [Ablate("L1H3.z")]
    ours, theirs = (m.generate(batch, edits=edits, max_new_tokens=3) for m in (offloaded, plain))
    assert torch.equal(ours, theirs)


def test_loading_with_a_device_map(tmp_path):
    build("llama").save_pretrained(tmp_path)
    batch, plain = ragged(9, "left"), tiny("llama")
    where = dict.fromkeys(PLACES["llama"], "cpu") | {"model.layers.1": "disk"}
    for device_map in ({"": "cpu"}, "auto", where):
        model = interp.load(tmp_path, device_map=device_map)
        assert_equal_to_rounding(model.run(batch).logits[batch.mask], plain.run(batch).logits[batch.mask])


def test_tensor_parallel_loading_says_what_it_needs(tmp_path, monkeypatch):
    build("gpt2").save_pretrained(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ModelLoadError, match="torchrun --nproc-per-node"):
        interp.load(tmp_path, tensor_parallel=True)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ModelLoadError, match="no tensor-parallel plan for 'gpt2'"):
        interp.load(tmp_path, tensor_parallel=True)
