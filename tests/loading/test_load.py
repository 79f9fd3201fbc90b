"""Loading: what works loads the same from everywhere; what does not says what was wrong with what was given."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, N_LAYERS, build, ragged
from tolerance import assert_equal_to_rounding

import interp
from interp.environment import without_bars
from interp.errors import ModelLoadError, NotApplicable
from interp.loading import checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def refused(source, message, **options):
    with pytest.raises(ModelLoadError, match=message) as caught:
        interp.load(source, **options)
    text = str(caught.value)
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folder_gives_the_model_that_was_saved(name, tmp_path):
    module = build(name)
    module.save_pretrained(tmp_path)
    model, batch = interp.load(tmp_path), ragged(20, "left")
    assert_equal_to_rounding(model.run(batch).logits[batch.mask], interp.load(module).run(batch).logits[batch.mask])
    assert model.tokenizer is None
    assert model.info.family == type(module).__name__
    assert model.info.name == str(tmp_path)
    assert len(model.info.weights_sha256) == 64
    assert model.info.dtype == "float32"
    assert not model.torch_module.training


def test_sizes_are_those_observed(saved):
    info = interp.load(saved).info
    sizes = (info.n_layers, info.n_heads, info.n_kv_heads, info.d_model, info.d_head, info.d_vocab, info.context)
    assert sizes == (2, 8, 2, 64, 8, 64, 700)
    assert (info.attention_layers, info.windows, info.softcap, info.sink_logits) == ((0, 1), (None, None), None, False)
    json.dumps(info.as_dict())


@pytest.mark.parametrize(
    ("name", "windows", "softcap", "sinks"),
    [
        ("gemma2", (17, None), 3.0, False),
        ("mistral", (17, 17), None, False),
        ("gpt_oss", (17, None), None, True),
        ("qwen2", (None, None), None, False),
    ],
)
def test_traits_are_those_of_the_architecture(name, windows, softcap, sinks):
    info = interp.load(build(name)).info
    assert (info.windows, info.softcap, info.sink_logits) == (windows, softcap, sinks)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float64"])
def test_dtype(saved, dtype):
    model = interp.load(saved, dtype=dtype)
    assert model.info.dtype == str(dtype).removeprefix("torch.")
    assert {p.dtype for p in model.torch_module.parameters()} == {getattr(torch, model.info.dtype)}


def test_an_in_memory_model_keeps_what_it_is():
    module = build("gpt2").to(torch.float64).train()
    model = interp.load(module)
    assert model.torch_module is module
    assert module.training
    assert model.info.dtype == "float64"


def test_without_a_tokenizer_heads_are_detected_all_the_same(saved):
    found = interp.detect(interp.load(saved), ["previous_token"])
    assert len(found.table) == 16
    assert found.provenance["tokenizer"] is None


def test_no_such_folder(tmp_path):
    missing = str(tmp_path / "nothing")
    assert missing in refused(missing, "no folder")
    refused("./nothing", "no folder './nothing'")


def test_an_empty_name_is_not_the_current_folder(saved, monkeypatch):
    monkeypatch.chdir(saved)
    refused("", "an empty name")


def test_a_file_is_no_folder(copy):
    refused(copy / "config.json", "is a file; give the folder")


def test_a_folder_without_config(tmp_path):
    refused(tmp_path, "has no config.json")


def test_a_folder_called_like_a_model_of_the_hub(tmp_path, monkeypatch):
    """Results lie in `gpt2`: it is the model that is meant. Weights without a config are a broken checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "edges.csv").write_text("a")
    saved = tmp_path / "cache"
    build("llama").save_pretrained(saved)
    wanted = []
    monkeypatch.setattr(checkpoints, "snapshot", lambda name, revision: (saved, "c" * 40))
    monkeypatch.setattr(checkpoints, "fetch", lambda name, file, commit: wanted.append((name, file, commit)))
    assert interp.load("gpt2").info.commit == "c" * 40
    assert ("gpt2", "tokenizer.json", "c" * 40) in wanted

    def nowhere(name, revision):
        raise ModelLoadError("no such model")

    monkeypatch.setattr(checkpoints, "snapshot", nowhere)
    refused("gpt2", "'gpt2' has no config.json.*no model of the hub: no such model")
    (tmp_path / "gpt2" / "model.safetensors").write_text("a")
    refused("gpt2", "'gpt2' has no config.json: not a Hugging Face checkpoint folder$")


def test_a_broken_config(copy):
    (copy / "config.json").write_text("{ not json")
    refused(copy, "config of")
    (copy / "config.json").write_text('{"model_type": "nonesuch"}')
    refused(copy, "cannot understand the config of.*nonesuch")


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_truncated_weights(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert str(copy) in refused(copy, "corrupt weights|cannot load")


def test_overwritten_weights(copy):
    (copy / "model.safetensors").write_bytes(b"\xff" * 4096)
    refused(copy, "corrupt weights")


class Bomb:
    def __reduce__(self):
        return (print, ("a pickle was opened",))


def test_pickled_weights_are_never_opened(copy, capsys):
    (copy / "model.safetensors").unlink()
    torch.save({"bomb": Bomb()}, copy / "pytorch_model.bin")
    refused(copy, "only pickled weights .pytorch_model.bin., which can run code.*safe_serialization")
    assert "opened" not in capsys.readouterr().out


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    refused(copy, r"has no weights: no \*.safetensors")


def test_missing_weights_are_not_made_up(copy):
    path = copy / "model.safetensors"
    weights = load_file(path)
    removed = "model.layers.1.self_attn.q_proj.weight"
    del weights[removed]
    save_file(weights, path, metadata={"format": "pt"})
    refused(copy, f"lacks 1 weights of LlamaForCausalLM, which would be random: {removed}")


def test_weights_of_another_shape(copy):
    path = copy / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(3, 64)
    save_file(weights, path, metadata={"format": "pt"})
    refused(copy, r"layers.1.self_attn.q_proj.weight has shape \(3, 64\) in the file and \(64, 64\) by config.json")


SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize("cls", ["BertModel", "BertForSequenceClassification"])
def test_an_encoder_without_logits_of_tokens_in_a_folder(tmp_path, cls):
    getattr(transformers, cls)(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path)
    assert "Bert" in refused(tmp_path, "gives no logits of tokens|lacks .* weights of")


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_an_encoder_of_masked_tokens(tmp_path, family):
    """Attention both ways: runs, edits and statistics are those of the model; what presumes causality refuses."""
    config = getattr(transformers, f"{family}Config")(**SMALL)
    module = getattr(transformers, f"{family}ForMaskedLM")(config).eval()
    module.save_pretrained(tmp_path)
    model, ids = interp.load(tmp_path), torch.tensor([[5, 9, 3, 22]])
    assert not model.info.causal
    with torch.no_grad():
        assert torch.equal(model.run(ids).logits, module(ids).logits)
    run = model.run(ids, capture=["pattern", "z"], edits=interp.ablate_heads(["L0H1"]))
    assert run["L0.pattern"][..., 0, 3].min() > 0  # the first token sees the last
    assert not torch.allclose(run.logits, model.run(ids).logits)
    with pytest.raises(NotApplicable, match="presumes causal attention"):
        interp.analyze(model, "induction")


def test_a_model_of_images_is_refused_with_the_reason():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4)
    refused(transformers.ViTForImageClassification(config), "cannot be run on token ids alone")


@pytest.mark.parametrize("source", [None, 3, torch.nn.Linear(2, 2), {"a": 1}])
def test_what_is_no_source(source):
    refused(source, f"cannot load a {type(source).__name__}; give a hub id, a folder, zoo:NAME")


@pytest.mark.parametrize("dtype", ["float33", "int64", "FP16", "load", torch.int8])
def test_unknown_dtype(saved, dtype):
    refused(saved, "unknown dtype .*; use float32, bfloat16, float16, float64 or auto", dtype=dtype)


def test_unknown_device(saved):
    refused(saved, "cannot put the model on device 'nonesuch'", device="nonesuch")


def test_unknown_backend(saved):
    refused(saved, "unknown backend 'hff'; did you mean 'hf'", backend="hff")


@pytest.mark.parametrize("name", ["planted-inducton", "", "nonesuch"])
def test_unknown_zoo_name(name):
    text = refused(f"zoo:{name}", "valid names: .*planted-induction")
    assert ("did you mean 'planted-induction'" in text) == (name == "planted-inducton")


def test_a_hub_id_offline():
    text = refused(
        "someone/nothing-cached", "cannot read the config of 'someone/nothing-cached': no folder of that name"
    )
    assert len(text) < 600


def test_a_broken_tokenizer(copy):
    (copy / "tokenizer.json").write_text("{ not json")
    refused(copy, "cannot read the tokenizer in")


@pytest.mark.parametrize(
    "tokenizer", ["gpt2", 3, {}, torch.tensor([1, 2]), tokenizers.Tokenizer(tokenizers.models.BPE())]
)
def test_what_is_no_tokenizer(tokenizer):
    with pytest.raises(ModelLoadError, match="AutoTokenizer.from_pretrained"):
        interp.load(build("llama"), tokenizer=tokenizer)


def test_a_notebook_sees_the_facts_of_a_model_and_its_name_as_text():
    model = interp.load(build("mistral"))
    model.info = replace(model.info, name="<b>mine</b>")
    shown = model._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt;mine" in shown
    for fact in (f"{N_LAYERS} layers", "Sliding window", "hf"):
        assert fact in shown


def test_loading_shows_no_bar_and_leaves_a_hook_and_the_settings_of_bars_as_they_were(capfd, tmp_path):
    """In a notebook the bar over a tenth of a second stood there for good, in red."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    build("llama").save_pretrained(tmp_path)
    made = []

    def hook(factory, args, options):
        made.append(options)
        return factory(*args, **options)

    state = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    before = logging.set_tqdm_hook(hook)
    try:
        interp.load(str(tmp_path))
        interp.load("zoo:modular-addition")
        assert made == []
        assert logging.set_tqdm_hook(hook) is hook
        with pytest.raises(KeyError), without_bars():
            raise KeyError
        assert logging.set_tqdm_hook(hook) is hook
    finally:
        logging.set_tqdm_hook(before)
    assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == state
    assert "Loading weights" not in capfd.readouterr().err
