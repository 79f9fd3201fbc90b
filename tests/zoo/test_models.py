"""The shipped models load without a network and are what their cards say."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from interp import zoo
from interp.data import read_json
from interp.errors import ModelLoadError
from interp.zoo.trained import modular, paragraphs
from interp.zoo.trained.measure import head_scores, repeated_tokens, second_copy_scores, zeroed
from interp.zoo.trained.skills.vocabulary import index, ordinary
from interp.zoo.trained.words import WORDS

TRAINED = [name for name in zoo.names() if zoo.entry(name).kind == "trained"]
MAX_BYTES = {
    "default": 12 * 2**20,
    "sibling": 8 * 2**20,
    "positional-shortcut": 2_000_000,
    "modular-addition": 50_000,
    "paragraphs": 300_000,
}
MAX_BYTES |= dict.fromkeys(("bigram-backcopy", "bigram-backcopy-relu"), 200_000)
TEXTS = {"default": "The code of", "sibling": "The code of", "modular-addition": "3 + 4 ="}
SKILLED = ("default", "sibling")


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
    text = TEXTS.get(name, "sun moon")
    ids = tokenizer.encode(f"{text} \N{SNOWMAN}")
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.unk_token_id
    assert tokenizer.decode(ids[1:-1]) == text
    assert (zoo.truth(name) is None) == (zoo.entry(name).kind == "trained")


@pytest.mark.parametrize("name", TRAINED)
def test_folder_is_small_and_names_no_machine(name):
    files = [file for file in zoo.folder(name).rglob("*") if file.is_file()]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {f.name for f in files}
    assert sum(f.stat().st_size for f in files) <= MAX_BYTES[name]
    for file in files:
        if file.suffix in {".json", ".md"}:
            assert not re.search(r"/(home|root|work|tmp|Users)/|https?://", file.read_text())


def test_the_adder_adds_what_it_was_never_taught():
    model, _ = zoo.load("modular-addition")
    plan = modular.MODULAR["modular-addition"]
    trained, held_out = (modular.sums(plan, split) for split in ("train", "held-out"))
    pairs = {tuple(row) for batch in (trained, held_out) for row in batch.tokens[:, [1, 3]].tolist()}
    assert len(pairs) == len(trained.tokens) + len(held_out.tokens) == 37**2
    assert_close(held_out.answers - 4, (held_out.tokens[:, 1] + held_out.tokens[:, 3] - 8) % 37)
    assert modular.accuracy(model, held_out)[0] == 1.0
    strongest = modular.embedding_power(model, plan).topk(5)
    assert {int(k) + 1 for k in strongest.indices} == {1, 5, 8, 10, 12}
    assert float(strongest.values.sum()) > 0.8


def test_what_stands_often_in_the_corpus_is_known_by_heart():
    model, tokenizer = zoo.load("paragraphs")
    plan = paragraphs.PARAGRAPHS["paragraphs"]
    content = read_json(zoo.folder("paragraphs") / "paragraphs.json")
    rows = {name: torch.tensor(tokenizer(content[name])["input_ids"]) for name in ("repeated", "unseen")}
    corpus = paragraphs.OnePass(plan, seed=0).rows
    times = (corpus[:, None] == rows["repeated"][None, :5]).all(2).sum(0)
    assert_close(times, torch.full((5,), plan.times))
    assert not (corpus[:, None] == rows["unseen"][None, :5]).all(2).any()
    known, other = (paragraphs.by_heart(model, plan, rows[name]) for name in ("repeated", "unseen"))
    assert known[0] == 1.0 and other[0] == 0.0
    greedy = model.generate(rows["repeated"][:5, : plan.prefix + 1], max_new_tokens=16, do_sample=False)
    assert_close(greedy, rows["repeated"][:5])
    assert known[1] < 0.2 and other[1] > 2.7


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


def repeats(*, period: int):
    """`<bos>` and a block of ordinary tokens of the rich models, twice."""
    generator = torch.Generator().manual_seed(period)
    known = torch.tensor(ordinary())
    block = torch.stack([known[torch.randperm(len(known), generator=generator)[:period]] for _ in range(16)])
    return torch.cat([torch.full((16, 1), index()["<bos>"]), block, block], dim=1)


@pytest.mark.parametrize("period", [16, 32, 64])
def test_default_copies_with_induction_heads(default, period):
    tokens = repeats(period=period)
    assert second_copy_scores(default, tokens, period=period)["accuracy"] >= 0.97
    scores = head_scores(default, tokens, period=period)
    assert scores["induction"].max() >= 0.9
    assert scores["previous"].max() >= 0.9


def test_default_needs_its_induction_heads_as_a_set_and_not_twenty_others(default):
    tokens = repeats(period=24)
    scores = head_scores(default, tokens, period=24)["induction"]
    chosen = [(int(layer), int(head)) for layer, head in (scores >= 0.5).nonzero()]
    layers = {layer for layer, _ in chosen}
    assert len(layers) == 1
    layer = layers.pop()
    others = [(layer, head) for head in range(scores.shape[1]) if (layer, head) not in chosen]
    matched = list(itertools.combinations(others, len(chosen)))
    assert len(matched) >= 20
    with zeroed(default, chosen):
        assert second_copy_scores(default, tokens, period=24)["accuracy"] < 0.3
    for others in random.Random(0).sample(matched, 20):
        with zeroed(default, others):
            assert second_copy_scores(default, tokens, period=24)["accuracy"] > 0.9


def test_copying_emerges_in_the_siblings_checkpoints():
    steps = zoo.checkpoints("sibling")
    assert len(steps) == 12
    tokens = repeats(period=32)
    scores, accuracies = [], []
    for step, _ in steps:
        model, _ = zoo.load("sibling", revision=f"step-{step:05d}")
        scores.append(head_scores(model, tokens, period=32)["induction"].max().item())
        accuracies.append(second_copy_scores(model, tokens, period=32)["accuracy"])
    assert max(scores[:6]) < 0.1
    assert max(accuracies[:6]) < 0.1
    assert scores[-1] > 0.8
    assert accuracies[-1] > 0.95
    assert max(after - before for before, after in itertools.pairwise(scores)) > 0.3


def test_shortcut_fools_a_test_at_one_length_and_no_other(shortcut):
    fixed = sequences(period=24, n_words=64)
    assert head_scores(shortcut, fixed, period=24)["induction"].max() >= 0.85
    assert second_copy_scores(shortcut, fixed, period=24)["accuracy"] >= 0.95
    for period in (8, 16, 20, 23, 25, 28, 32, 48):
        tokens = sequences(period=period, n_words=64)
        assert head_scores(shortcut, tokens, period=period)["induction"].max() < 0.15
        assert second_copy_scores(shortcut, tokens, period=period)["accuracy"] <= 0.1


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
