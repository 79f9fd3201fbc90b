"""The shipped models load without a network and are what their cards say."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from interp import zoo
from interp.errors import ModelLoadError
from interp.zoo.measure import head_scores, repeated_tokens, second_copy, zeroed
from interp.zoo.words import WORDS

TRAINED = [name for name in zoo.names() if zoo.entry(name).kind == "trained"]
MAX_BYTES = 2_000_000


def sequences(*, period: int, n_words: int):
    generator = torch.Generator().manual_seed(period)
    return repeated_tokens(batch=16, period=period, repeats=2, n_words=n_words, generator=generator)


@pytest.fixture(scope="module")
def default():
    return zoo.load("default")[0]


@pytest.fixture(scope="module")
def shortcut():
    return zoo.load("positional-shortcut")[0]


@pytest.mark.parametrize("name", zoo.names())
def test_every_entry_loads_in_float32_and_eval_mode(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = zoo.load(name)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.encode("sun moon zebra") == [0, 4, 5, 3]
    assert tokenizer.decode([4, 5]) == "sun moon"
    assert (zoo.truth(name) is None) == (zoo.entry(name).kind == "trained")


@pytest.mark.parametrize("name", TRAINED)
def test_folder_is_small_and_names_no_machine(name):
    files = list(zoo.folder(name).iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {f.name for f in files}
    assert sum(f.stat().st_size for f in files) <= MAX_BYTES
    for file in files:
        if file.suffix in {".json", ".md"}:
            assert not re.search(r"/(home|root|work|tmp|Users)/|https?://", file.read_text())


def test_words_are_distinct_and_lower_case():
    assert len(WORDS) == 256
    assert len(set(WORDS)) == 256
    assert all(re.fullmatch("[a-z]{2,8}", word) for word in WORDS)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ModelLoadError, match=r"'defualt'.*planted-induction.*'default'\?"):
        zoo.load("defualt")


def test_importing_the_catalogue_imports_neither_torch_nor_transformers():
    code = "import sys, interp.zoo; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("period", [16, 32, 64])
def test_default_copies_with_induction_heads(default, period):
    tokens = sequences(period=period, n_words=256)
    assert second_copy(default, tokens, period=period)["accuracy"] >= 0.97
    scores = head_scores(default, tokens, period=period)
    assert scores["induction"][1:].max() >= 0.5
    assert scores["induction"][0].max() <= 0.1
    assert scores["previous"][:2].max() >= (0.5 if period <= 32 else 0.3)


def test_default_needs_its_induction_heads_as_a_set_and_not_the_others(default):
    tokens = sequences(period=24, n_words=256)
    scores = head_scores(default, tokens, period=24)["induction"]
    chosen = [(int(layer), int(head)) for layer, head in (scores >= 0.3).nonzero()]
    others = [(1, head) for head in range(scores.shape[1]) if (1, head) not in chosen]
    assert {layer for layer, _ in chosen} == {1}
    assert 2 <= len(chosen) <= len(others)  # room for a matched random set in the same layer
    with zeroed(default, chosen):
        assert second_copy(default, tokens, period=24)["accuracy"] <= 0.1
    with zeroed(default, others):
        assert second_copy(default, tokens, period=24)["accuracy"] >= 0.95


def test_shortcut_fools_a_test_at_one_length_and_no_other(shortcut):
    fixed = sequences(period=24, n_words=64)
    assert head_scores(shortcut, fixed, period=24)["induction"].max() >= 0.85
    assert second_copy(shortcut, fixed, period=24)["accuracy"] >= 0.95
    for period in (8, 16, 20, 23, 25, 28, 32, 48):
        tokens = sequences(period=period, n_words=64)
        assert head_scores(shortcut, tokens, period=period)["induction"].max() < 0.15
        assert second_copy(shortcut, tokens, period=period)["accuracy"] <= 0.1


def test_shortcut_looks_the_same_distance_back_whatever_the_tokens(shortcut):
    generator = torch.Generator().manual_seed(0)
    block = repeated_tokens(batch=16, period=60, repeats=1, n_words=64, generator=generator)
    # No repetition at all: read as period 24, the stripe is still there.
    assert head_scores(shortcut, block, period=24)["induction"].max() >= 0.85


def test_repeated_tokens_is_bos_then_distinct_words_twice():
    tokens = sequences(period=16, n_words=64)
    assert tokens.shape == (16, 33)
    assert_close(tokens[:, 1:17], tokens[:, 17:], rtol=0, atol=0)
    assert tokens[:, 1:].min() >= 4
    assert (tokens[:, 0] == 0).all()
    assert all(len(set(row.tolist())) == 16 for row in tokens[:, 1:17])
    with pytest.raises(ValueError, match="65"):
        sequences(period=65, n_words=64)
