"""A configuration that describes another size of model than its files hold is refused before any of it is made."""

import json
import resource

import pytest
from tiny_models import build

import interp
from interp.errors import ModelLoadError


@pytest.fixture
def folder(tmp_path):
    build("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 1000, "num_hidden_layers is 1000 by config.json, and the files hold"),
        ("vocab_size", 10**18, "vocab_size is 1e[+]18 by config.json, which no model has"),
        ("max_position_embeddings", 10**30, "max_position_embeddings is 1e[+]30 by config.json"),
        ("hidden_size", 200_000, "by config.json the model has"),
        ("intermediate_size", 2**31 - 1, "by config.json the model has"),
    ],
)
def test_a_bomb(folder, field, value, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelLoadError, match=message):
        interp.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_long_context_is_no_bomb(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2**20}))
    assert interp.load(folder).info.n_layers == config["num_hidden_layers"]
