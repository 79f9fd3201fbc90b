"""Programs in Tracr's layout: a previous-token program made by hand gives what it must."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import interp
from interp.attention import Offset
from interp.errors import ModelLoadError

WORDS = {"BOS": 0, "a": 1, "b": 2, "compiler_pad": 3, "c": 4}
OUT = {"a": 0, "b": 1, "c": 2}
N = 6  # positions: the BOS's, which has no embedding, and five more
D = N + len(WORDS) + len(OUT)  # indices, words, outputs


def program(folder):
    """Looks one back and says what stands there: config and tensors by haiku's names."""
    key = N
    query, at, value, out = torch.zeros(D, key), torch.zeros(D, key), torch.zeros(D, key), torch.zeros(key, D)
    for i in range(1, N):
        query[i, i - 1] = at[i, i] = 30.0
    at[N + WORDS["BOS"], 0] = 30.0
    for word, i in OUT.items():
        value[N + WORDS[word], i] = 1.0
        out[i, N + len(WORDS) + i] = 1.0
    positions, words = torch.zeros(N, D), torch.zeros(len(WORDS), D)
    positions[1:, 1:N] = torch.eye(N - 1)
    words[:, N : N + len(WORDS)] = torch.eye(len(WORDS))
    unembed = torch.zeros(D, len(OUT))
    unembed[-len(OUT) :] = torch.eye(len(OUT))
    layer = "transformer/layer_0/"
    state = {"token_embed/embeddings": words, "pos_embed/embeddings": positions, "unembed/w": unembed}
    for name, matrix in (("query", query), ("key", at), ("value", value), ("linear", out)):
        state |= {f"{layer}attn/{name}/w": matrix, f"{layer}attn/{name}/b": torch.zeros(matrix.shape[1])}
    state |= {f"{layer}mlp/linear_1/w": torch.zeros(D, 2), f"{layer}mlp/linear_1/b": torch.zeros(2)}
    state |= {f"{layer}mlp/linear_2/w": torch.zeros(2, D), f"{layer}mlp/linear_2/b": torch.zeros(D)}
    config = {"num_layers": 1, "num_heads": 1, "key_size": key, "mlp_hidden_size": 2, "d_model": D, "causal": True}
    config |= {"input_encoding": WORDS, "output_encoding": OUT, "activation": "relu", "layer_norm": False}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return config, state


@pytest.fixture
def folder(tmp_path):
    program(tmp_path / "previous")
    return tmp_path / "previous"


def test_the_program_says_the_word_before(folder):
    model = interp.load(folder)
    assert (model.info.n_logits, model.info.causal, model.bos_id) == (3, True, 0)
    answers = model.run("a b c b a").logits[0, 2:].argmax(-1).tolist()
    assert [model.torch_module.config.output_words[i] for i in answers] == ["a", "b", "c", "b"]
    assert model.attention("a b c b a", {"previous": Offset(1)})["previous"][0, 0, 0, 1:].min() > 0.999


def test_words(folder):
    tokenizer = interp.load(folder).tokenizer
    assert tokenizer("c a")["input_ids"] == [0, 4, 1]
    assert tokenizer("what")["input_ids"] == [0, 3]
    assert tokenizer.pad_token_id == 3


def test_a_small_vocabulary_is_asked_with_repeats(tmp_path):
    config, state = program(tmp_path)
    state["pos_embed/embeddings"] = torch.cat([state["pos_embed/embeddings"], torch.zeros(4, D)])
    save_file(state, tmp_path / "model.safetensors")
    result = interp.analyze(interp.load(tmp_path), "previous_token", n_prompts=16)
    assert "with repeats, of a vocabulary of 3" in result.provenance["data"]["task"]
    assert result.provenance["data"]["length"] == 10


def test_without_a_mask(tmp_path):
    config, state = program(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"causal": False}))
    model = interp.load(tmp_path)
    assert not model.info.causal
    pattern = model.run("a b c", capture=["L0.pattern"])["L0.pattern"]
    assert pattern[0, 0, 0].tolist() == [0.25] * 4  # the BOS asks for nothing, and sees all


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, s: c.update(layer_norm=True), "layer_norm"),
        (lambda c, s: s.pop("unembed/w"), "'unembed/w' of the Tracr program is missing"),
        (lambda c, s: s.pop("transformer/layer_0/attn/key/w"), "attn/key/w' of the Tracr program is missing"),
        (lambda c, s: c.update(num_heads=2), r"attn/query/w' has shape \[14, 6\], and the config says \[14, 12\]"),
        (lambda c, s: s.update({"extra/w": torch.zeros(1)}), "'extra/w' has no place"),
        (lambda c, s: s.update({"transformer/layer_0/mlp/linear_1/w": torch.zeros(D, 3)}), "W_in.* has shape"),
        (lambda c, s: c["input_encoding"].pop("BOS"), "needs 'BOS'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    config, state = program(tmp_path)
    config = json.loads(json.dumps(config))
    change(config, state)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        interp.load(tmp_path)
