"""Toys: heads that are written into small vocabularies and short contexts, and chance at those sizes."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import interp
from interp.errors import NotApplicable
from interp.measurement.offsets import PERMUTED, WRONG_OFFSETS, repeat_null
from interp.measurement.prompts import repeat_groups
from interp.tasks import permuted_repeats
from interp.zoo.planted import factory

CASES = [(12, 16), (14, 24), (17, 32), (20, 40), (12, 8), (17, 10), (20, 12)]
SLOW = [(w, c) for w in (12, 14, 17, 20) for c in (16, 24, 32, 40, 8, 10, 12) if (w, c) not in CASES]


def toy(words: int, context: int, *, architecture: str = "llama", seed: int = 0):
    planted = factory.plant([factory.Induction()], architecture=architecture, seed=seed, n_words=words, context=context)
    return planted, interp.load(planted.model, tokenizer=planted.tokenizer)


def labelled(result: interp.Result) -> set[tuple[int, int]]:
    rows = result.table[result.table["label"].fillna(False).astype(bool)]
    return {(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)}


@pytest.mark.parametrize(
    ("words", "context", "architecture"),
    [
        *((*c, ("llama", "gpt2")[i % 2]) for i, c in enumerate(CASES)),
        *(pytest.param(*c, ("gpt2", "llama")[i % 2], marks=pytest.mark.slow) for i, c in enumerate(CASES)),
        *(pytest.param(*c, name, marks=pytest.mark.slow) for c in SLOW for name in ("llama", "gpt2")),
    ],
)
def test_planted_heads_of_toys_are_found_and_no_other(words, context, architecture):
    planted, model = toy(words, context, architecture=architecture)
    names = ("induction", "previous_token", "duplicate_token")
    found = {name: interp.analyze(model, name, **({"causal": False} if name == "induction" else {})) for name in names}
    for name, result in found.items():
        assert labelled(result) == set(planted.truth.roles.get(name, [])), name
    rows = found["induction"].top("induction", k=1)
    assert rows["value"].iloc[0] > 0.95
    assert rows["q"].iloc[0] < 0.01


def test_where_the_null_comes_from_is_stated():
    for context, kind in ((8, PERMUTED), (12, PERMUTED), (16, WRONG_OFFSETS), (40, WRONG_OFFSETS)):
        found = interp.analyze(toy(20, context)[1], "induction", causal=False)
        assert found.provenance["data"]["null_draws"] == kind


def test_one_length_is_judged_against_permuted_contents():
    """Then a head that looks a fixed distance back scores as much without a repeat."""
    model = toy(20, 40)[1]
    groups = repeat_groups(model, n_prompts=8, lengths=(9, 9), n_lengths=1, bos="default", seed=0, least=1)
    assert [g.length for g in groups] == [9]
    assert repeat_null(groups, lambda g: range(2, 9)) == PERMUTED


def test_a_positional_head_is_no_induction_head_at_one_length():
    shortcut = interp.load("zoo:positional-shortcut")
    found = interp.analyze(shortcut, "induction", lengths=(24, 24), n_lengths=1, causal=False)
    rows = found.top("induction", k=2)
    assert (rows["value"] > 0.9).any()
    assert not rows["label"].astype(bool).any()


def test_permuted_copies_hold_the_same_tokens_and_none_in_its_place():
    groups = repeat_groups(toy(20, 40)[1], n_prompts=12, lengths=(5, 9), n_lengths=3, bos="default", seed=0)
    for g, other in zip(groups, permuted_repeats(groups, seed=1, derange=True), strict=True):
        first, second = (x.batch.ids[:, g.second.start : g.second.stop] for x in (g, other))
        assert torch.equal(first.sort(1).values, second.sort(1).values)
        assert (first != second).all()
        assert torch.equal(g.batch.ids[:, : g.second.start], other.batch.ids[:, : g.second.start])


def test_no_room_at_all_is_said():
    _, model = toy(12, 5)
    with pytest.raises(
        NotApplicable, match="no room to repeat a block: at most 2 tokens fit twice into a context of 5"
    ):
        interp.analyze(model, "induction")
    with pytest.raises(NotApplicable, match="prompts of 5 tokens are too short to tell offsets apart"):
        interp.analyze(model, "previous_token")


def random_toy(i: int) -> interp.Model:
    words, context, spread = (
        (12, 14, 17, 20)[i % 4],
        (16, 24, 32, 40, 8, 10, 12)[i % 7],
        (0.02, 0.2, 0.5, 1.0)[i // 4 % 4],
    )
    torch.manual_seed(i)
    special = {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": spread, "vocab_size": words + 3}
    if i % 2:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(**special, **sizes, num_key_value_heads=4, max_position_embeddings=context)
        return interp.load(LlamaForCausalLM(config).eval())
    return interp.load(
        GPT2LMHeadModel(GPT2Config(**special, n_embd=32, n_layer=2, n_head=4, n_positions=context)).eval()
    )


def false_labels(models: range) -> int:
    """Heads of random models that are called induction, previous-token or duplicate-token heads."""
    count = 0
    for i in models:
        for name in ("induction", "previous_token", "duplicate_token"):
            options = {"causal": False} if name == "induction" else {}
            count += len(labelled(interp.analyze(random_toy(i), name, seed=i, **options)))
    return count


def test_random_toys_are_left_alone():
    assert false_labels(range(8)) == 0


@pytest.mark.slow
def test_at_most_two_false_labels_on_two_hundred_random_toys():
    assert false_labels(range(200)) <= 2
