"""Looking leaves no trace: weights, settings and hooks are as they were."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import (
    MOST,
    build,
    questions,
    ragged,
)
from torch.testing import assert_close

import interp
from interp.attention import Entropy, hook
from interp.edits import Ablate
from interp.errors import BackendError, SiteError
from interp.sites import Site


def snapshot(module):
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "modes": {name: m.training for name, m in module.named_modules()},
        "gradients": {name: (p.requires_grad, p.grad is None) for name, p in module.named_parameters()},
        "attention": {
            n: m.config._attn_implementation
            for n, m in module.named_modules()
            if isinstance(m, transformers.PreTrainedModel)
        },
        "config": module.config.to_dict(),
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()},
    }


def assert_unchanged(module, before):
    after = snapshot(module)
    weights, earlier = after.pop("weights"), before["weights"]
    assert list(weights) == list(earlier)
    for name, value in weights.items():
        assert_close(value, earlier[name], atol=0, rtol=0, msg=name)
    assert after == {k: v for k, v in before.items() if k != "weights"}
    assert hook._active.get() is None


@pytest.mark.parametrize("name", MOST)
def test_a_run_leaves_the_model_as_it_was(name):
    module = build(name)
    module.train()
    next(m for n, m in module.named_modules() if n.endswith("1")).eval()
    before = snapshot(module)
    model = interp.load(module)
    assert_unchanged(module, before)
    batch = ragged(12, "left", lengths=(12, 5))
    model.run(batch, capture=["q", "z"], edits=[Ablate(Site("z", 0, head=1))])
    model.attention(batch, questions(batch), layers=[0])
    model.mean(batch)
    model.ov_circuits()
    assert_unchanged(module, before)


@pytest.mark.parametrize("name", MOST)
def test_an_exception_inside_leaves_the_model_as_it_was(name):
    module = build(name).train()
    model = interp.load(module)
    before = snapshot(module)
    with pytest.raises(SiteError, match="does not broadcast"):
        model.run(ragged(12, "unpadded"), edits=[Ablate(Site("z", 1, head=0), "mean", torch.zeros(999))])
    assert_unchanged(module, before)
    with pytest.raises(BackendError, match="unknown attention method 'fusd'.*'fused'"):
        model.attention(ragged(12, "unpadded"), {"H": Entropy()}, method="fusd")
    assert_unchanged(module, before)

    def explode(part, args):
        raise KeyboardInterrupt

    handle = model.anatomy.attention[1].module.register_forward_pre_hook(explode)
    for look in (
        model.run,
        model.mean,
        lambda ids: model.attention(ids, {"H": Entropy()}),
        lambda _: interp.load(module),
    ):
        with pytest.raises(KeyboardInterrupt):
            look(torch.arange(3, 9)[None])
    handle.remove()
    assert_unchanged(module, before)


def test_the_eager_model_computes_the_same_bits_after_a_run():
    module = build("llama")
    ids = ragged(20, "unpadded").ids
    with torch.no_grad():
        before = module(ids, use_cache=False).logits
        interp.load(module).attention(ids, {"H": Entropy()})
        assert_close(module(ids, use_cache=False).logits, before, atol=0, rtol=0)
