"""Dictionaries in the model: beside the same change made by hand, on every architecture and backend."""

from functools import cache

import pytest
import torch
from dictionaries_made import random_dictionary, transcoders
from tiny_models import SPANNING, build, tiny
from torch.testing import assert_close

import interp
from interp.dictionaries import (
    Clamp,
    Dictionaries,
    Normalisation,
    Scaled,
    Splice,
    Steer,
    TopK,
    ablate_features,
)
from interp.edits import Ablate, Apply, Replace, refuse_rows
from interp.errors import SchemaError, SiteError
from interp.sites import Site

IDS = [[5, 6, 7, 8, 9, 10], [3, 4, 5]]
EXACT = {"atol": 1e-5, "rtol": 0.0}
QUICK = ("llama", "gemma2")
OTHERS = [
    pytest.param(backend, name, marks=[] if name in QUICK else [pytest.mark.slow])
    for backend in ("lens", "nnsight")
    for name in SPANNING
]
"""Of the other backends, on which every architecture takes the same paths: all of them where time does not matter."""


@cache
def on(backend, name):
    return tiny(name) if backend == "hf" else interp.load(build(name), backend=backend)


def z_dictionary(model):
    return random_dictionary("L1.z", d_in=(width := model.info.n_heads * model.info.d_head), d_out=width, seed=5)


def mixed(model):
    """A normalised TopK autoencoder of the stream, one of all heads, and a transcoder."""
    resid = random_dictionary(
        "L0.resid_post", seed=3, activation=TopK(4), normalisation=Normalisation("layer_norm"), centred=True
    )
    return Dictionaries((resid, z_dictionary(model), random_dictionary("L1.mlp_in", "L1.mlp_out", seed=4)))


@pytest.mark.parametrize(("backend", "name"), [*(("hf", n) for n in SPANNING), *OTHERS])
def test_with_the_error_nothing_changes_and_without_it_the_output_is_what_is_decoded(name, backend):
    model = on(backend, name)
    d = mixed(model)
    sites = [*(m.site_in for m in d), Site("mlp_out", 1)]
    clean = model.run(IDS, capture=sites)
    assert_close(model.run(IDS, edits=[Splice(d)]).logits, clean.logits, **EXACT)
    by_hand = []
    for m in d:  # each reads what those before it have changed
        run = model.run(IDS, capture=[m.site_in], edits=by_hand)
        by_hand.append(Replace(m.site_out, m(run[m.site_in]).view_as(clean[m.site_out])))
    spliced = model.run(IDS, edits=[Splice(d, error=False)]).logits
    assert_close(spliced, model.run(IDS, edits=by_hand).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(spliced, clean.logits, atol=0.1)
    f = d[2].encode(clean[d[2].site_in])[..., [3]]
    moved = clean["L1.mlp_out"] + (1.5 - f) * d[2].w_dec[3]
    clamped = model.run(IDS, edits=[Splice(d[2], Clamp(3, 1.5))]).logits
    assert_close(clamped, model.run(IDS, edits=[Replace("L1.mlp_out", moved)]).logits, **EXACT)


def test_changes_of_features_at_chosen_tokens():
    model, d = tiny("llama"), random_dictionary("L0.resid_post")
    x = model.run(IDS, capture=["L0.resid_post"])["L0.resid_post"]
    f = d.encode(x)
    changes = [Clamp([2, 3], 0.5), Steer(4, 2.0, positions=-1), Scaled(5, 3.0, positions=[0, 1]), Clamp(6, positions=1)]
    changes += [Clamp(7, 3.0, rows=1), Clamp(8, 3.0, rows=0, positions=torch.tensor([2, 0]))]
    g = f.clone()
    g[..., 2:4] = 0.5
    g[0, 5, 4] += 2.0
    g[1, 2, 4] += 2.0  # the last token of a prompt of three
    g[:, :2, 5] *= 3.0
    g[:, 1, 6] = 0.0
    g[1, :, 7] = 3.0
    g[0, 2, 8] = 3.0
    by_hand = Replace("L0.resid_post", x + d.decode(g) - d.decode(f))
    assert_close(model.run(IDS, edits=[Splice(d, changes)]).logits, model.run(IDS, edits=[by_hand]).logits, **EXACT)
    ablated = model.run(IDS, edits=[ablate_features(d, [2, 3])]).logits
    assert_close(ablated, model.run(IDS, edits=[Splice(d, Clamp([2, 3], 0.0))]).logits)


def test_a_cross_layer_transcoder_sums_what_all_layers_write():
    model, d = tiny("gemma2"), transcoders()
    assert_close(model.run(IDS, edits=[Splice(d)]).logits, model.run(IDS).logits, **EXACT)
    x0 = model.run(IDS, capture=["L0.mlp_in"])["L0.mlp_in"]
    first = d[0](x0)
    edits = [Replace("L0.mlp_out", first[..., 0, :])]
    x1 = model.run(IDS, capture=["L1.mlp_in"], edits=edits)["L1.mlp_in"]
    edits.append(Replace("L1.mlp_out", first[..., 1, :] + d[1](x1)))
    assert_close(model.run(IDS, edits=[Splice(d, error=False)]).logits, model.run(IDS, edits=edits).logits, **EXACT)


def test_a_single_head():
    model = tiny("qwen3")
    width = model.info.d_head
    d = random_dictionary("L1H2.z", d_in=width, d_out=width)
    z = model.run(IDS, capture=["L1H2.z"])["L1H2.z"]
    by_hand = Replace("L1H2.z", d(z))
    assert_close(model.run(IDS, edits=[Splice(d, error=False)]).logits, model.run(IDS, edits=[by_hand]).logits, **EXACT)


@pytest.mark.parametrize("backend", ["hf", "lens", "nnsight"])
@pytest.mark.parametrize("cache", [True, False])
def test_generation_is_that_of_one_run_after_the_other(backend, cache):
    """Greedy tokens with changes at the prompt's second token, and at all, by runs over ever longer prompts."""
    model, d = on(backend, "llama"), random_dictionary("L1.mlp_in", "L1.mlp_out", seed=4)
    edit = Splice(d, [Steer(7, 4.0), Clamp(3, 5.0, positions=1)])
    options = {"max_new_tokens": 3, "use_cache": cache, "pad_token_id": 0, "do_sample": False}
    tokens = model.generate(IDS[:1], edits=[edit], **options)[0].tolist()
    expected = list(IDS[0])
    while len(expected) < len(tokens):
        expected.append(int(model.run([expected], edits=[edit]).logits[0, -1].argmax()))
    assert tokens == expected
    assert tokens != model.generate(IDS[:1], **options)[0].tolist()


def test_gradients_go_through_the_dictionary_and_not_through_the_error():
    model, d = tiny("gpt2"), random_dictionary("L0.resid_post")
    seen = {}

    def watch(x):
        seen["x"] = x = x.detach().requires_grad_()
        return x

    run = model.run(IDS[:1], edits=[Apply("L0.resid_post", watch), Splice(d)], gradients=True)
    (ours,) = torch.autograd.grad(run.logits[0, -1, 3], seen["x"])
    x = seen["x"].detach().requires_grad_()
    y = d(x)
    whole = model.run(IDS[:1], edits=[Apply("L0.resid_post", lambda _: y + (x - y).detach())], gradients=True)
    (theirs,) = torch.autograd.grad(whole.logits[0, -1, 3], x)
    assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["hf", "lens"])
def test_a_context_of_splices_and_runs_that_come_by_a_part_of_them(backend):
    model, d = on(backend, "llama"), transcoders()
    resid = model.run(IDS, capture=["L1.resid_pre"])["L1.resid_pre"]
    plain = model.run(IDS, edits=[Splice(d, error=False)]).logits
    with model.editing([Splice(d, error=False)]):
        assert_close(model.run(IDS).logits, plain, **EXACT)
        model.run(IDS, stop=0)  # leaves what the first layer read
        with pytest.raises(SiteError, match=r"L1.mlp_out: the dictionary that writes here reads L0.mlp_in"):
            model.run(IDS, start=(1, resid))
        assert_close(model.run(IDS).logits, plain, **EXACT)
    assert len(Splice(d).parts) == 4


def test_refusals():
    d, model = random_dictionary("L0.resid_post"), tiny("llama")
    for arguments, error, message in (
        ((d, Clamp(24)), SiteError, "feature 24 is out of range; the dictionary has 24"),
        ((d, Clamp(1, member=1)), SiteError, "member 1 is out of range"),
        ((d, Ablate("L0.resid_post")), SchemaError, "changes"),
        ((d.at("resid_post"),), SiteError, "of one layer"),
        ((type(d)(d.w_enc, d.w_dec, d.b_enc, d.b_dec),), SiteError, "does not say where it belongs"),
    ):
        with pytest.raises(error, match=message):
            Splice(*arguments)
    with model.editing([Splice(d, Clamp(1, rows=0))]), pytest.raises(SiteError, match="is of rows of one batch"):
        refuse_rows(model.edits, "an analysis")
    with pytest.raises(SchemaError, match="two dictionaries of a set read one site"):
        Dictionaries((d, d))
    with pytest.raises(SchemaError, match=r"activations of shape \(1, 4, 8, 8\) for a dictionary that reads vectors"):
        model.run([[1, 2, 3, 4]], edits=[Splice(random_dictionary("L0.z", d_in=63, d_out=63))])
    with pytest.raises(SiteError, match="layer 7 is out of range"):
        model.run([[1, 2, 3, 4]], edits=[Splice(d.at("L7.resid_post"))])


@pytest.mark.parametrize(("outs", "scaled"), [(["L0.mlp_out"], True), (["L0.mlp_out", "L1.mlp_out"], False)])
def test_directions_are_what_one_unit_adds(outs, scaled):
    d = random_dictionary("L0.mlp_in", *outs, scaled=scaled)
    unit, x = torch.eye(24), torch.zeros(24, 64)
    for out in range(len(outs)):
        added = d.decode(unit, x, out=out) - d.decode(0 * unit, x, out=out)
        assert_close(d.directions(torch.arange(24), out=out), added, **EXACT)
        assert_close(d.directions(3, out=out), added[3], **EXACT)
        assert_close(d.directions([3, 5], out=out), added[[3, 5]], **EXACT)
