"""What callers hand over that is none, out of range or of no use: one clear error, the same on every backend."""

from __future__ import annotations

import re

import pytest
import torch
from agreement import on
from tiny_models import N_HEADS, build, ragged

import interp
from interp.attention import Entropy
from interp.edits import Ablate, KnockOut, Scale
from interp.errors import BackendError, SchemaError, SiteError
from interp.sites import Site

BACKENDS = ("hf", "lens", "nnsight")
IDS = torch.tensor([[5, 9, 3, 22, 41, 7, 9], [1, 2, 3, 4, 5, 6, 7]])


@pytest.fixture(params=BACKENDS)
def model(request):
    return on(request.param, "llama")


def zeroed(x):
    """A reducer that spoils what it looks at."""
    x.mul_(0)
    return x.sum()


@pytest.mark.parametrize(
    "site", ["L0.z", "L0H1.z", "L1H2.pattern", "L0.head_out", "L0.resid_pre", "L1.mlp_out", "logits"]
)
def test_a_reducer_that_changes_its_activation_is_refused(model, site):
    want = model.run(IDS, capture={site: torch.Tensor.sum}).logits
    with pytest.raises(BackendError, match=f"^{re.escape(site)}: the reducer changes its activation in place"):
        model.run(IDS, capture={site: zeroed})
    assert torch.equal(model.run(IDS).logits, want)
    with torch.inference_mode():  # where torch counts no changes, the reducer has a copy
        run = model.run(IDS, capture={site: zeroed})
        assert torch.equal(run.logits, model.run(IDS).logits)
        assert float(run[site]) == 0


def test_a_reducer_may_change_a_tensor_of_its_own(model):
    run = model.run(IDS, capture={"L0.z": lambda x: x.clone().mul_(2), "L1.z@1": zeroed})
    plain = model.run(IDS, capture=["L0.z"])
    assert torch.equal(run.logits, plain.logits)
    assert torch.equal(run["L0.z"], 2 * plain["L0.z"])


@pytest.mark.parametrize("kwargs", [{"head": -1}, {"first": -1}, {"first": 0, "last": -1}, {"last": 1}, {"head": 1.5}])
def test_layers_and_heads_are_counted_from_0(kwargs):
    with pytest.raises(SiteError, match="-1|needs a first layer|expected a whole number"):
        Site("z", **kwargs)
    assert Site("z", torch.tensor(1), head=torch.tensor(3)) == Site.parse("L1H3.z")
    assert Site("resid_post", 1, position=-1).position == -1


@pytest.mark.parametrize("layer", [-1, 2, "a", None, 0.5])
def test_layers_of_the_stream_are_counted_from_0(model, layer):
    for read in (model.writes, model.reads):
        with pytest.raises(SiteError, match="is out of range; the model has layers 0 to 1|expected a number"):
            read(layer)
    with pytest.raises(SiteError, match="has no attention weights|a layer is a whole number"):
        model.weights()[layer]


def test_no_gradients_under_inference_mode(model):
    with torch.inference_mode(), pytest.raises(BackendError, match="no gradients exist under torch.inference_mode"):
        model.run(IDS, capture=["L0.z"], gradients=True)


def test_a_model_made_under_inference_mode_runs_without_gradients():
    with torch.inference_mode():
        inside = interp.load(build("llama"))
    assert torch.equal(inside.run(IDS).logits, on("hf", "llama").run(IDS).logits)
    assert torch.equal(inside.weights()[1].w_q, on("hf", "llama").weights()[1].w_q)
    with pytest.raises(BackendError, match="weights were made under torch.inference_mode"):
        inside.run(IDS, capture=["L0.z"], gradients=True)
    before = inside.fingerprint()
    with torch.inference_mode():
        inside.torch_module.lm_head.weight[0, 0] += 1
    assert inside.fingerprint() != before


def test_autocast_is_refused(model):
    weights = model.weights()
    calls = (
        lambda: model.run(IDS),
        lambda: model.attention(IDS, {"e": Entropy()}),
        lambda: model.generate(IDS, max_new_tokens=1),
        lambda: model.writes(0),
        lambda: model.reads(0),
        model.weights,
        lambda: weights[0],
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for call in calls:
            with pytest.raises(BackendError, match=r"torch.autocast is on for cpu.*interp.load\(..., dtype=\)"):
                call()


@pytest.mark.parametrize("statistics", [{"e": "entropy"}, {"e": Entropy}, [Entropy()], Entropy(), None])
def test_what_is_no_statistic(model, statistics):
    with pytest.raises(SchemaError, match="^statistics: "):
        model.attention(IDS, statistics)


@pytest.mark.parametrize("edits", ["L0.z", ["L0.z"], 3, [None], [[Scale("L0.z", 2.0)]], {"L0.z": 2}])
def test_what_is_no_edit(model, edits):
    calls = (
        lambda: model.run(IDS, edits=edits),
        lambda: model.attention(IDS, {"e": Entropy()}, edits=edits),
        lambda: model.generate(IDS, edits=edits, max_new_tokens=1),
        lambda: model.editing(edits).__enter__(),
    )
    for call in calls:
        with pytest.raises(SchemaError, match="^edits: "):
            call()


def test_a_single_edit_is_one_in_a_list(model):
    one = Ablate("L0H1.z")
    want = model.run(IDS, edits=[one]).logits
    assert torch.equal(model.run(IDS, edits=one).logits, want)
    with model.editing(one):
        assert torch.equal(model.run(IDS).logits, want)
    asked = {"e": Entropy()}
    assert torch.equal(model.attention(IDS, asked, edits=one)["e"], model.attention(IDS, asked, edits=[one])["e"])
    few = {"max_new_tokens": 2}
    assert torch.equal(model.generate(IDS, edits=one, **few), model.generate(IDS, edits=[one], **few))


def test_one_layer_is_a_list_of_it(model):
    asked = {"e": Entropy()}
    one = model.attention(IDS, asked, layers=1)
    assert one.layers == (1,)
    assert torch.equal(one["e"], model.attention(IDS, asked)["e"][1:])
    for layers, message in (
        (3, "layer 3 has no attention"),
        (-1, "layer -1 has no attention"),
        ([], "no layers asked for"),
        ("1", "expected a number"),
        ([0.5], "expected a number"),
    ):
        with pytest.raises(SiteError, match=message):
            model.attention(IDS, asked, layers=layers)


@pytest.mark.parametrize("capture", [3, [3], [["L0.z"]], b"L0.z", {"L0.z": 3}, [Scale("L0.z", 2.0)], {3: None}])
def test_what_is_no_site(model, capture):
    with pytest.raises(SchemaError, match="^capture: "):
        model.run(IDS, capture=capture)
    assert model.run(IDS, capture=None).acts == {}
    assert list(model.run(IDS, capture="L0.z").acts) == [Site.parse("L0.z")]


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"cache_implementation": "sliding_window"}])
def test_edits_of_attention_need_every_key(model, options):
    edit = KnockOut("L0.pattern", keys=0)
    batch = ragged(9, "left")
    want = model.generate(batch, edits=[edit], max_new_tokens=4)
    with pytest.raises(BackendError, match="edits of attention need a cache that keeps every key as it is"):
        model.generate(batch, edits=[edit], max_new_tokens=4, **options)
    for kept in ({"cache_implementation": "dynamic"}, {"use_cache": False}, {"past_key_values": None}):
        assert torch.equal(model.generate(batch, edits=[edit], max_new_tokens=4, **kept), want)
    scaled = [Scale(f"L0H{h}.z", 0.2) for h in range(N_HEADS)]
    static = model.generate(batch, edits=scaled, max_new_tokens=4, cache_implementation="static")
    assert torch.equal(static, model.generate(batch, edits=scaled, max_new_tokens=4))
