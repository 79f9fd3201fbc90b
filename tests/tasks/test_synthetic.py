"""Random prompts: of ordinary tokens, of varied length, with the BOS that was asked for."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import D_VOCAB, build, tiny
from tokenizers import Tokenizer, models
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

import interp
from interp import tasks
from interp.batch import Batch
from interp.errors import TaskError

ODD = ["<s>", "</s>", "<unk>", "<0x0A>", "<0xE2>", "▁", "Ġ", "ĊĊ", "Ã", "é", " \t"]
WORDS = ["Ġthe", "▁cat", "a", "caf\u00e9", "7", "<0xZZ>"]


def odd_tokenizer(*, bos=True):
    vocab = {token: i for i, token in enumerate([*ODD, *WORDS])}
    specials = {"unk_token": "<unk>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, "<unk>")), **specials)
    tokenizer.add_tokens(["added"])
    return tokenizer


def bare(**config):
    options = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    ids = {"bos_token_id": None, "eos_token_id": None}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**options, **ids, **config}))


def test_ordinary_tokens_are_words():
    tokenizer = odd_tokenizer()
    model = interp.load(bare(), tokenizer=tokenizer)
    names = tokenizer.convert_ids_to_tokens(tasks.ordinary_tokens(model).tolist())
    assert names == WORDS


def test_ordinary_tokens_without_a_tokenizer_leave_out_the_configs():
    model = interp.load(bare(bos_token_id=3, eos_token_id=[5, 7], pad_token_id=29))
    assert tasks.ordinary_tokens(model).tolist() == [i for i in range(30) if i not in (3, 5, 7, 29)]
    assert tasks.ordinary_tokens(tiny("gpt2")).tolist() == list(range(D_VOCAB))


def test_ordinary_tokens_stay_inside_the_models_vocabulary():
    model = interp.load(bare(vocab_size=13), tokenizer=odd_tokenizer())
    assert tasks.ordinary_tokens(model).tolist() == [11, 12]


def test_bos_policies_with_a_tokenizer_that_adds_none():
    model = interp.load(bare(), tokenizer=odd_tokenizer())
    assert tasks.bos_id(model, "default") is None
    assert tasks.bos_id(model, "forced") == 0
    assert tasks.bos_id(model, "none") is None


def test_bos_policies_with_a_tokenizer_that_adds_it():
    model = interp.load("zoo:planted-induction")
    assert tasks.bos_id(model, "default") == model.tokenizer.bos_token_id == tasks.bos_id(model, "forced")
    assert tasks.bos_id(model, "none") is None


def test_bos_policies_without_a_tokenizer():
    model = interp.load(bare(bos_token_id=3))
    assert [tasks.bos_id(model, p) for p in tasks.BOS_POLICIES] == [3, 3, None]
    plain = interp.load(bare())
    assert tasks.bos_id(plain, "default") is None
    with pytest.raises(TaskError, match="has no BOS token; use bos='none'"):
        tasks.bos_id(plain, "forced")
    outside = interp.load(bare(bos_token_id=30))
    assert tasks.bos_id(outside, "default") is None


def test_unknown_bos_policy():
    with pytest.raises(TaskError, match="unknown BOS policy 'force'; did you mean 'forced'"):
        tasks.bos_id(tiny("gpt2"), "force")


@pytest.mark.parametrize("bos", ["forced", "none"])
def test_repeats_are_a_block_of_distinct_tokens_twice(bos):
    model = interp.load(bare(bos_token_id=3))
    for group in tasks.repeated_random(model, lengths=[5, 9], n_each=6, bos=bos, seed=1):
        ids, start, length = group.batch.ids, group.start, group.length
        assert start == (bos == "forced")
        assert ids.shape == (6, start + 2 * length)
        assert (ids[:, :start] == 3).all()
        assert_close(ids[:, start : start + length], ids[:, start + length :], atol=0, rtol=0)
        assert all(len(set(row)) == length and 3 not in row for row in ids[:, start : start + length].tolist())
        assert list(group.second) == list(range(start + length, start + 2 * length))
        assert group.rows(group.second).sum(1).tolist() == [length] * 6
        assert len({tuple(row) for row in ids.tolist()}) == 6


@pytest.mark.parametrize("seed", range(5))
def test_lengths_vary(seed):
    drawn = tasks.repeat_lengths(tiny("gpt2"), lowest=16, highest=64, n_lengths=8, start=0, seed=seed)
    assert len(set(drawn)) == len(drawn) == 8
    assert drawn == sorted(drawn)
    assert 16 <= drawn[0] < drawn[-1] <= 64
    assert drawn == tasks.repeat_lengths(tiny("gpt2"), lowest=16, highest=64, n_lengths=8, start=0, seed=seed)
    assert drawn != tasks.repeat_lengths(tiny("gpt2"), lowest=16, highest=64, n_lengths=8, start=0, seed=seed + 99)


@pytest.mark.parametrize(("lowest", "highest"), [(18, 20), (25, 27), (30, 32)])
def test_lengths_that_fit_are_those_asked_for(lowest, highest):
    drawn = tasks.repeat_lengths(tiny("gpt2"), lowest=lowest, highest=highest, n_lengths=3, start=0, seed=0)
    assert drawn == [lowest, lowest + 1, highest]


@pytest.mark.parametrize(("n_positions", "vocab"), [(17, 30), (64, 8), (40, 30)])
def test_lengths_fit_context_and_vocabulary(n_positions, vocab):
    model = interp.load(bare(n_positions=n_positions, vocab_size=vocab))
    drawn = tasks.repeat_lengths(model, lowest=16, highest=64, n_lengths=8, start=1, seed=0)
    assert len(drawn) >= 3
    assert drawn[0] >= 4
    assert drawn[-1] <= min((n_positions - 1) // 2, vocab)


def test_too_small_a_context_or_vocabulary():
    for options in ({"n_positions": 8}, {"vocab_size": 5}):
        model = interp.load(bare(**options))
        with pytest.raises(TaskError, match="no room to vary the repeat length.*at least 6 are needed"):
            tasks.repeat_lengths(model, lowest=16, highest=64, n_lengths=8, start=1, seed=0)


def test_more_distinct_tokens_than_there_are():
    with pytest.raises(TaskError, match=f"65 distinct tokens asked for, but the vocabulary has {D_VOCAB}"):
        tasks.random_prompts(tiny("gpt2"), n=1, length=65, bos="none", seed=0)


def test_random_prompts_have_the_length_asked_for_and_follow_the_seed():
    model = interp.load(bare(bos_token_id=3))
    batch = tasks.random_prompts(model, n=4, length=12, bos="forced", seed=0)
    assert batch.ids.shape == (4, 12)
    assert (batch.ids[:, 0] == 3).all()
    assert all(len(set(row)) == 12 for row in batch.ids.tolist())
    same, other = (tasks.random_prompts(model, n=4, length=12, bos="forced", seed=s) for s in (0, 1))
    assert tasks.fingerprint([batch]) == tasks.fingerprint([same]) != tasks.fingerprint([other])


def test_random_prompts_use_every_ordinary_token():
    batch = tasks.random_prompts(tiny("gpt2"), n=200, length=8, bos="none", seed=0)
    assert len(batch.ids.unique()) == D_VOCAB


def test_earlier_equal_pairs():
    batch = Batch.of([[5, 7, 5, 5], [1, 2], [3, 3]], side="left")
    found = set(zip(*(x.tolist() for x in tasks.earlier_equal_pairs(batch)), strict=True))
    assert found == {(0, 2, 0), (0, 3, 0), (0, 3, 2), (2, 3, 2)}


def test_earlier_equal_pairs_of_repeats_are_the_stripe():
    group = tasks.repeated_random(tiny("gpt2"), lengths=[7], n_each=2, bos="none", seed=0)[0]
    b, i, j = tasks.earlier_equal_pairs(group.batch)
    assert_close(i - j, torch.full_like(i, 7), atol=0, rtol=0)
    assert sorted(zip(b.tolist(), i.tolist(), strict=True)) == [(r, q) for r in range(2) for q in group.second]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "empty prompt"),
        ([[]], "empty prompt"),
        ([[3], []], "empty prompt"),
        (torch.zeros(2, 0, dtype=torch.long), "empty prompt"),
        (torch.zeros(2, 3), "tokens must be integers"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "tokens must be integers.*1, 2, 3"),
        ("text", "no tokenizer: give token ids"),
        ([[3, 64]], "token id 64 is outside the vocabulary 0..63"),
        ([[-1, 3]], "token id -1 is outside"),
        ([list(range(3, 60)) * 13], "longer than the model's context of 700"),
    ],
)
def test_prompts_that_cannot_be_run(prompts, message):
    with pytest.raises(TaskError, match=message):
        tiny("gpt2").run(prompts)


def test_prompts_in_every_form():
    model = tiny("gpt2")
    whole = model.run([[5, 6, 7]]).logits
    for prompt in (
        [5, 6, 7],
        torch.tensor([5, 6, 7]),
        torch.tensor([[5, 6, 7]], dtype=torch.int32),
        Batch.of([5, 6, 7]),
    ):
        assert_close(model.run(prompt).logits, whole, atol=0, rtol=0)


def test_text_goes_through_the_tokenizer():
    model = interp.load("zoo:planted-induction")
    batch = model.batch(["sun moon", "sun"])
    assert batch.ids[0].tolist() == model.tokenizer("sun moon")["input_ids"]
    assert batch.mask.tolist() == [[True, True, True], [True, True, False]]


def test_a_model_built_anew_is_the_same():
    first, second = build("opt").state_dict(), build("opt").state_dict()
    assert_close(first, second, atol=0, rtol=0)
