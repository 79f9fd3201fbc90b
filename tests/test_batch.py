"""Prompts as people bring them: what a tokenizer returns, arrays, padded ids, texts with too many special tokens."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast

from interp.batch import Batch
from interp.errors import PromptWarning, TaskError

WORDS = ["<bos>", "<eos>", "<pad>", "<unk>", "the", "cat", "sat", "dog"]


def tokenizer(*, template: str = "<bos> $A", pad: str = "<pad>") -> PreTrainedTokenizerFast:
    """A word-level tokenizer that puts special tokens around text as the template says."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(w, i) for i, w in enumerate(WORDS[:3])]
    inner.add_special_tokens(WORDS[:3])
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": pad, "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def rows(batch: Batch) -> list[list[int]]:
    """Real tokens of each prompt."""
    return [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_what_a_tokenizer_returns_is_its_ids_and_mask(side, tensors):
    t = tokenizer()
    t.padding_side = side
    output = t(["the cat sat", "dog"], padding=True, return_tensors=tensors)
    for given in (output, dict(output)):
        batch = Batch.of(given, t)
        assert rows(batch) == [[0, 4, 5, 6], [0, 7]]
        assert batch.mask[1].tolist() == [side == "right"] * 2 + [side == "left"] * 2 or side == "left"
    assert rows(Batch.of(t("the cat"), t)) == [[0, 4, 5]]  # one prompt, not in a list
    assert rows(Batch.of(t(["the cat", "dog"]), t)) == [[0, 4, 5], [0, 7]]  # ragged lists
    assert rows(Batch.of(BatchEncoding({"input_ids": [4, 5]}), t)) == [[4, 5]]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"text": "the cat"}, "`input_ids`; got keys \\['text'\\]"),
        ({"input_ids": [[4]], "inputs_embeds": [[0.1]]}, "'inputs_embeds' cannot be run"),
        ({"input_ids": [[4]], "position_ids": [[3]]}, "'position_ids' cannot be run"),
        ({"input_ids": [[4, 5]], "attention_mask": [[1]]}, "another shape"),
        ({"input_ids": [[4, 5]], "attention_mask": [[1, 2]]}, "only 0 and 1"),
        ({"input_ids": [[4, 5, 6]], "attention_mask": [[1, 0, 1]]}, "prompt 0 has padding within it"),
        ({"input_ids": [[4, 5], [6, 7]], "attention_mask": [[1, 1], [0, 0]]}, "empty prompt"),
        ([1.5, 2.5], "token ids are integers; got float: 1.5"),
        ([[4, True]], "token ids are integers; got bool"),
        (np.array([1.0, 2.0]), "tokens must be integers.*float64"),
        (torch.ones(1, 3, dtype=torch.bool), "tokens must be integers.*bool"),
        (torch.ones(1, 3, dtype=torch.complex64), "tokens must be integers.*complex64"),
        (torch.tensor(3), "tokens must be integers"),
        (7, "prompts are text or token ids; got int: 7"),
        (None, "prompts are text or token ids; got NoneType"),
        (b"the cat", "prompts are text or token ids; got bytes"),
        ([[[4]]], "token ids are integers; got list"),
        ([[2**70]], "outside any vocabulary"),
        ([], "empty prompt"),
        ([[4], []], "empty prompt"),
        (["the", ""], "empty prompt"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, message):
    with pytest.raises(TaskError, match=message):
        Batch.of(prompts, tokenizer())


@pytest.mark.parametrize(
    "prompts",
    [
        [4, 5],
        (4, 5),
        range(4, 6),
        np.array([4, 5]),
        np.array([[4, 5]], dtype=np.int32),
        list(np.array([4, 5])),
        list(torch.tensor([4, 5])),
        [torch.tensor([4, 5])],
        [np.array([4, 5])],
        torch.tensor([4, 5], dtype=torch.uint8),
    ],
    ids=lambda prompts: f"{type(prompts).__name__} of {type(prompts[0]).__name__}",
)
def test_ids_in_every_container(prompts):
    assert rows(Batch.of(prompts, tokenizer())) == [[4, 5]]


def test_ids_that_come_one_by_one():
    assert rows(Batch.of(iter([4, 5]), tokenizer())) == [[4, 5]]
    assert rows(Batch.of(([i, i] for i in (4, 5)), tokenizer())) == [[4, 4], [5, 5]]


def test_texts_in_every_container():
    for given in (["the cat", "dog"], ("the cat", "dog"), np.array(["the cat", "dog"])):
        assert rows(Batch.of(given, tokenizer())) == [[0, 4, 5], [0, 7]]
    assert rows(Batch.of(["the", [4, 5]], tokenizer())) == [[0, 4], [4, 5]]


def test_padding_in_ids_without_a_mask_is_seen_and_said():
    t = tokenizer()
    for ids in ([[4, 5, 6], [2, 2, 7]], [[4, 5, 6], [7, 2, 2]]):
        for given in (ids, torch.tensor(ids), np.array(ids)):
            with pytest.warns(PromptWarning, match="1 of 2 prompts begin or end with the padding token \\(id 2\\)"):
                assert rows(Batch.of(given, t)) == [[4, 5, 6], [7]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(Batch.of([[4, 2, 6]], t)) == [[4, 2, 6]]  # within a prompt it is a token
        assert rows(Batch.of([[4, 2]], None)) == [[4, 2]]


def test_a_padding_token_that_is_the_end_of_text_too_is_not_guessed():
    t = tokenizer(pad="<eos>")
    assert rows(Batch.of([[1, 4, 5], [4, 5, 1]], t)) == [[1, 4, 5], [4, 5, 1]]  # one, as GPT-2 begins a text
    with pytest.raises(TaskError, match="begin or end with 2 of the padding token \\(id 1\\) and have no mask"):
        Batch.of([[4, 5, 6], [7, 1, 1]], t)


def test_an_end_that_the_tokenizer_appends_is_left_out_and_said():
    t = tokenizer(template="<bos> $A <eos>")
    with pytest.warns(PromptWarning, match="ends text with '<eos>': left out"):
        assert rows(Batch.of("the cat", t)) == [[0, 4, 5]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(Batch.of([0, 4, 1], t)) == [[0, 4, 1]]  # ids are as they are given
        assert rows(Batch.of("the cat", t, keep_end=True)) == [[0, 4, 5, 1]]


def test_an_end_that_is_written_stays():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(Batch.of("the cat <eos>", tokenizer())) == [[0, 4, 5, 1]]


def test_a_second_beginning_is_left_out_and_said():
    with pytest.warns(PromptWarning, match="begins with '<bos>', which the tokenizer adds as well: one is kept"):
        assert rows(Batch.of("<bos> the cat", tokenizer())) == [[0, 4, 5]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(Batch.of("<bos> the cat", tokenizer(template="$A"))) == [[0, 4, 5]]


def test_a_warning_names_the_callers_line():
    with pytest.warns(PromptWarning) as caught:
        Batch.of("<bos> the cat", tokenizer())
    assert caught[0].filename == __file__


def test_padding_moves_to_the_other_side():
    batch = Batch.of([[4, 5, 6], [7]])
    moved = batch.padded_on("left")
    assert rows(moved) == rows(batch)
    assert moved.mask.tolist() == [[True] * 3, [False, False, True]]
    assert moved.padded_on("left") is moved


def test_a_batch_of_parts_that_do_not_fit_is_refused():
    ids = torch.tensor([[4, 5, 6]])
    for mask in (torch.ones(1, 2).bool(), torch.ones(1, 3), torch.ones(3).bool()):
        with pytest.raises(TaskError, match="a batch has ids \\[batch, pos\\] and a mask of booleans"):
            Batch(ids, mask).checked()
