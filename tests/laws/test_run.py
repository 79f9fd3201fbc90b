"""Laws of running: where it starts and ends, what edits do, that a batch of edits is many runs in one."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, N_HEADS, N_LAYERS, build, ragged, subject, tiny
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

import interp
from interp.attention import hook
from interp.edits import (
    Ablate,
    Add,
    AttentionBias,
    ForcePattern,
    KnockOut,
    Noise,
    Replace,
    Scale,
    Uniform,
    ablate_heads,
)
from interp.errors import InterpError, SiteError
from interp.measurement.checks.laws import running
from interp.model import editing

PARALLEL = ("gpt_neox", "phi")


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


def editable(name):
    kinds = ["embed", "resid_pre", "resid_post", "q", "k", "v", "pattern", "z", "head_out", "attn_out"]
    kinds += ["mlp_in", "mlp_out", "logits"]
    kinds += [] if name in PARALLEL else ["resid_mid"]
    return kinds + ([] if name == "gpt_oss" else ["mlp_post"])


def test_replacing_by_itself_changes_nothing(name):
    running.what_is_replaced_by_itself_changes_nothing(subject(name, ragged(9, "left", lengths=(9, 6))))


def test_every_edit_moves_the_logits(name):
    running.an_edit_is_seen_and_moves_the_logits(subject(name, ragged(9, "unpadded", lengths=(9, 9))))


def test_the_stream_of_another_prompt_is_that_prompt(name):
    running.the_stream_of_another_prompt_is_that_prompt(subject(name, ragged(9, "unpadded", lengths=(9,))))


@pytest.mark.parametrize("side", ["unpadded", "left"])
def test_a_run_from_a_layer_on_is_the_whole_run(name, side):
    running.a_run_from_a_layer_on_is_the_whole_run(subject(name, ragged(9, side)))


def test_64_edits_in_one_batch_are_64_runs(name):
    model, generator = tiny(name), torch.Generator().manual_seed(3)
    prompt = ragged(8, "unpadded", lengths=(8,)).ids
    heads = torch.randint(0, N_LAYERS * N_HEADS, (64,), generator=generator).tolist()
    places = [divmod(h, N_HEADS) for h in heads]
    edits = [Ablate(f"L{layer}H{h}.z", rows=row) for row, (layer, h) in enumerate(places)]
    together = model.run(prompt.expand(64, -1), edits=edits).logits
    alone = {place: model.run(prompt, edits=ablate_heads([place])).logits[0] for place in set(places)}
    for row, place in enumerate(places):
        assert_equal_to_rounding(together[row], alone[place])


def test_rows_carry_edits_of_different_kinds():
    model, prompt = tiny("llama"), ragged(8, "unpadded", lengths=(8,)).ids
    value = torch.linspace(-1, 1, model.info.d_model)
    edits = [
        lambda rows: Ablate("L0H1.z", rows=rows),
        lambda rows: Scale("L0.mlp_out", 0.3, rows=rows),
        lambda rows: Replace("L1.resid_pre@2", value, rows=rows),
        lambda rows: Add("L0.resid_post", value, rows=rows, positions=[0, -1]),
        lambda rows: KnockOut("L1H2.pattern", keys=0, rows=rows),
        lambda rows: KnockOut("L1H2.pattern", pairs=[(4, 2), (-1, 0)], rows=rows, renormalise=False),
        lambda rows: Uniform("L0.pattern", rows=rows),
        lambda rows: AttentionBias("L1.pattern", 0.1 * torch.arange(8.0), rows=rows),
        lambda rows: Ablate("L0H3.q", rows=rows),
        lambda rows: Replace("L0H1.k@3", torch.ones(8), rows=rows),
        lambda rows: Noise("L0.attn_out", 0.5, seed=4, rows=rows),
        lambda rows: Scale("L1H2.head_out", -1.0, rows=rows),
    ]
    plain = model.run(prompt).logits
    together = model.run(prompt.expand(len(edits), -1), edits=[make(row) for row, make in enumerate(edits)]).logits
    for row, make in enumerate(edits):
        alone = model.run(prompt, edits=[make(0)]).logits
        assert_equal_to_rounding(together[row], alone[0], msg=str(row))
        assert (alone - plain).abs().max() > 1e-4, row


def test_positions_count_the_real_tokens():
    model, value = tiny("gpt2"), torch.linspace(-1, 1, 64)
    batch = ragged(9, "left", lengths=(9, 6, 4))
    forms = [2, -2, torch.tensor([3, -1, 0]), [1, -1], torch.tensor(1)]
    for positions in forms:
        together = model.run(batch, edits=[Add("L0.resid_post", value, positions=positions)]).logits
        for row in range(3):
            of_row = positions[row] if isinstance(positions, torch.Tensor) and positions.ndim else positions
            ids = batch.ids[row, batch.mask[row]]
            alone = model.run(ids, edits=[Add("L0.resid_post", value, positions=of_row)]).logits
            assert_equal_to_rounding(together[row, batch.mask[row]], alone[0])
    roles = torch.zeros(3, 9, dtype=torch.bool)
    roles[0, 2] = roles[1, 5] = roles[2, 7] = True
    by_mask = model.run(batch, edits=[Add("L0.resid_post", value, positions=roles)]).logits
    by_index = model.run(batch, edits=[Add("L0.resid_post", value, positions=torch.tensor([2, 2, 2]))]).logits
    assert_close(by_mask, by_index, atol=0, rtol=0)


def test_the_captured_pattern_forced_changes_nothing(name):
    model, batch = tiny(name), ragged(9, "left", lengths=(9, 6))
    plain = model.run(batch, capture=["pattern"])
    for site, p in plain.acts.items():
        edited = model.run(batch, edits=[ForcePattern(site, p)])
        assert_close(edited.logits[batch.mask], plain.logits[batch.mask], atol=2e-4, rtol=2e-4)
        one = model.run(batch, edits=[ForcePattern(f"L{site.first}H2.pattern", p[:, 2])])
        assert_close(one.logits[batch.mask], plain.logits[batch.mask], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "gpt_oss"])
def test_what_is_knocked_out_is_zero_and_the_rest_sums_to_one(name):
    model, batch = tiny(name), ragged(9, "unpadded", lengths=(9, 9))
    whole = model.run(batch, capture=["L1H3.pattern"])["L1H3.pattern"]
    cut = [KnockOut("L1H3.pattern", queries=[4, 5], keys=2), KnockOut("L1H3.pattern", pairs=[(7, 1)])]
    after = model.run(batch, capture=["L1H3.pattern"], edits=cut)["L1H3.pattern"]
    for i, j in ((4, 2), (5, 2), (7, 1)):
        assert not after[:, i, j].any()
        assert_close(after[:, i] * (1 - whole[:, i, j, None]), whole[:, i].index_fill(-1, torch.tensor(j), 0.0))
    assert_close(after.sum(-1), torch.ones_like(after[..., 0]))
    lost = [KnockOut("L1H3.pattern", keys=0, renormalise=False)]
    after = model.run(batch, capture=["L1H3.pattern"], edits=lost)["L1H3.pattern"]
    assert_close(after, whole.index_fill(-1, torch.tensor(0), 0.0))
    alone = model.run(batch, capture=["L1H3.pattern"], edits=[KnockOut("L1.pattern", keys=0)])["L1H3.pattern"]
    assert not alone[:, 0].any()  # the first query has no other key


def test_uniform_rows_spread_over_what_is_visible(name):
    model, batch = tiny(name), ragged(9, "left", lengths=(9, 6))
    p = model.run(batch, capture=["L0.pattern"], edits=[Uniform("L0.pattern", queries=-1)])["L0.pattern"]
    assert_close(p[0, :, -1], torch.full_like(p[0, :, -1], 1 / 9))
    assert_close(p[1, :, -1, 3:], torch.full_like(p[1, :, -1, 3:], 1 / 6))


def test_a_bias_before_the_softmax():
    model, batch = tiny("llama"), ragged(9, "unpadded")
    bias = torch.randn(9, 9)
    plain = model.run(batch, capture=["L0.pattern"])["L0.pattern"]
    p = model.run(batch, capture=["L0.pattern"], edits=[AttentionBias("L0.pattern", bias)])["L0.pattern"]
    expected = plain * bias.exp()
    expected = expected / expected.sum(-1, keepdim=True)
    assert_equal_to_rounding(p, expected)
    some = AttentionBias("L0.pattern", bias, positions=[7, 8])  # of queries
    last = model.run(batch, capture=["L0.pattern"], edits=[some])["L0.pattern"]
    assert_equal_to_rounding(last[:, :, 7:], expected[:, :, 7:])
    assert_equal_to_rounding(last[:, :, :7], plain[:, :, :7])


GENERATED = {
    "z": [Ablate("L0H1.z"), Scale("L1.mlp_out", 0.5)],
    "stream": [
        Noise("L0.mlp_out", 0.7),
        Add("L0.resid_post", torch.linspace(-2, 2, 64), positions=-1),
        Add("L1.attn_out", torch.ones(64)),
    ],
    "attention": [KnockOut("L0.pattern", keys=1), Scale("L1H1.k", 0.0), Uniform("L1H0.pattern")],
}


@pytest.mark.parametrize("edits", GENERATED.values(), ids=GENERATED)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mistral", "gpt_oss"])
def test_generation_with_a_cache_is_generation_without(name, edits):
    model, prompts = tiny(name), [[5, 6, 7, 8], [9, 10]]
    cached = model.generate(prompts, edits=edits, max_new_tokens=16)
    assert cached.shape == (2, 20)
    assert_close(model.generate(prompts, edits=edits, max_new_tokens=16, use_cache=False), cached, atol=0, rtol=0)
    with editing(model, edits):
        assert_close(model.generate(prompts, max_new_tokens=16), cached, atol=0, rtol=0)
    assert (model.generate(prompts, max_new_tokens=16) != cached).any()


def test_a_context_of_edits_reaches_every_call():
    model, batch = tiny("llama"), ragged(9, "unpadded")
    edits, more = [Ablate("L0H1.z")], [KnockOut("L1.pattern", keys=0)]
    expected, both = model.run(batch, edits=edits).logits, model.run(batch, edits=[*edits, *more]).logits
    with editing(model, edits):
        assert_equal_to_rounding(model.run(batch).logits, expected)
        with torch.no_grad():
            assert_equal_to_rounding(model.torch_module(batch.ids, use_cache=False).logits, expected)
        with editing(model, more):
            assert_equal_to_rounding(model.run(batch).logits, both)
            with torch.no_grad():
                assert_equal_to_rounding(model.torch_module(batch.ids, use_cache=False).logits, both)
        assert_equal_to_rounding(model.run(batch, edits=more).logits, both)


def trace(module):
    return (
        {k: v.clone() for k, v in module.state_dict().items()},
        {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
            for n, m in module.named_modules()
        },
        {n: m.training for n, m in module.named_modules()},
        module.config._attn_implementation,
        [p.grad for p in module.parameters()],
    )


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind(name, error):
    module = build(name).train()
    model, batch = interp.load(module), ragged(9, "left", lengths=(9, 6))
    weights, *before = trace(module)
    kinds = [k for k in editable(name) if k != "logits"]
    resid = model.run(batch, capture=["L1.resid_pre"])["L1.resid_pre"]

    def raises(x):
        raise error

    model.run(batch, capture=kinds, gradients=True)
    for kind in kinds:
        with pytest.raises(error):
            model.run(batch, capture={kind: raises}, edits=[Scale("L1.resid_post", 0.5)])
        if kind != "embed":
            with pytest.raises(error):
                model.run(batch, start=(1, resid), capture={f"L1.{kind}": raises}, edits=[Uniform("L1.pattern")])
    with (
        pytest.raises(SiteError, match="does not broadcast"),
        editing(model, [Replace("L1.resid_post", torch.ones(3))]),
    ):
        model.generate(batch, max_new_tokens=2)
    after_weights, *after = trace(module)
    assert after == before
    for key, value in weights.items():
        assert_close(after_weights[key], value, atol=0, rtol=0)
    assert hook._active.get() is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"capture": ["L1.resid_pots"]}, "unknown site kind 'resid_pots'; did you mean 'resid_post'"),
        ({"capture": ["L2.resid_post"]}, "L2.resid_post: layer 2 is out of range; the model has 2 layers"),
        ({"capture": ["L0H2.k"]}, "head 2 is out of range; there are 2 key-value heads"),
        ({"capture": ["L0.z@9"]}, "L0.z@9: position 9 is out of range; the prompt has 5 tokens"),
        ({"capture": ["L0.z@-6"]}, "position -6 is out of range; the prompt has 5 tokens"),
        ({"capture": ["L1.z"], "stop": 0}, "L1.z: layer 1 is not run; this run has layers 0 to 0"),
        ({"capture": ["logits"], "stop": 0}, "logits: the run stops after layer 0"),
        ({"capture": ["embed"], "start": (1, torch.zeros(2, 5, 64))}, "embed: the run starts at layer 1"),
        ({"start": (1, torch.zeros(2, 4, 64))}, r"start: a residual of shape \(2, 4, 64\); expected .*\(2, 5, 64\)"),
        ({"start": (7, torch.zeros(2, 5, 64))}, "start at layer 7 is out of range"),
        ({"stop": -1}, "stop at layer -1 is out of range"),
        ({"edits": [Scale("L0.norm_scale", 2.0)]}, "L0.norm_scale: the divisor of a norm is a consequence"),
        (
            {"edits": [Replace("L0.mlp_out", torch.ones(65))]},
            r"value of shape \(65,\) does not broadcast to \(2, 5, 64\)",
        ),
        ({"edits": [Replace("L0H1.z@2", torch.ones(3, 8))]}, r"L0H1.z@2: Replace value of shape \(3, 8\) .* \(2, 8\)"),
        ({"edits": [ForcePattern("L0H1.pattern", torch.ones(4, 4))]}, r"\(4, 4\) does not broadcast to \(2, 5, 5\)"),
        ({"edits": [Ablate("L0.z", rows=2)]}, "L0.z: row 2 is out of range; the batch has 2 rows"),
        ({"edits": [Ablate("L0.z", rows=torch.ones(3, dtype=torch.bool))]}, r"rows as a mask has shape \(3,\)"),
        ({"edits": [Ablate("L0.z", positions=torch.tensor([1, 2, 3]))]}, r"expected one per row, \(2,\)"),
        ({"edits": [Ablate("L0.z", positions=torch.ones(2, 4).bool())]}, r"a mask of positions has shape \(2, 4\)"),
        ({"edits": [KnockOut("L0.pattern", keys=5)]}, "position 5 is out of range; the prompt has 5 tokens"),
        ({"edits": [KnockOut("L0.pattern", pairs=torch.ones(4, 4).bool())]}, r"expected a bool mask .*\(5, 5\)"),
        ({"edits": [Replace("L1.resid_post", torch.tensor(torch.nan))]}, "not finite after layer 1 at 10 of 10 tokens"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InterpError, match=message):
        tiny("llama").run(torch.arange(3, 13).view(2, 5), **call)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KnockOut("L0.z"), "L0.z: KnockOut edits attention; write a site like L3H5.pattern"),
        (lambda: KnockOut("L0.pattern", keys=0, pairs=[(1, 0)]), "takes `pairs`, or `queries` and `keys`"),
        (lambda: Scale("L0.z@3", 2.0, positions=1), "names a position already"),
        (lambda: Ablate("L0.z", "resample"), "resample ablation takes the other prompts' activation"),
        (lambda: Ablate("L0.zz"), "unknown site kind 'zz'"),
    ],
)
def test_what_is_no_edit(make, message):
    with pytest.raises(SiteError, match=message):
        make()
