"""Laws on architectures outside transformers' attention interface, which `lens` alone can run."""

import pytest
import torch
from agreement import OUTSIDE, on
from tiny_models import D_MODEL, N_HEADS, N_LAYERS, build, ragged
from tolerance import assert_equal_to_rounding

import interp
from interp.attention import Entropy, Offset, Rows
from interp.edits import Ablate, KnockOut, Replace, Scale

ALL = pytest.mark.parametrize("name", OUTSIDE)


def sites(kind: str) -> list[str]:
    return [f"L{layer}.{kind}" for layer in range(N_LAYERS)]


@ALL
@pytest.mark.parametrize("side", ["unpadded", "left"])
def test_logits_are_those_of_transformers(name, side):
    tokens = ragged(14, side, lengths=(14, 9, 11))
    given = {"attention_mask": tokens.mask.long()}
    if name in {"gptj", "codegen", "gpt_neo"}:
        given["position_ids"] = tokens.positions
    with torch.no_grad():
        own = build(name)(tokens.ids, **given).logits
    real = tokens.mask[..., None]
    assert_equal_to_rounding(on("lens", name).run(tokens).logits * real, own * real)


@ALL
def test_components_sum_to_the_residual(name):
    kinds = [*sites("attn_out"), *sites("mlp_out"), "embed", f"L{N_LAYERS - 1}.resid_post"]
    run = on("lens", name).run(ragged(14, "unpadded"), capture=kinds)
    total = run["embed"] + run.stack("attn_out").sum(0) + run.stack("mlp_out").sum(0)
    want = run[f"L{N_LAYERS - 1}.resid_post"]
    assert float((total - want).norm() / want.norm()) < 1e-5


@ALL
def test_heads_sum_to_what_attention_adds(name):
    run = on("lens", name).run(ragged(14, "unpadded"), capture=["head_out", "attn_out"])
    for layer in range(N_LAYERS):
        bias = run[f"L{layer}.attn_out"] - run[f"L{layer}.head_out"].sum(2)
        torch.testing.assert_close(bias, bias[:1, :1].expand_as(bias), rtol=0, atol=2e-5)


@ALL
def test_attention_is_softmax_of_queries_and_keys_times_values(name):
    run = on("lens", name).run(ragged(14, "unpadded"), capture=["q", "k", "v", "pattern", "z"])
    for layer in range(N_LAYERS):
        q, k, v, z = (run[f"L{layer}.{kind}"].transpose(1, 2) for kind in "qkvz")
        pattern = run[f"L{layer}.pattern"]
        assert_equal_to_rounding(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        group = q.shape[1] // k.shape[1]
        assert_equal_to_rounding(pattern @ v.repeat_interleave(group, 1), z)
        if name not in {"bloom", "mpt"}:  # a bias by distance is added to their scores
            scores = q @ k.repeat_interleave(group, 1).mT
            scale = 1.0 if name == "gpt_neo" else q.shape[-1] ** -0.5
            ours = (scale * scores).masked_fill(pattern == 0, -torch.inf).softmax(-1)
            assert_equal_to_rounding(ours, pattern)


@ALL
def test_edits_act_where_they_say(name):
    tokens, model = ragged(14, "unpadded"), on("lens", name)
    plain = model.run(tokens, capture=["L1.pattern", "L1.z", "L1.q"])
    cut = model.run(tokens, edits=[KnockOut("L1H2.pattern", keys=0)], capture=["L1.pattern"])
    assert not cut["L1.pattern"][:, 2, :, 0].any()
    assert_equal_to_rounding(cut["L1.pattern"][:, 2, 1:].sum(-1), torch.ones(len(tokens.ids), 13))
    torch.testing.assert_close(cut["L1.pattern"][:, 3], plain["L1.pattern"][:, 3], rtol=0, atol=0)
    assert not torch.allclose(cut.logits, plain.logits, atol=1e-3)
    for site in ("L1.q", "L1.z", "L1.pattern"):
        same = model.run(tokens, edits=[Replace(site, plain[site])]).logits
        assert_equal_to_rounding(same, plain.logits, msg=site)
    gone = model.run(tokens, edits=[Ablate("L1.z")], capture=["L1.z", "L1.head_out"])
    assert not gone["L1.z"].any()
    assert not gone["L1.head_out"].any()


@ALL
def test_queries_of_zero_attend_evenly(name):
    tokens, model = ragged(5, "unpadded", lengths=(5, 5)), on("lens", name)
    pattern = model.run(tokens, edits=[Scale("L1.q", 0.0)], capture=["L1.pattern"])["L1.pattern"]
    if name in {"bloom", "mpt"}:
        assert bool((pattern[:, 0, -1].diff() > 0).all())  # what is left is their bias: nearer keys get more
    else:
        uniform = torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None]
        assert_equal_to_rounding(pattern, uniform.expand_as(pattern))


@ALL
def test_start_and_stop(name):
    tokens, model = ragged(14, "unpadded"), on("lens", name)
    full = model.run(tokens, capture=["L1.resid_pre"])
    assert_equal_to_rounding(model.run(tokens, start=(1, full["L1.resid_pre"])).logits, full.logits)
    short = model.run(tokens, stop=0, capture=["L0.resid_post"])
    assert short.logits is None
    torch.testing.assert_close(short["L0.resid_post"], full["L1.resid_pre"], rtol=0, atol=0)


@ALL
def test_statistics_are_those_of_the_pattern(name):
    tokens, model = ragged(14, "unpadded"), on("lens", name)
    rows = torch.tensor([[2, 5]]).expand(len(tokens.ids), -1)
    asked = {"offset": Offset(1), "entropy": Entropy(), "rows": Rows(rows)}
    found = model.attention(tokens, asked)
    pattern = model.run(tokens, capture=["pattern"]).stack("pattern")
    assert_equal_to_rounding(found["offset"][..., 1:], pattern.diagonal(-1, -2, -1))
    assert_equal_to_rounding(found["rows"], pattern[:, :, :, [2, 5]])
    assert_equal_to_rounding(found["entropy"], torch.special.entr(pattern).sum(-1))


@ALL
def test_gradient_is_the_finite_difference(name):
    tokens, model = ragged(8, "unpadded"), on("lens", name)
    run = model.run(tokens, capture=["L0H1.z", "L1.pattern"], gradients=True)
    grads = torch.autograd.grad(run.logits[:, -1, 5].sum(), [run["L0H1.z"], run["L1.pattern"]])
    for site, grad in zip(("L0H1.z", "L1.pattern"), grads, strict=True):
        x = run[site].detach()
        step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * (x != 0)
        up, down = (model.run(tokens, edits=[Replace(site, x + s * step)]).logits[:, -1, 5].sum() for s in (1, -1))
        torch.testing.assert_close((grad * step).sum(), (up - down) / 2, rtol=2e-2, atol=2e-4, msg=site)


@ALL
def test_the_model_is_as_it_was(name):
    model, tokens = interp.load(build(name), backend="lens"), ragged(8, "unpadded")
    before = {k: v.clone() for k, v in model.torch_module.state_dict().items()}
    logits, hooks = model.run(tokens).logits, count_hooks(model.bridge)

    def fail(x):
        raise KeyboardInterrupt

    for capture in ({"L1.resid_pre": fail}, {"L1.pattern": fail}, {"L0.z": fail}):
        with pytest.raises(KeyboardInterrupt):
            model.run(tokens, capture=capture, start=(0, model.run(tokens, capture=["embed"])["embed"]))
    assert count_hooks(model.bridge) == hooks
    for key, value in model.torch_module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    torch.testing.assert_close(model.run(tokens).logits, logits, rtol=0, atol=0)


def count_hooks(bridge) -> int:
    total = 0
    for module in bridge.modules():
        own = (module._forward_hooks, module._forward_pre_hooks, getattr(module, "fwd_hooks", ()))
        total += sum(map(len, own)) + ("forward" in module.__dict__)
    return total


@ALL
def test_weights_reproduce_values_and_outputs(name):
    model = on("lens", name)
    weights = model.weights()
    run = model.run(ragged(8, "unpadded"), capture=["resid_pre", "v", "z", "attn_out"])
    for layer in range(N_LAYERS):
        w = weights[layer]
        x = run[f"L{layer}.resid_pre"]
        read = x if w.norm is None else w.norm(x)
        v = torch.einsum("bpm,hmd->bphd", read, w.w_v) + w.b_v
        torch.testing.assert_close(v, run[f"L{layer}.v"], rtol=0, atol=2e-5)
        out = torch.einsum("bphd,hdm->bpm", run[f"L{layer}.z"], w.w_o) + w.b_o
        torch.testing.assert_close(out, run[f"L{layer}.attn_out"], rtol=0, atol=2e-5)
    assert weights.w_e.shape[-1] == D_MODEL
    assert len(w.w_q) == N_HEADS


@pytest.mark.parametrize("name", ["gptj", "gpt_neo", "bloom"])
def test_generation_under_edits_is_greedy_decoding_under_edits(name):
    model, edits = on("lens", name), [Ablate("L0H1.z"), KnockOut("L1.pattern", keys=0)]
    ids = ragged(6, "unpadded", lengths=(6, 6)).ids
    found = model.generate(ids, edits=edits, max_new_tokens=4)
    for _ in range(4):
        ids = torch.cat([ids, model.run(ids, edits=edits).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids)


def test_what_is_missing_says_why():
    with pytest.raises(interp.InterpError, match=r"L0.resid_mid: attention and MLP read the same residual stream"):
        on("lens", "gptj").run([[1, 2]], capture=["resid_mid"])
    with pytest.raises(interp.InterpError, match='backend="lens"'):
        interp.load(build("gptj"))
