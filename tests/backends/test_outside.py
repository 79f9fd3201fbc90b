"""Laws on architectures outside transformers' attention interface, which `lens` alone can run."""

import pytest
import torch
from agreement import OUTSIDE, on
from tiny_models import N_LAYERS, build, ragged
from tolerance import assert_equal_to_rounding

import interp
from interp.edits import Ablate, Scale
from interp.measurement.checks import check_backend

ALL = pytest.mark.parametrize("name", OUTSIDE)


@ALL
def test_every_law_holds(name):
    assert check_backend(lambda module: interp.load(module, backend="lens"), modules={name: lambda: build(name)}) == {}


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name not in {"bloom", "mpt"}])  # theirs have a bias
def test_a_pattern_is_the_softmax_of_queries_and_keys(name):
    run = on("lens", name).run(ragged(14, "unpadded"), capture=["q", "k", "pattern"])
    for layer in range(N_LAYERS):
        q, k = (run[f"L{layer}.{kind}"].transpose(1, 2) for kind in "qk")
        pattern = run[f"L{layer}.pattern"]
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT
        scale = 1.0 if name == "gpt_neo" else q.shape[-1] ** -0.5
        ours = (scale * scores).masked_fill(pattern == 0, -torch.inf).softmax(-1)
        assert_equal_to_rounding(ours, pattern)


@ALL
def test_heads_that_are_gone_write_nothing(name):
    gone = on("lens", name).run(ragged(14, "unpadded"), edits=[Ablate("L1.z")], capture=["L1.z", "L1.head_out"])
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


def test_what_is_missing_says_why():
    with pytest.raises(interp.InterpError, match=r"L0.resid_mid: attention and MLP read the same residual stream"):
        on("lens", "gptj").run([[1, 2]], capture=["resid_mid"])
    with pytest.raises(interp.InterpError, match='backend="lens"'):
        interp.load(build("gptj"))
