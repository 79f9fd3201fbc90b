"""What is shown of an object is short: tensors as their shapes; and a wrong type is named with the right one."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny

import interp
from circuits.methods import find, names
from interp import tasks
from interp.attention import Entropy, Received
from interp.decompose import attribute, decompose, logit_lens, read_out, score_parts
from interp.edits import Add, ForcePattern, Replace
from interp.errors import InterpError, SchemaError, SiteError, TaskError
from interp.gradients import gradients
from interp.weights.composition import composition

LONGEST = 4000  # characters: all analyses there are, some words each
IDS = torch.randint(3, 64, (4, 80), generator=torch.Generator().manual_seed(0))


def things():
    """Everything public that holds tensors or much else, made on a model of four lines."""
    model, weights = tiny("gpt2"), tiny("gpt2").weights()
    batch = model.tokens(IDS)
    run = model.run(batch, capture=["z", "pattern", "resid_post", "mlp_post"])
    yield from (model, model.info, batch, run, model.attention(batch, {"entropy": Entropy()}))
    yield from (weights, weights[0], weights.mlp(0), weights.qk(0), weights.ov_circuits(), weights.final_norm)
    yield from (model.writes(0), model.reads(0), composition(weights, "k"))
    yield from (decompose(model, batch, position=None), attribute(model, batch, 5), logit_lens(model, batch))
    yield from (score_parts(model, batch, "L1H0"), gradients(model, batch, lambda x: x[:, -1, 3], ["z"]))
    yield from (Replace("L1.z", run["L1.z"]), Add("L1.resid_post", torch.randn(64)), Received(torch.rand(4, 80)))
    yield ForcePattern("L1.pattern", run["L1.pattern"])
    yield tasks.task("induction", model, n=8)
    yield tasks.repeated_random(model, lengths=[24], n_each=32, bos="none", seed=0)
    yield from (interp.analyses(), [find(name) for name in names()])


def test_nothing_is_shown_at_length():
    texts = [(type(thing).__name__, repr(thing)) for thing in things()]
    assert [(name, len(text)) for name, text in texts if len(text) > LONGEST] == []
    shown = dict(texts)
    assert "logits=<float32 4 x 80 x 64>" in shown["Run"]
    assert "... 8 in all" in shown["Run"]
    assert shown["FactoredMatrix"] == "FactoredMatrix(8 x 64 x 64, rank 8)"
    assert shown["Batch"] == "Batch(ids=<int64 4 x 80>, mask=<bool 4 x 80>)"


def test_a_wrong_type_is_told_the_right_one():
    model = tiny("gpt2")
    for wrong, error, reason in (
        (lambda: attribute(model, IDS, 1.5), TaskError, "answers are token ids or texts.*got 1.5"),
        (lambda: logit_lens(model, IDS, layers="all"), SchemaError, "layers: expected whole numbers.*got 'all'"),
        (lambda: decompose(model, IDS, neurons=["M3"]), SchemaError, "neurons: expected whole numbers.*got 'M3'"),
        (lambda: score_parts(model, IDS, (1, 5)), SiteError, r"named by text like embed, .*got tuple \(1, 5\)"),
        (lambda: interp.attention_view(model, IDS[:1], heads=[1.5]), InterpError, "1.5"),
        (lambda: interp.ablate_heads([3]), SiteError, "named by text.*got int 3"),
        (lambda: read_out(model, IDS[0].numpy()), SiteError, "expected vectors.*got ndarray"),
        (lambda: model.weights()["L3"], SiteError, "a layer is a whole number, counted from 0; got str 'L3'"),
        (lambda: model.single_token(None), TaskError, "expected a token id or a text; got NoneType"),
    ):
        with pytest.raises(error, match=reason):
            wrong()
    assert logit_lens(model, IDS, layers=1).layers == (1,)
    assert decompose(model, IDS, neurons=0)["M0N3"].shape == (4, 64)
    assert read_out(model, torch.ones(64)).shape == (64,)
