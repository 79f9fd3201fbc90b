"""Checkpoint folders that transformers would load as another model: each refused by name, or read as asked."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build

import interp
from interp.errors import ModelLoadError

TOKENS = [[5, 9, 3]]


@pytest.fixture
def folder(tmp_path):
    build("llama").save_pretrained(tmp_path)
    return tmp_path


def configure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, message, **options):
    with pytest.raises(ModelLoadError, match=message):
        interp.load(folder, **options)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_a_prefix_is_named_and_left_out_when_asked(folder, prefix):
    expected = interp.load(folder).run(TOKENS).logits
    rewrite(folder, lambda weights: {f"{prefix}{k}": v for k, v in weights.items()})
    refused(folder, f"keys of .* begin with '{prefix}'.*strip_prefix='{prefix}'")
    assert torch.equal(interp.load(folder, strip_prefix=prefix).run(TOKENS).logits, expected)


def test_layers_that_the_configuration_leaves_out(folder):
    configure(folder, num_hidden_layers=1)
    refused(folder, r"holds \d+ weights of layers that its configuration leaves out \(model.layers.1")


def test_a_weight_without_a_place_is_left_out_with_a_warning(folder, caplog):
    rewrite(folder, lambda weights: weights | {"value_head.weight": torch.zeros(1, 64)})
    interp.load(folder)
    assert "1 weights have no place in LlamaForCausalLM and are left out: value_head.weight" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int8, "I8"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.complex64, "C64")],
)
def test_weights_that_are_no_numbers_as_they_stand(folder, dtype, name):
    key = "model.layers.0.self_attn.q_proj.weight"
    rewrite(folder, lambda weights: weights | {key: (weights[key] * 10).to(dtype)})
    refused(folder, f"{key} in model.safetensors is {name}, and the configuration has no quantization_config")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../elsewhere.safetensors"}, "'../elsewhere.safetensors', which is not inside the folder"),
        ({"a": "/etc/x.safetensors"}, "which is not inside the folder"),
        ({"a": "pytorch_model.bin"}, "'pytorch_model.bin', which is no safetensors file"),
        ({"a": "gone.safetensors"}, "'gone.safetensors', which is not there"),
        ({}, "names no files"),
        (3, "cannot read model.safetensors.index.json"),
    ],
)
def test_an_index_is_not_followed_anywhere(folder, weight_map, message):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, message)


def test_what_is_hashed_is_what_is_read(tmp_path):
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    build("llama").save_pretrained(whole)
    before = interp.load(whole).info.weights_sha256
    save_file({"x": torch.zeros(3)}, whole / "unrelated.safetensors")
    assert interp.load(whole).info.weights_sha256 == before
    build("llama").save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    first = interp.load(sharded)
    (sharded / "model.safetensors.index.json").touch()
    save_file({"x": torch.zeros(3)}, sharded / "unrelated.safetensors")
    assert interp.load(sharded).info.weights_sha256 == first.info.weights_sha256
    assert torch.equal(first.run(TOKENS).logits, interp.load(whole).run(TOKENS).logits)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_that_a_configuration_names_is_not_loaded(folder, key):
    expected = interp.load(folder).run(TOKENS).logits
    configure(folder, **{key: "someone/kernel"})
    torch.testing.assert_close(interp.load(folder).run(TOKENS).logits, expected)


def test_dtype_auto_is_that_of_the_file(folder):
    rewrite(folder, lambda weights: {k: v.bfloat16() for k, v in weights.items()})
    configure(folder, dtype="bfloat16")
    assert interp.load(folder, dtype="auto").info.dtype == "bfloat16"
    assert interp.load(folder).info.dtype == "float32"


def test_an_adapter_folder_says_what_it_needs(tmp_path, monkeypatch, folder):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    refused(adapter, "is an adapter: reading it needs peft")
    (adapter / "adapter_config.json").write_text("{}")
    refused(adapter, "cannot read adapter_config.json|names no base model")


def test_models_without_numbers_are_refused():
    with torch.device("meta"):
        module = type(build("llama"))(build("llama").config)
    refused(module, "LlamaForCausalLM has no numbers in .*: it is on the meta device")
