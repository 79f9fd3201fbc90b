"""Edits are what they say: next to the same change made by hand with a torch hook."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny_models import MOST, N_HEADS, N_LAYERS, ragged, tiny
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

from interp.attention import Entropy, Offset
from interp.backends.plan.places import narrow
from interp.batch import Batch
from interp.edits import Ablate, Add, Apply, ForcePattern, Noise, Replace, Scale, ablate_heads, apply, apply_edits
from interp.errors import SiteError
from interp.sites import Site


@pytest.fixture(params=MOST)
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
    assert_equal_to_rounding(edited[batch.mask], by_hand[batch.mask])
    assert (edited - model.run(batch).logits)[batch.mask].abs().max() > 1e-3


def test_mean_ablation_writes_the_mean(model):
    batch = ragged(14, "right")
    mean = model.mean(batch)
    assert mean.shape == (N_LAYERS, N_HEADS, model.info.d_head)
    edited = model.run(batch, edits=ablate_heads(["L1H3"], how="mean", mean=mean)).logits
    with overwritten(model.anatomy.attention[1], 3, mean[1, 3]):
        by_hand = model.run(batch).logits
    assert_equal_to_rounding(edited[batch.mask], by_hand[batch.mask])


@pytest.mark.parametrize("side", ["unpadded", "left"])
@pytest.mark.parametrize("kind", ["z", "q", "v"])
def test_the_mean_is_over_real_tokens(model, kind, side):
    batch = ragged(14, side)
    mean = model.mean(batch, kind)
    acts = model.run(batch, capture=[kind]).acts
    for layer in range(N_LAYERS):
        assert_equal_to_rounding(mean[layer], acts[Site(kind, layer)][batch.mask].mean(0))


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
    assert_equal_to_rounding(edited, model.run(ids).logits)


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
        (Ablate(Site("z", 0, position=3)), "L0.z@3: position 3 is out of range; the prompt has 2 tokens"),
        (Ablate(Site("z", 0), "mean", torch.ones(9)), r"value of shape \(9,\) does not broadcast to \(1, 2, 8, 8\)"),
        (Ablate(Site("norm_scale", 0)), "L0.norm_scale: the divisor of a norm"),
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
        ("L0H9.z", "L0H9.z: head 9 is out of range; there are 8 heads"),
        ("L0.z@2", "L0.z@2: position 2 is out of range; the prompt has 2 tokens"),
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
        (lambda: ablate_heads(["M3"]), "'M3' is no head"),
        (lambda: ablate_heads(["three"]), "cannot read component 'three'"),
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


X = torch.arange(2 * 5 * 3 * 2, dtype=torch.float32).view(2, 5, 3, 2)


def changed(*edits, x=X, **options):
    before = x.clone()
    after = apply_edits(x, edits, **options)
    assert_close(x, before, atol=0, rtol=0)
    return after


def test_edits_are_applied_in_the_order_given():
    twice = Scale("L0.z", 2.0), Add("L0.z", torch.ones(2))
    assert_close(changed(*twice), 2 * X + 1)
    assert_close(changed(*reversed(twice)), 2 * (X + 1))
    on_one = (
        Scale("L0H1.z", 2.0, rows=0),
        Add("L0H1.z", torch.ones(2)),
        Ablate("L0H1.z@0"),
        Add("L0H1.z@0", torch.ones(2)),
    )
    expected = X.clone()
    expected[0, :, 1] *= 2
    expected[:, :, 1] += 1
    expected[:, 0, 1] = 1
    assert_close(changed(*on_one), expected)


def test_a_value_has_the_shape_that_a_capture_has():
    values = {
        "L0.z": torch.randn(2, 5, 3, 2),
        "L0H1.z": torch.randn(2, 5, 2),
        "L0.z@3": torch.randn(2, 3, 2),
        "L0H1.z@-1": torch.randn(2, 2),
    }
    for site, value in values.items():
        after = changed(Replace(site, value))
        assert_close(narrow(after, Site.parse(site), torch.ones(2, 5, dtype=torch.bool)), value)
    whole = torch.randn(2, 5, 3, 2)
    after = changed(Replace("L0.z", whole, positions=torch.tensor([1, -1])))
    assert_close(after[0, 1], whole[0, 1])
    assert_close(after[1, 4], whole[1, 4])
    assert_close(after[0, 2:], X[0, 2:])
    of_rows = torch.randn(1, 5, 3, 2)
    assert_close(changed(Replace("L0.z", of_rows, rows=[1]))[1], of_rows[0])


def test_many_rows_edits_are_one_write(monkeypatch):
    commits = []
    commit = apply._commit
    monkeypatch.setattr(apply, "_commit", lambda x, writes, own: commits.append(len(writes)) or commit(x, writes, own))
    edits = [Ablate(f"L0H{row % 3}.z", rows=row) for row in range(64)]
    x = torch.ones(64, 5, 3, 2)
    after = apply_edits(x, edits)
    assert commits == [64]
    assert_close(after.sum((1, 2, 3)), torch.full((64,), 20.0))
    assert (after[torch.arange(64), :, torch.arange(64) % 3] == 0).all()
    commits.clear()
    apply_edits(x, [*edits, Ablate("L0H0.z", rows=0), Scale("L0H1.z", 2.0, rows=3)])
    assert commits == [64, 1, 1]


def test_positions_and_values_of_a_prompt_leave_generated_tokens_alone():
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    new = torch.randn(2, 1, 3, 2)
    for edit in (Ablate("L0.z@-1"), Add("L0.z", torch.ones(4, 3, 2)), Scale("L0.z", 2.0, positions=[0, 1])):
        assert_close(changed(edit, x=new, mask=mask, offset=4), new, atol=0, rtol=0)
    assert_close(changed(Scale("L0.z", 2.0), x=new, mask=mask, offset=4), 2 * new)


def test_resampling_sets_what_another_run_had():
    value = torch.randn(changed(Ablate("L0.z")).shape)
    for site, x in (("L0.z", value), ("L0H1.z", value[:, :, 1])):
        assert_close(changed(Ablate(site, "resample", x)), changed(Replace(site, x)), atol=0, rtol=0)
    assert_close(changed(Ablate("L0.z", "resample", value)), value, atol=0, rtol=0)


def test_noise_is_drawn_from_its_seed():
    noise = Noise("L0.z", 0.5, seed=3)
    one, again, other = changed(noise, layer=0), changed(noise, layer=0), changed(noise, layer=1)
    assert_close(one, again, atol=0, rtol=0)
    assert (one - other).abs().max() > 0.1
    assert (one - changed(Noise("L0.z", 0.5, seed=4), layer=0)).abs().max() > 0.1
    wide = torch.zeros(4, 500, 3, 2)
    assert_close(apply_edits(wide, [noise], layer=0).std(), torch.tensor(0.5), atol=0.02, rtol=0)


def test_a_mean_has_a_row_for_each_layer(model):
    batch = ragged(9, "unpadded")
    means = {kind: model.mean(batch, kind) for kind in ("z", "mlp_out")}
    for kind, mean in means.items():
        whole = model.run(batch, edits=[Ablate(kind, "mean", mean)]).logits
        each = model.run(batch, edits=[Replace(f"L{i}.{kind}", mean[i]) for i in range(N_LAYERS)]).logits
        assert_equal_to_rounding(whole, each)


def test_a_function_sees_what_the_run_has_made_of_the_site():
    model = tiny("llama")
    seen = []

    def halve(x):
        seen.append(x.clone())
        return x / 2

    edits = [Scale("L0.z", 3.0), Apply("L0.z", halve), Add("L0.z", torch.ones(()))]
    z = model.run(ragged(16, "unpadded"), capture=["L0.z"]).acts
    run = model.run(ragged(16, "unpadded"), capture=["L0.z"], edits=edits)
    assert_close(seen[0], 3 * next(iter(z.values())))
    assert_close(next(iter(run.acts.values())), 1.5 * next(iter(z.values())) + 1)


FUNCTIONS = {  # what the function sees, and the activation [batch pos head d] with that part halved
    "L0H1.z": ({}, (2, 5, 2), (slice(None), slice(None), 1)),
    "L0.z@-1": ({}, (2, 3, 2), (slice(None), -1)),
    "L0.z": ({"rows": [1]}, (1, 5, 3, 2), (slice(1, 2),)),
    "L0H2.z": ({"rows": [1], "positions": [3, 0]}, (1, 2, 2), ([[1, 1]], [[3, 0]], 2)),
    "L0H0.z": ({"positions": torch.tensor([2, -1])}, (2, 2), ([0, 1], [2, 4], 0)),
    "L1.z": ({"positions": torch.eye(2, 5, dtype=torch.bool)}, (2, 3, 2), ([0, 1], [0, 1])),
}


@pytest.mark.parametrize("site", FUNCTIONS)
def test_a_function_sees_what_a_capture_of_the_site_gives(site):
    where, shape, index = FUNCTIONS[site]
    seen = []

    def halve(x):
        seen.append(tuple(x.shape))
        return x / 2

    expected = X.clone()
    expected[index] /= 2
    assert_close(changed(Apply(site, halve, **where)), expected)
    assert seen == [shape]
    with pytest.raises(SiteError, match="the function gave"):
        changed(Apply(site, lambda x: x[..., :1], **where))


def test_a_function_of_a_pattern_or_of_scores():
    """Reversed heads, a sharpened row, squared scores: against patterns forced to be so."""
    model, batch = tiny("gpt2"), ragged(9, "left", lengths=(9, 6))
    seen, plain = [], model.run(batch, capture=["L1.pattern", "L1.scores"])

    def reverse(p):
        seen.append(tuple(p.shape))
        return p.flip(1)

    run = model.run(batch, capture=["L1H0.pattern", "L1.z"], edits=[Apply("L1.pattern", reverse)])
    assert seen == [(2, N_HEADS, 9, 9)]
    forced = model.run(batch, capture=["L1.z"], edits=[ForcePattern("L1.pattern", plain["L1.pattern"].flip(1))])
    assert_equal_to_rounding(run["L1.z"], forced["L1.z"])
    assert_equal_to_rounding(run["L1H0.pattern"], plain["L1.pattern"][:, -1])
    assert_equal_to_rounding(run.logits, model.run(batch, edits=[Apply("L1.pattern", reverse)]).logits)
    p = model.run(batch, capture=["L1.pattern"], edits=[Apply("L1H2.pattern@-1", torch.sqrt, rows=[1])])["L1.pattern"]
    assert_equal_to_rounding(p[1, 2, -1], plain["L1.pattern"][1, 2, -1].sqrt())
    p[1, 2, -1] = plain["L1.pattern"][1, 2, -1]
    assert_equal_to_rounding(p, plain["L1.pattern"])
    edits = [Apply("L1.scores", torch.square), Add("L1H1.scores", torch.arange(9.0))]
    p = model.run(batch, capture=["L1.pattern"], edits=edits)["L1.pattern"]
    scores = plain["L1.scores"].square().masked_fill(plain["L1.scores"].isinf(), -torch.inf)
    scores[:, 1] += torch.arange(9.0)
    real = batch.mask[:, None, :].expand(-1, N_HEADS, -1)
    assert_equal_to_rounding(p[real], scores.softmax(-1)[real])


def test_a_mean_by_position_is_that_of_the_token_at_its_place():
    model = tiny("llama")
    prompts, padded = [[5, 6, 7, 8], [9, 10, 11, 12]], Batch.of([[3, 4], [9, 10, 11]], side="left")
    z = model.run(prompts, capture=["z"])
    mean = model.mean(prompts, by="position")
    for i in range(N_LAYERS):
        assert_equal_to_rounding(mean[i], z[f"L{i}.z"].mean(0))
    ragged_mean = model.mean([[5, 6, 7, 8], [9, 10]], by="position")
    assert_equal_to_rounding(ragged_mean[1, 3], z["L1.z"][0, 3])
    edits = ablate_heads(["L1H2"], how="mean", mean=mean, by="position")
    found = model.run(padded, capture=["L1H2.z"], edits=edits)["L1H2.z"]
    assert_close(found[0, 1:], mean[1, :2, 2])
    assert_close(found[1], mean[1, :3, 2])
    whole = model.run(padded, capture=["L1.z"], edits=[Ablate("z", "mean", mean, by="position")])["L1.z"]
    assert_close(whole[0, 1:], mean[1, :2])
    at_end = [Ablate("L1H2.z@-1", "mean", mean[1, :, 2], by="position")]
    assert_close(model.run(padded, capture=["L1H2.z@-1"], edits=at_end)["L1H2.z@-1"], mean[1, [1, 2], 2])
    for wrong, why in (
        (lambda: model.run([[5, 6, 7, 8, 9]], edits=edits), "a prompt has 5 tokens"),
        (lambda: ablate_heads(["L1H2"], how="mean", mean=mean), r"expected \[layer head d_head\]"),
        (lambda: ablate_heads(["L1H2"], how="zero", by="position"), "by='position'"),
        (lambda: model.mean(prompts, by="token"), "by='token'"),
        (lambda: model.mean(prompts, "pattern"), "no mean"),
    ):
        with pytest.raises(SiteError, match=why):
            wrong()


def test_a_value_of_each_token_is_no_mean_of_each_layer():
    z = torch.randn(2, 5, 4, 3)
    per_token = torch.randn(2, 5, 3)  # [batch pos d_head]: as many axes as [layer head d_head]
    mask = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(SiteError, match=r"is no \[layer head d_head\] of 4 heads; .* use Replace"):
        apply_edits(z, [Ablate("L1H2.z", "mean", per_token)], layer=1, mask=mask)
    means = torch.randn(2, 4, 3)
    after = apply_edits(z, [Ablate("L1H2.z", "mean", means)], layer=1, mask=mask)
    assert torch.equal(after[:, :, 2], means[1, 2].expand(2, 5, 3))
