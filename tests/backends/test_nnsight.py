"""What is particular to nnsight: runs are traces, and nothing stays behind."""

import pytest
import torch
from agreement import on
from nnsight import NNsight
from tiny_models import build, ragged
from tolerance import assert_equal_to_rounding

import interp
from interp.edits import Ablate, KnockOut


def test_captures_and_edits_happen_inside_a_trace(monkeypatch):
    model, tokens, inside = on("nnsight", "llama"), ragged(8, "unpadded"), []
    interleaver = model.nnsight_model.interleaver
    watched = {"L0.z": lambda x: inside.append(interleaver.interleaving) or x}
    watched["L1.pattern"] = watched["L1.resid_mid"] = watched["L0.z"]
    model.run(tokens, capture=watched, edits=[Ablate("L0H1.z"), KnockOut("L1H2.pattern", keys=0)])
    assert inside == [True, True, True]
    assert not interleaver.interleaving


def test_a_users_traces_go_on_working():
    wrapped, tokens = NNsight(build("llama")), ragged(8, "unpadded")
    model = interp.load(wrapped)
    run = model.run(tokens, capture=["L0.resid_post"])
    with torch.no_grad(), wrapped.trace(tokens.ids):
        own = wrapped.model.layers[0].output.save()
    assert_equal_to_rounding(own, run["L0.resid_post"])


def test_the_model_is_as_it_was_after_an_exception():
    module = build("llama")
    model, tokens = interp.load(module, backend="nnsight"), ragged(8, "unpadded")
    attention, plain = module.config._attn_implementation, model.run(tokens).logits

    def fail(x):
        raise ValueError("reducer")

    for site in ("L1.resid_pre", "L1.pattern", "L0.z", "logits"):
        with pytest.raises(ValueError, match="reducer"):
            model.run(tokens, capture={site: fail})
    assert module.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    torch.testing.assert_close(model.run(tokens).logits, plain, rtol=0, atol=0)
