"""`interp.load` finds the backend of what it is given, and imports no peer that it does not need."""

import subprocess
import sys

import pytest
import torch
from nnsight import NNsight, TransformersModel
from tiny_models import build, ragged
from tolerance import assert_equal_to_rounding

import interp
from interp.loading.choose import backend_for, owner


def test_a_bridge_is_run_by_lens(bridge_of):
    bridge = bridge_of("gpt2")
    model = interp.load(bridge)
    assert (model.backend, model.bridge) == ("lens", bridge)
    assert model.tokenizer.get_vocab() == bridge.tokenizer.get_vocab()  # read anew, without the bridge's own BOS
    assert model.batch("w3 w4").ids.tolist()[0][-2:] == [3, 4]


def test_an_nnsight_model_is_run_by_nnsight(tokenizer):
    for given in (TransformersModel(build("gpt2"), tokenizer=tokenizer), NNsight(build("gpt2"))):
        model = interp.load(given)
        assert (model.backend, model.nnsight_model) == ("nnsight", given)
    assert "through nnsight" in repr(model)


def test_a_transformers_model_is_run_as_asked_and_left_alone():
    own, tokens = build("gpt2"), ragged(8, "unpadded")
    kinds = [type(m) for m in own.modules()]
    with torch.no_grad():
        want = own(tokens.ids).logits
    for backend in ("hf", "lens", "nnsight"):
        model = interp.load(own, backend=backend)
        assert model.backend == backend
        assert_equal_to_rounding(model.run(tokens).logits, want)
    assert [type(m) for m in own.modules()] == kinds


@pytest.mark.parametrize("backend", ["lens", "nnsight"])
def test_a_name_is_loaded_for_any_backend(backend):
    model, tokens = interp.load("zoo:planted-induction", backend=backend), torch.arange(3, 15)[None]
    assert model.info.name == "zoo:planted-induction"
    want = interp.load("zoo:planted-induction").run(tokens).logits
    torch.testing.assert_close(model.run(tokens).logits, want, rtol=0, atol=1e-4)


def test_what_does_not_fit_is_refused(bridge_of):
    with pytest.raises(interp.InterpError, match="unknown backend 'lenss'; did you mean 'lens'"):
        interp.load(build("gpt2"), backend="lenss")
    with pytest.raises(interp.InterpError, match="unknown backend ''; valid choices: hf, lens, nnsight"):
        interp.load(build("gpt2"), backend="")
    with pytest.raises(interp.InterpError, match="TransformerBridge is run by backend 'lens', not 'hf'"):
        interp.load(bridge_of("gpt2"), backend="hf")
    with pytest.raises(interp.InterpError, match="NNsight: this nnsight model has no weights here"):
        interp.load(NNsight(build("gpt2").to("meta")))
    with pytest.raises(interp.InterpError, match="TransformerLens cannot bridge"):
        interp.load(unknown_family(), backend="lens")


def unknown_family():
    model = build("gpt2")
    model.__class__ = type("UnheardOfForCausalLM", (type(model),), {})
    return model


def test_choosing_imports_no_peer():
    code = (
        "import sys; from interp.loading.choose import backends, backend_for, owner; "
        "assert owner(object()) is None and backend_for('gpt2').name == 'hf'; "
        "assert list(backends()) == ['hf', 'lens', 'nnsight']; "
        "assert not {'torch', 'nnsight', 'transformer_lens'} & set(sys.modules), 'a peer was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nnsight_may_have_been_imported_first():
    code = """
import nnsight, torch, transformers, interp
config = transformers.GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=16)
model = interp.load(nnsight.NNsight(transformers.AutoModelForCausalLM.from_config(config)))
assert model.run([[1, 2, 3]], capture=["L0.z"]).acts
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_object_says_where_it_belongs():
    assert owner(NNsight(torch.nn.Linear(2, 2))).name == "nnsight"
    assert owner(build("gpt2")) is None
    assert backend_for("zoo:planted-induction", "lens").name == "lens"
